//! A sink that passes on what a filter lets through: what the kernel side cannot filter, and what
//! a recording has of others.

use std::io;

use crate::{
    model::{
        clients::Clients,
        event::Event,
        ledger::Ledger,
        lines::{Counts, End, Header, LossNote, Total},
        snapshot::Snapshot,
    },
    recording::{Line, select::Only},
    sink::{Extent, Sink, Wanted},
};

/// Passes on to another sink what is wanted.
pub struct Narrowed<'a> {
    inner: &'a mut dyn Sink,
    only: &'a mut Only,
    shown: u64,
}

impl<'a> Narrowed<'a> {
    /// Passes on to `inner` what `only` lets through.
    pub fn new(inner: &'a mut dyn Sink, only: &'a mut Only) -> Self {
        Self {
            inner,
            only,
            shown: 0,
        }
    }

    fn take(&mut self, line: &Line) -> io::Result<()> {
        for line in self.only.take(line) {
            if let Line::Event(event) = &line {
                self.shown += event.count;
            }
            line.to(self.inner)?;
        }
        Ok(())
    }
}

impl Sink for Narrowed<'_> {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        self.take(&Line::Header(header.clone()))
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.take(&Line::Event(event.clone()))
    }

    fn listener(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.take(&Line::Listener(Box::new(snapshot.clone())))
    }

    fn counts(&mut self, counts: &Counts) -> io::Result<()> {
        self.take(&Line::Counts(counts.clone()))
    }

    fn loss(&mut self, note: &LossNote) -> io::Result<()> {
        self.take(&Line::Loss(note.clone()))
    }

    /// They are shown together, so they are passed on together.
    fn summary(&mut self, totals: &[Total]) -> io::Result<()> {
        let mut wanted = Vec::new();
        for total in totals {
            let passed = self.only.take(&Line::Total(total.clone())).into_iter();
            wanted.extend(passed.filter_map(|line| match line {
                Line::Total(total) => Some(total),
                _ => None,
            }));
        }
        self.inner.summary(&wanted)
    }

    fn clients(&mut self, clients: &Clients) -> io::Result<()> {
        self.take(&Line::Clients(clients.clone()))
    }

    fn ledger(&mut self, ledger: &Ledger) -> io::Result<()> {
        self.take(&Line::Ledger(ledger.clone()))
    }

    fn end(&mut self, time: &str) -> io::Result<()> {
        let end = End {
            time: time.to_owned(),
            lines: 0,
            rotated: false,
        };
        self.take(&Line::End(end))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    fn shown(&self) -> Option<u64> {
        Some(self.shown)
    }

    fn second(&mut self) -> io::Result<Wanted> {
        self.inner.second()
    }

    fn look(&mut self, rows: &[Snapshot], extent: &Extent) -> io::Result<()> {
        self.inner.look(rows, extent)
    }

    fn ledgers(&mut self, ledgers: &[Ledger]) -> io::Result<()> {
        self.inner.ledgers(ledgers)
    }
}
