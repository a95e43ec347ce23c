//! JSON lines, the form of a recording: docs/events.md.

use std::io::{self, Write};

use serde::Serialize;

use super::{Header, LossNote, Sink, Total};
use crate::{event::Event, ledger::Ledger};

/// Writes one JSON object a line.
pub struct Json<W>(pub W);

impl<W: Write> Json<W> {
    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, value)?;
        self.0.write_all(b"\n")
    }
}

impl<W: Write> Sink for Json<W> {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        self.line(header)
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.line(event)
    }

    fn loss(&mut self, note: &LossNote) -> io::Result<()> {
        self.line(note)
    }

    fn summary(&mut self, totals: &[Total]) -> io::Result<()> {
        totals.iter().try_for_each(|total| self.line(total))
    }

    fn ledger(&mut self, ledger: &Ledger) -> io::Result<()> {
        self.line(ledger)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
