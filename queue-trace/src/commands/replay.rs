//! `queue-trace replay`: a recording, shown as the live stream was.

use std::{
    collections::{BTreeMap, btree_map::Entry},
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
        lines::{Counts, End, Total},
        socket::Listener,
    },
    options::Filters,
    recording::{Line, Reader, select::Only},
    sink::{Medium, Output, Sink, Text},
    stderr::say,
};

/// Options of `replay`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace replay incident.jsonl.zst             the refusals of a recording\n  \
    queue-trace replay --all -p 443 incident.jsonl    everything that happened on one port\n  \
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
    let mut only = Only::from_cli(&args.filters)?;
    let mut reader = Reader::open(&args.files)?;
    let mut output = Output::open(args.output.as_deref())?;
    output.is_none_of(&args.files)?;
    let name = output.name();
    let mut room = Room::default();
    let shown = if args.json {
        as_json(&mut reader, &mut only, &mut output)
    } else {
        let colour = output.wants_colour();
        as_text(
            &mut reader,
            &mut only,
            Text::new(output, colour, TimeZone::system()),
            &mut room,
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
        say!("note: {note}");
    }
    let left_out = only.finish();
    for note in left_out.notes().into_iter().chain(left_out.nobody()) {
        say!("note: {note}");
    }
    if only.is_between() {
        say!("note: totals are not shown: the recording has them of all clients");
    }
    if room.left_out > 0 {
        say!(
            "note: {} lines of the summary are not shown, as there are too many",
            room.left_out
        );
    }
    Ok(())
}

/// What is kept of a recording until its end, so that it does not take more memory the longer
/// the recording is.
#[derive(Default)]
struct Room {
    bytes: usize,
    left_out: u64,
}

impl Room {
    /// Of the lines at the end: more than the totals of 50,000 listeners.
    const MOST: usize = 16 << 20;

    /// Whether there is room for so many bytes of a recording.
    fn takes(&mut self, bytes: usize) -> bool {
        let fits = self.bytes.saturating_add(bytes) <= Self::MOST;
        if fits {
            self.bytes += bytes;
        } else {
            self.left_out += 1;
        }
        fits
    }
}

/// The lines as they stand in the recording, those that pass; what a filter changes is written as
/// the live stream would have written it, so that the output is a recording as well.
fn as_json(reader: &mut Reader, only: &mut Only, output: &mut Output) -> Result<()> {
    let mut lines = 0;
    while let Some(entry) = reader.next()? {
        let Some(read) = &entry.line else {
            output.write_all(entry.raw)?;
            output.write_all(b"\n")?;
            lines += 1;
            continue;
        };
        for line in only.take(read) {
            match line {
                // It has other lines before it.
                Line::End(end) if end.lines != lines => {
                    write_json(output, &End { lines, ..end })?;
                }
                same if same == *read => output.write_all(entry.raw)?,
                Line::Header(header) => write_json(output, &header)?,
                Line::Event(event) => write_json(output, &event)?,
                Line::Listener(snapshot) => write_json(output, &snapshot)?,
                Line::Counts(counts) => write_json(output, &counts)?,
                Line::Loss(note) => write_json(output, &note)?,
                Line::Total(total) => write_json(output, &total)?,
                Line::Clients(clients) => write_json(output, &clients)?,
                Line::Ledger(ledger) => write_json(output, &ledger)?,
                Line::End(end) => write_json(output, &end)?,
            }
            output.write_all(b"\n")?;
            lines += 1;
        }
    }
    output.finish()?;
    Ok(())
}

fn write_json(output: &mut Output, line: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(output, line).map_err(io::Error::from)
}

fn as_text(
    reader: &mut Reader,
    only: &mut Only,
    mut text: Text<Output>,
    room: &mut Room,
) -> Result<()> {
    let mut totals = Vec::new();
    let mut sums = CountSums::default();
    let mut clients = Vec::new();
    let mut ledgers = Vec::new();
    while let Some(entry) = reader.next()? {
        let bytes = entry.raw.len();
        let Some(read) = &entry.line else {
            continue;
        };
        for line in only.take(read) {
            match line {
                // They are shown together, and last.
                Line::Total(_) | Line::Clients(_) | Line::Ledger(_) if !room.takes(bytes) => {}
                Line::Total(total) => totals.push(total),
                Line::Clients(whose) => clients.push(whose),
                Line::Ledger(ledger) => ledgers.push(ledger),
                Line::Counts(counts) => sums.add(&counts, only.outcomes, room),
                Line::End(_) => {}
                line => line.to(&mut text)?,
            }
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
struct CountSums(BTreeMap<SumKey, (Listener, u64)>);

/// Namespace, port, address, device, inode number, tag of the outcome.
type SumKey = (u32, u16, Option<IpAddr>, Option<u32>, Option<u64>, u8);

impl CountSums {
    fn add(&mut self, counts: &Counts, selection: outcome::Set, room: &mut Room) {
        let Listener {
            addr,
            port,
            inode,
            device,
            ..
        } = counts.listener;
        for (name, count) in &counts.outcomes {
            if let Some(outcome) = outcome_named(name).filter(|o| selection & o.bit() != 0) {
                let key = (counts.netns, port, addr, device, inode, outcome.tag);
                match self.0.entry(key) {
                    Entry::Occupied(mut entry) => {
                        let (_, sum) = entry.get_mut();
                        *sum = sum.saturating_add(*count);
                    }
                    Entry::Vacant(entry) => {
                        if room.takes(size_of::<(SumKey, Listener, u64)>()) {
                            entry.insert((counts.listener, *count));
                        }
                    }
                }
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
