//! Where output goes: one trait, a file for each form.

mod json;
mod text;

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use queue_trace_common::{outcome::Outcome, settings::Loss};
use serde::{Serialize, Serializer};

use crate::{
    event::{Event, Listener},
    ledger::Ledger,
    plan::Plan,
};

pub use self::{json::Json, text::Text};

/// One form of output. A sink writes what it is given, in the order given.
pub trait Sink {
    /// The beginning.
    ///
    /// # Errors
    /// Each method: what the writer says.
    fn header(&mut self, header: &Header) -> io::Result<()>;
    /// A verdict.
    fn event(&mut self, event: &Event) -> io::Result<()>;
    /// Something was lost since the last note.
    fn loss(&mut self, note: &LossNote) -> io::Result<()>;
    /// The exact counts, at the end.
    fn summary(&mut self, totals: &[Total]) -> io::Result<()>;
    /// The ledger of a namespace: at the end, or when a difference appears.
    fn ledger(&mut self, ledger: &Ledger) -> io::Result<()>;
    /// Makes what was written visible.
    fn flush(&mut self) -> io::Result<()>;
}

/// What the output begins with: who observed what, how.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename = "header")]
pub struct Header {
    /// Version of the schema of these lines, see docs/events.md.
    pub schema: u32,
    /// Version of this program.
    pub version: &'static str,
    /// When it began, RFC 3339.
    pub time: String,
    /// Name of the host.
    pub host: String,
    /// Release of the kernel.
    pub kernel: String,
    /// The attach plan.
    pub attach: AttachPlan,
}

/// Version of the JSON schema. Fields may be added within a version; none changes
/// its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// The attach plan, for the header.
#[derive(Debug, Clone, Serialize)]
pub struct AttachPlan {
    /// `fentry`, `kprobe` or `tracepoint`.
    pub family: &'static str,
    /// The kernel functions or tracepoints attached to.
    pub hooks: Vec<&'static str>,
    /// What cannot be told here, a sentence each.
    pub limits: Vec<String>,
}

impl From<&Plan> for AttachPlan {
    fn from(plan: &Plan) -> Self {
        Self {
            family: plan.family.name(),
            hooks: plan.attached_to(),
            limits: plan.limits(),
        }
    }
}

/// Losses since the last note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename = "loss")]
pub struct LossNote {
    /// When it was noticed, RFC 3339.
    pub time: String,
    /// Records that found the ring full: they are in the stream as counts only.
    pub records: u64,
    /// Counts that could not be kept by listener, only by outcome.
    pub uncounted: u64,
    /// Reads of kernel memory that failed.
    pub failed_reads: u64,
    /// Calls of which only one end was seen.
    pub unpaired: u64,
    /// Calls during which a counter moved by more than one.
    pub ambiguous: u64,
    /// First packets of a namespace on a CPU, before which its counters were not known.
    pub no_baseline: u64,
    /// Runs of a program that the kernel left out because it was running on that CPU
    /// already.
    pub missed: u64,
    /// Records that could not be decoded.
    pub undecoded: u64,
}

impl LossNote {
    /// What the kernel side lost between two readings of its counters.
    #[must_use]
    pub fn between(from: &Loss, to: &Loss, time: String) -> Self {
        Self {
            time,
            records: to.ring_full - from.ring_full,
            uncounted: to.map_full - from.map_full,
            failed_reads: to.read_failed - from.read_failed,
            unpaired: to.unpaired - from.unpaired,
            ambiguous: to.ambiguous - from.ambiguous,
            no_baseline: to.no_baseline - from.no_baseline,
            missed: 0,
            undecoded: 0,
        }
    }

    /// The losses by name, those that are not zero.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("records that found the ring full", self.records),
            ("counts not kept by listener", self.uncounted),
            ("failed reads", self.failed_reads),
            ("unpaired calls", self.unpaired),
            ("ambiguous calls", self.ambiguous),
            ("packets without a baseline", self.no_baseline),
            ("missed program runs", self.missed),
            ("records not understood", self.undecoded),
        ]
        .into_iter()
        .filter(|(_, count)| *count != 0)
    }
}

/// The exact count of one outcome at one listener.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename = "total")]
pub struct Total {
    /// The network namespace.
    pub netns: u32,
    /// The listener.
    pub listener: Listener,
    /// The outcome.
    #[serde(flatten, serialize_with = "outcome")]
    pub outcome: &'static Outcome,
    /// How often.
    pub count: u64,
}

fn outcome<S: Serializer>(outcome: &&'static Outcome, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Words {
        step: &'static str,
        verdict: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<&'static str>,
    }
    Words {
        step: outcome.step.name(),
        verdict: outcome.verdict,
        cause: outcome.cause,
    }
    .serialize(serializer)
}

/// What sinks write to: standard output or a file.
pub struct Output {
    writer: BufWriter<Box<dyn Write>>,
    path: Option<PathBuf>,
    terminal: bool,
}

impl Output {
    /// Standard output, or a new file at the path.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let (writer, terminal): (Box<dyn Write>, bool) = match path {
            None => (Box::new(io::stdout()), io::stdout().is_terminal()),
            Some(path) => {
                let file = File::create(path)
                    .with_context(|| format!("cannot write to {}", path.display()))?;
                (Box::new(file), false)
            }
        };
        Ok(Self {
            writer: BufWriter::with_capacity(64 << 10, writer),
            path: path.map(Path::to_owned),
            terminal,
        })
    }

    /// Whether a person may be looking at it in colour.
    #[must_use]
    pub fn wants_colour(&self) -> bool {
        let says_no = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        self.terminal && !says_no("NO_COLOR") && !dumb
    }

    /// The name by which the user knows it.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "standard output".to_owned(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
