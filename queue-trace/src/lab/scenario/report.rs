//! What a case did, in the words of the tracer's verdicts.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use queue_trace_common::outcome::Outcome;

use crate::lab::Ending;

/// What a case did.
#[derive(Clone, Debug)]
pub struct Report {
    /// In one sentence.
    pub did: String,
    /// The listener concerned.
    pub listener: SocketAddr,
    /// Handshakes begun.
    pub attempted: u32,
    /// How they ended for those clients that listened for an answer.
    pub endings: BTreeMap<Ending, u32>,
    /// What it made the kernel do.
    pub imposed: Vec<Imposed>,
}

/// A number of equal decisions that a case imposed on the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imposed {
    /// The decision, as the tracer names it.
    pub outcome: &'static Outcome,
    /// How many times.
    pub count: u32,
}

impl fmt::Display for Imposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.count, self.outcome.verdict)?;
        let cause = self.outcome.cause;
        cause.map_or(Ok(()), |cause| write!(f, " ({cause})"))
    }
}
