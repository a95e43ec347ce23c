//! A listener at one moment, with the histogram of waits that a line `listener` leaves out:
//! for a sink that adds up what listeners count.

use queue_trace_common::queue::BUCKETS;

use crate::model::snapshot::Snapshot;

/// A listener at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sight {
    /// The listener.
    pub snapshot: Snapshot,
    /// How many accepted connections had waited how long, since attached.
    pub waits: Option<[u64; BUCKETS]>,
    /// How long they had waited, all together, nanoseconds.
    pub waited_sum_ns: Option<u64>,
}
