//! The listeners of this machine: whose they are, how full their queues are and were,
//! and how long connections wait. What is known of one at a moment is a
//! [`Snapshot`](crate::model::snapshot::Snapshot), from the kernel to JSON. Anything unknown
//! is absent.
//!
//! [`mod@look`] asks the kernel (`diag`) in every network namespace, and finds the owners
//! (`owners`, `cgroup`); it needs nothing attached. What is kept in the kernel while
//! attached is added by `stats`.

pub mod cgroup;
pub mod diag;
pub mod group;
pub mod language;
pub mod look;
pub mod owners;
pub mod pods;
pub mod remembered;
pub mod stall;
pub mod stats;
pub mod table;
mod takers;
pub mod watch;

pub use self::{
    cgroup::Cgroup,
    look::{How, Look, look},
    stall::Stalls,
    stats::Stats,
    watch::{News, Watch},
};
use crate::model::runtime::is_default_somaxconn;

/// What set the limit of an accept queue, as far as can be told afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitFrom {
    /// The backlog that the application asked for.
    Backlog,
    /// `net.core.somaxconn`, which is as much or less than what was asked for.
    Somaxconn,
    /// An earlier `net.core.somaxconn` or a backlog below it: the setting is lower now.
    EarlierSomaxconn,
    /// The backlog that the application asked for, or an earlier `net.core.somaxconn`: the limit
    /// is a kernel's default of it.
    BacklogOrEarlierSomaxconn,
}

impl LimitFrom {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backlog => "backlog",
            Self::Somaxconn => "somaxconn",
            Self::EarlierSomaxconn => "earlier_somaxconn",
            Self::BacklogOrEarlierSomaxconn => "backlog_or_earlier_somaxconn",
        }
    }

    /// The kernel caps the backlog at `somaxconn` when listen() is called, and never
    /// again.
    #[must_use]
    pub fn of(limit: u32, somaxconn: u32) -> Self {
        match limit.cmp(&somaxconn) {
            std::cmp::Ordering::Less if is_default_somaxconn(limit) => {
                Self::BacklogOrEarlierSomaxconn
            }
            std::cmp::Ordering::Less => Self::Backlog,
            std::cmp::Ordering::Equal => Self::Somaxconn,
            std::cmp::Ordering::Greater => Self::EarlierSomaxconn,
        }
    }
}
