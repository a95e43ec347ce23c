//! `queue-trace replay`: a recording, shown as the live stream was.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::IpAddr,
};

use anyhow::{Result, bail};
use ipnet::IpNet;
use jiff::tz::TimeZone;
use queue_trace_common::outcome;

use crate::{
    cli::{self, Filters, NetnsArg},
    event::{Event, Listener, outcome_named},
    recording::{Line, Reader},
    sink::{Counts, Medium, Output, Sink, Text, Total},
};

/// Shows the recording.
///
/// # Errors
/// If it cannot be read at all, or the output cannot be written.
pub fn run(args: &cli::Replay) -> Result<()> {
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
    fn add(&mut self, counts: &Counts, wanted: outcome::Set) {
        let Listener {
            addr, port, inode, ..
        } = counts.listener;
        for (name, count) in &counts.outcomes {
            if let Some(outcome) = outcome_named(name).filter(|o| wanted & o.bit() != 0) {
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

/// What of a recording is wanted: the live stream's filters, without a kernel to do it.
pub(crate) struct Only {
    filters: Filters,
    outcomes: outcome::Set,
    netns: Vec<u32>,
    /// The addresses that wanted listeners are bound to.
    bound: Vec<IpNet>,
}

impl Only {
    fn from_cli(filters: &Filters) -> Result<Self> {
        let mut netns = Vec::new();
        for arg in &filters.netns {
            match arg {
                NetnsArg::Id(id) => netns.push(*id),
                NetnsArg::Path(path) => bail!(
                    "--netns {}: a recording knows namespaces by number only, as the live stream shows them",
                    path.display()
                ),
            }
        }
        Ok(Self {
            filters: filters.clone(),
            outcomes: filters.wanted(),
            netns,
            bound: Vec::new(),
        })
    }

    /// All that befell these listeners.
    pub(crate) fn listeners(which: &cli::Which) -> Result<Self> {
        let filters = Filters {
            ports: which.ports.clone(),
            netns: which.netns.clone(),
            all: true,
            ..Filters::default()
        };
        Ok(Self {
            bound: which.addrs.clone(),
            ..Self::from_cli(&filters)?
        })
    }

    pub(crate) fn passes(&self, line: &Line) -> bool {
        match line {
            Line::Header(_) | Line::Loss(_) | Line::End(_) => true,
            Line::Event(event) => {
                self.outcomes & event.outcome.bit() != 0
                    && self.of(event.netns, &event.listener)
                    && self.between(event)
                    && self.slow_enough(event)
            }
            Line::Total(total) => {
                self.outcomes & total.outcome.bit() != 0 && self.of(total.netns, &total.listener)
            }
            Line::Counts(counts) => self.of(counts.netns, &counts.listener),
            Line::Listener(snapshot) => self.of(snapshot.netns, &snapshot.listener),
            Line::Clients(clients) => self.of(clients.netns, &clients.listener),
            Line::Ledger(ledger) => self.netns.is_empty() || self.netns.contains(&ledger.netns),
        }
    }

    fn of(&self, netns: u32, listener: &Listener) -> bool {
        let Filters { ports, .. } = &self.filters;
        (self.netns.is_empty() || self.netns.contains(&netns))
            && (ports.is_empty() || ports.iter().any(|range| range.contains(&listener.port)))
            && listener.addr.is_none_or(|addr| self.bound_to(addr))
    }

    /// A listener bound to any address takes what is sent to each.
    fn bound_to(&self, addr: IpAddr) -> bool {
        self.bound.is_empty()
            || addr.is_unspecified()
            || self.bound.iter().any(|net| net.contains(&addr))
    }

    /// With `--slow` alone, accepted connections are shown only if they were slow.
    fn slow_enough(&self, event: &Event) -> bool {
        let Filters { slow, .. } = &self.filters;
        let least = slow.filter(|_| !self.filters.shows_accepted());
        let (Some(least), outcome::ACCEPTED) = (least, event.outcome.tag) else {
            return true;
        };
        event
            .waited_us
            .is_some_and(|us| u128::from(us) >= least.as_micros())
    }

    /// As in the kernel: what has no addresses does not fit a filter on them.
    fn between(&self, event: &Event) -> bool {
        let Filters { addrs, clients, .. } = &self.filters;
        let fits = |nets: &[IpNet], addr: Option<IpAddr>| {
            nets.is_empty() || addr.is_some_and(|addr| nets.iter().any(|net| net.contains(&addr)))
        };
        fits(addrs, event.local) && fits(clients, event.client.map(|client| client.addr))
    }
}
