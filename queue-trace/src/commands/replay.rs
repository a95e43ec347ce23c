//! `queue-trace replay`: a recording, shown as the live stream was.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::IpAddr,
    path::PathBuf,
};

use anyhow::Result;
use clap::Args;
use jiff::tz::TimeZone;
use queue_trace_common::outcome;

use crate::{
    model::{
        event::outcome_named,
        lines::{Counts, Total},
        socket::Listener,
    },
    options::Filters,
    recording::{Line, Reader, select::Only},
    sink::{Medium, Output, Sink, Text},
};

/// Options of `replay`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace replay incident.jsonl.zst             the refusals of a recording\n  \
    queue-trace replay --all -p 443 incident.jsonl    all that befell one port\n  \
    zcat incident.jsonl.gz | queue-trace replay --json -   as JSON, from a pipe")]
pub struct ReplayArgs {
    /// Recordings, in order of time; - is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub filters: Filters,

    /// Write JSON, one object a line
    #[arg(long)]
    pub json: bool,

    /// Write to this file instead of standard output; compressed if it ends in .zst or .gz
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Shows the recording.
///
/// # Errors
/// If it cannot be read at all, or the output cannot be written.
pub fn run(args: &ReplayArgs) -> Result<()> {
    let only = Only::from_cli(&args.filters)?;
    let mut reader = Reader::open(&args.files)?;
    let mut output = Output::open(args.output.as_deref())?;
    let name = output.name();
    let shown = if args.json {
        as_json(&mut reader, &only, &mut output)
    } else {
        let colour = output.wants_colour();
        as_text(
            &mut reader,
            &only,
            Text::new(output, colour, TimeZone::system()),
        )
    };
    match shown {
        Ok(()) => {}
        Err(error) => match error.downcast::<io::Error>() {
            // Nobody reads it any more.
            Ok(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Ok(error) => {
                return Err(anyhow::Error::new(error).context(format!("cannot write to {name}")));
            }
            Err(error) => return Err(error),
        },
    }
    for note in reader.notes() {
        eprintln!("note: {note}");
    }
    Ok(())
}

/// The lines as they stand in the recording, those that pass.
fn as_json(reader: &mut Reader, only: &Only, output: &mut Output) -> Result<()> {
    while let Some(entry) = reader.next()? {
        if entry.line.as_ref().is_none_or(|line| only.passes(line)) {
            output.write_all(entry.raw)?;
            output.write_all(b"\n")?;
        }
    }
    output.finish()?;
    Ok(())
}

fn as_text(reader: &mut Reader, only: &Only, mut text: Text<Output>) -> Result<()> {
    let mut totals = Vec::new();
    let mut sums = Sums::default();
    let mut clients = Vec::new();
    let mut ledgers = Vec::new();
    while let Some(entry) = reader.next()? {
        let Some(line) = entry.line.filter(|line| only.passes(line)) else {
            continue;
        };
        match line {
            // They are shown together, and last.
            Line::Total(total) => totals.push(total),
            Line::Clients(whose) => clients.push(whose),
            Line::Ledger(ledger) => ledgers.push(ledger),
            Line::Counts(counts) => sums.add(&counts, only.outcomes),
            Line::End(_) => {}
            line => line.to(&mut text)?,
        }
    }
    if totals.is_empty() {
        totals = sums.totals();
    }
    text.summary(&totals)?;
    for whose in &clients {
        text.clients(whose)?;
    }
    for ledger in &ledgers {
        text.ledger(ledger)?;
    }
    text.end("")?;
    Ok(())
}

/// The counts added up, for a recording that has no totals: as many entries as there are
/// listeners.
#[derive(Default)]
struct Sums(BTreeMap<SumKey, (Listener, u64)>);

/// Namespace, port, address, inode number, tag of the outcome.
type SumKey = (u32, u16, Option<IpAddr>, Option<u64>, u8);

impl Sums {
    fn add(&mut self, counts: &Counts, selection: outcome::Set) {
        let Listener {
            addr, port, inode, ..
        } = counts.listener;
        for (name, count) in &counts.outcomes {
            if let Some(outcome) = outcome_named(name).filter(|o| selection & o.bit() != 0) {
                let key = (counts.netns, port, addr, inode, outcome.tag);
                let (_, sum) = self.0.entry(key).or_insert((counts.listener, 0));
                *sum = sum.saturating_add(*count);
            }
        }
    }

    fn totals(self) -> Vec<Total> {
        let total = |((netns, .., tag), (listener, count)): (SumKey, _)| {
            let outcome = outcome::Outcome::of(tag)?;
            Some(Total {
                netns,
                listener,
                outcome,
                count,
            })
        };
        self.0.into_iter().filter_map(total).collect()
    }
}
