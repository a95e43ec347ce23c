//! JSON lines, the form of a recording: docs/events.md.

use std::io;

use serde::Serialize;

use crate::{
    model::{
        clients::Clients,
        event::Event,
        ledger::Ledger,
        lines::{Counts, End, Header, LossNote, Total},
        snapshot::Snapshot,
    },
    sink::{Medium, Sink},
};

/// Writes one JSON object a line.
pub struct Json<W> {
    out: W,
    lines: u64,
}

impl<W: Medium> Json<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, lines: 0 }
    }

    /// What it writes to.
    pub fn medium(&self) -> &W {
        &self.out
    }

    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")?;
        self.lines += 1;
        Ok(())
    }

    /// Writes the last line, and all that is left.
    ///
    /// # Errors
    /// What the writer says.
    pub fn close(&mut self, time: &str, rotated: bool) -> io::Result<()> {
        let lines = self.lines;
        self.line(&End {
            time: time.to_owned(),
            lines,
            rotated,
        })?;
        self.out.finish()
    }
}

impl<W: Medium> Sink for Json<W> {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        self.line(header)
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.line(event)
    }

    fn listener(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.line(snapshot)
    }

    fn counts(&mut self, counts: &Counts) -> io::Result<()> {
        self.line(counts)
    }

    fn loss(&mut self, note: &LossNote) -> io::Result<()> {
        self.line(note)
    }

    fn summary(&mut self, totals: &[Total]) -> io::Result<()> {
        totals.iter().try_for_each(|total| self.line(total))
    }

    fn clients(&mut self, clients: &Clients) -> io::Result<()> {
        self.line(clients)
    }

    fn ledger(&mut self, ledger: &Ledger) -> io::Result<()> {
        self.line(ledger)
    }

    fn end(&mut self, time: &str) -> io::Result<()> {
        self.close(time, false)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
