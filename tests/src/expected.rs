//! What the tracer should tell of what was imposed on the kernel: all of it, as far
//! as it was asked for and can be seen by the way it attaches.

use std::collections::BTreeMap;

use queue_trace::{lab::scenario::Report, model::event::Name};
use queue_trace_common::outcome::{self, Kind, OUTCOMES};

use crate::setting::{self, Attach};

/// How often each outcome occurred, by its name: `syn_dropped:accept_queue_full`.
pub type Sums = BTreeMap<String, u64>;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nothing in particular: refusals.
    Refusals,
    /// `--all`.
    All,
}

/// What is to be told, of these outcomes (by tag).
#[must_use]
pub fn expected(outcomes: &[(u8, u64)], shown: Shown) -> Sums {
    let mut sums = Sums::new();
    for &(tag, count) in outcomes {
        let kind = OUTCOMES[usize::from(tag)].kind;
        if count == 0 || (kind == Kind::Routine && shown == Shown::Refusals) {
            continue;
        }
        if let Some(tag) = seen_as(tag, setting::attach()) {
            *sums.entry(name_of(tag)).or_default() += count;
        }
    }
    sums
}

/// What is to be told of a case that was played.
#[must_use]
pub fn imposed(report: &Report, shown: Shown) -> Sums {
    let outcomes: Vec<_> = report
        .imposed
        .iter()
        .map(|imposed| (imposed.outcome.tag, u64::from(imposed.count)))
        .collect();
    expected(&outcomes, shown)
}

/// As what an outcome is seen, if at all. Tracepoints alone tell neither the causes
/// that take a nested call to tell, nor what happens without a packet.
fn seen_as(tag: u8, attach: Attach) -> Option<u8> {
    if attach != Attach::Tracepoint {
        return Some(tag);
    }
    match tag {
        outcome::SYN_DROPPED_LAST_QUARTER
        | outcome::SYN_DROPPED_NO_MEMORY
        | outcome::SYN_DROPPED_NO_ROUTE
        | outcome::SYN_DROPPED_SECURITY
        | outcome::SYN_DROPPED_NOT_UNICAST => Some(outcome::SYN_DROPPED_OTHER),
        outcome::ACK_DROPPED_NO_MEMORY => Some(outcome::ACK_DROPPED_OTHER),
        outcome::COOKIE_FAILED_OPTIONS => Some(outcome::COOKIE_DROPPED_OTHER),
        outcome::SYNACK_RETRANSMITTED
        | outcome::REQUEST_EXPIRED
        | outcome::REQUEST_ABORTED
        | outcome::ACCEPTED => None,
        _ => Some(tag),
    }
}

/// The name of an outcome.
#[must_use]
pub fn name_of(tag: u8) -> String {
    Name(&OUTCOMES[usize::from(tag)]).to_string()
}
