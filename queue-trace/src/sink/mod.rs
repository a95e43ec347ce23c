//! Where output goes: one trait, a file for each form.

mod file;
mod json;
mod output;
pub(crate) mod packed;
mod paint;
mod rotate;
mod rows;
#[cfg(target_os = "linux")]
mod standard;
mod text;

use std::{io, time::Duration};

pub use self::{
    file::NewFile,
    json::Json,
    output::{Medium, Output, person_wants_colour},
    rotate::{Limit, Rotating, Rotation},
    text::Text,
};
use crate::model::{
    clients::Clients,
    event::Event,
    ledger::Ledger,
    lines::{Counts, Header, LossNote, Total},
    snapshot::Snapshot,
};

/// One form of output. A sink writes what it is given, in the order given.
pub trait Sink {
    /// The beginning.
    ///
    /// # Errors
    /// Each method: what the writer says.
    fn header(&mut self, header: &Header) -> io::Result<()>;
    /// A verdict.
    fn event(&mut self, event: &Event) -> io::Result<()>;
    /// A listener as it stands now.
    fn listener(&mut self, snapshot: &Snapshot) -> io::Result<()>;
    /// How often each outcome occurred at a listener since the previous such line: once a second.
    fn counts(&mut self, counts: &Counts) -> io::Result<()>;
    /// Something was lost since the last note.
    fn loss(&mut self, note: &LossNote) -> io::Result<()>;
    /// The exact counts, at the end.
    fn summary(&mut self, totals: &[Total]) -> io::Result<()>;
    /// The networks that most of a listener's events came from: at the end.
    fn clients(&mut self, clients: &Clients) -> io::Result<()>;
    /// The ledger of a namespace: at the end, or when a difference appears.
    fn ledger(&mut self, ledger: &Ledger) -> io::Result<()>;
    /// The end: nothing more comes. Everything is written out.
    fn end(&mut self, time: &str) -> io::Result<()>;
    /// Makes what was written visible.
    fn flush(&mut self) -> io::Result<()>;

    /// How many events were shown, if it leaves some out of those that it is given.
    fn shown(&self) -> Option<u64> {
        None
    }
    /// Once a second, live; whether it wants to see all listeners now.
    fn second(&mut self) -> io::Result<bool> {
        Ok(false)
    }
    /// All listeners, as it wanted, and how long it took to look at them.
    fn look(&mut self, _: &[Snapshot], _: Duration) -> io::Result<()> {
        Ok(())
    }
    /// The ledgers of all namespaces, live, as often as they are compared.
    fn ledgers(&mut self, _: &[Ledger]) -> io::Result<()> {
        Ok(())
    }
}
