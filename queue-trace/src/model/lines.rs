//! The lines of a recording that are not verdicts or listeners: what they begin with, what was
//! counted, lost, and how it ended. docs/events.md describes each.

use std::{collections::BTreeMap, fmt};

use queue_trace_common::{
    loss::{LOSSES, Loss},
    outcome::Outcome,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{event::OutcomeWords, socket::Listener};

/// What the output begins with: who observed what, how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "header")]
pub struct Header {
    /// Version of the schema of these lines, see docs/events.md.
    pub schema: u32,
    /// Version of this program.
    pub version: String,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachPlan {
    /// `fentry`, `kprobe` or `tracepoint`.
    pub family: String,
    /// The kernel functions or tracepoints attached to.
    pub hooks: Vec<String>,
    /// The outcomes that were asked for and can be told here. What is not among them
    /// may have happened unseen. Recordings of older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<Vec<String>>,
    /// The filters that leave out packets or listeners, as they are on the command line. What they
    /// leave out may have happened unseen. Recordings of older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Vec<String>>,
    /// What cannot be told here, a sentence each.
    pub limits: Vec<String>,
}

/// Losses since the last note. What the kernel side loses has the names of [`LOSSES`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "loss", default)]
pub struct LossNote {
    /// When it was noticed, RFC 3339.
    pub time: String,
    /// Records that found the ring full: they are in the stream as counts only.
    pub records: u64,
    /// Counts kept by port, as the table of counts had no room for the listener.
    pub by_port: u64,
    /// Counts that found no room at all: the totals lack them.
    pub uncounted: u64,
    /// Reads of kernel memory that failed.
    pub failed_reads: u64,
    /// Calls of which only one end was seen.
    pub unpaired: u64,
    /// Calls during which a counter moved by more than one.
    pub ambiguous: u64,
    /// Calls that another one on the same CPU interrupted, whose counters could not be told apart.
    pub interleaved: u64,
    /// Packets that ended before the counters of their namespace were known on that CPU.
    pub no_baseline: u64,
    /// Entries of listeners that found the table of queues full.
    pub unlisted: u64,
    /// Connections that found the table of those in accept queues full.
    pub untimed: u64,
    /// Listeners that found the table of addresses full.
    pub unknown_listeners: u64,
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
        let lost = to.since(from);
        Self {
            time,
            records: lost.records,
            by_port: lost.by_port,
            uncounted: lost.uncounted,
            failed_reads: lost.failed_reads,
            unpaired: lost.unpaired,
            ambiguous: lost.ambiguous,
            interleaved: lost.interleaved,
            no_baseline: lost.no_baseline,
            unlisted: lost.unlisted,
            untimed: lost.untimed,
            unknown_listeners: lost.unknown_listeners,
            missed: 0,
            undecoded: 0,
        }
    }

    /// Adds what was lost later.
    pub fn add(&mut self, later: &Self) {
        self.time.clone_from(&later.time);
        for (sum, more) in [
            (&mut self.records, later.records),
            (&mut self.by_port, later.by_port),
            (&mut self.uncounted, later.uncounted),
            (&mut self.failed_reads, later.failed_reads),
            (&mut self.unpaired, later.unpaired),
            (&mut self.ambiguous, later.ambiguous),
            (&mut self.interleaved, later.interleaved),
            (&mut self.no_baseline, later.no_baseline),
            (&mut self.unlisted, later.unlisted),
            (&mut self.untimed, later.untimed),
            (&mut self.unknown_listeners, later.unknown_listeners),
            (&mut self.missed, later.missed),
            (&mut self.undecoded, later.undecoded),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// The losses by name, those that are not zero.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let kernel = Loss {
            records: self.records,
            by_port: self.by_port,
            uncounted: self.uncounted,
            failed_reads: self.failed_reads,
            unpaired: self.unpaired,
            ambiguous: self.ambiguous,
            interleaved: self.interleaved,
            no_baseline: self.no_baseline,
            unlisted: self.unlisted,
            untimed: self.untimed,
            unknown_listeners: self.unknown_listeners,
        };
        LOSSES
            .iter()
            .map(|kind| kind.says)
            .zip(kernel.numbers())
            .chain([
                ("missed program runs", self.missed),
                ("records not understood", self.undecoded),
            ])
            .filter(|(_, count)| *count != 0)
    }
}

/// What was lost, for a person: `3 failed reads, 1 unpaired calls`.
impl fmt::Display for LossNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (name, count)) in self.parts().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{count} {name}")?;
        }
        Ok(())
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
    #[serde(flatten, serialize_with = "words")]
    pub outcome: &'static Outcome,
    /// How often.
    pub count: u64,
}

fn words<S: Serializer>(outcome: &&'static Outcome, serializer: S) -> Result<S::Ok, S::Error> {
    OutcomeWords::from(*outcome).serialize(serializer)
}

impl<'de> Deserialize<'de> for Total {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct TotalFields<'a> {
            netns: u32,
            listener: Listener,
            #[serde(flatten, borrow)]
            words: OutcomeWords<'a>,
            count: u64,
        }
        let line = TotalFields::deserialize(deserializer)?;
        Ok(Self {
            netns: line.netns,
            listener: line.listener,
            outcome: line.words.outcome()?,
            count: line.count,
        })
    }
}

/// How often each outcome occurred at one listener since the previous such line, or since
/// the beginning. Exact, and at most one line a second, so that the course of events is known
/// even when events are rate-limited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "counts")]
pub struct Counts {
    /// When they were read, RFC 3339.
    pub time: String,
    /// The same moment by the monotonic clock, nanoseconds. Recordings of older versions do not
    /// say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mono_ns: Option<u64>,
    /// The network namespace.
    pub netns: u32,
    /// The listener.
    pub listener: Listener,
    /// How often each outcome was, by its name `VERDICT` or `VERDICT:CAUSE`; those that
    /// were not are left out.
    pub outcomes: BTreeMap<String, u64>,
}

/// The last line of a recording that ended in good order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "end")]
pub struct End {
    /// When, RFC 3339.
    pub time: String,
    /// How many lines came before this one.
    pub lines: u64,
    /// Whether the run goes on in another file.
    pub rotated: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_of_the_registry_is_a_member_and_a_part() {
        for (index, kind) in LOSSES.iter().enumerate() {
            let mut numbers = [0u64; queue_trace_common::loss::COUNT];
            numbers[index] = 7;
            let lost: Loss = bytemuck::cast(numbers);
            let note = LossNote::between(&Loss::default(), &lost, String::new());
            let json = serde_json::to_value(&note).unwrap();
            assert_eq!(json[kind.name], 7, "{}", kind.name);
            assert_eq!(note.parts().collect::<Vec<_>>(), [(kind.says, 7)]);
        }
    }
}
