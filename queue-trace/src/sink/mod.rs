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

use std::{collections::BTreeSet, io, time::Duration};

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

/// Which listeners a sink wants to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Wanted {
    /// None.
    #[default]
    Nothing,
    /// Those of these namespaces.
    In(BTreeSet<u32>),
    /// All.
    All,
}

impl Wanted {
    /// What is in one of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, one) | (one, Self::Nothing) => one,
            (Self::In(mut one), Self::In(mut other)) => {
                one.append(&mut other);
                Self::In(one)
            }
            _ => Self::All,
        }
    }
}

/// What was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extent {
    /// All listeners of these namespaces, and what is new of the others; `None`: all listeners.
    pub within: Option<BTreeSet<u32>>,
    /// How long it took.
    pub took: Duration,
}

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
    /// Once a second, live; which listeners it wants to see now.
    fn second(&mut self) -> io::Result<Wanted> {
        Ok(Wanted::Nothing)
    }
    /// The listeners that it wanted, and how long it took to look at them.
    fn look(&mut self, _: &[Snapshot], _: &Extent) -> io::Result<()> {
        Ok(())
    }
    /// The ledgers of all namespaces, live, as often as they are compared.
    fn ledgers(&mut self, _: &[Ledger]) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_not_forgotten() {
        let some = |netns: &[u32]| Wanted::In(netns.iter().copied().collect());
        assert_eq!(Wanted::Nothing.and(some(&[1, 2])), some(&[1, 2]));
        assert_eq!(some(&[1]).and(Wanted::Nothing), some(&[1]));
        assert_eq!(some(&[1]).and(some(&[3, 2])), some(&[1, 2, 3]));
        assert_eq!(some(&[1]).and(Wanted::All), Wanted::All);
        assert_eq!(Wanted::All.and(some(&[1])), Wanted::All);
    }
}
