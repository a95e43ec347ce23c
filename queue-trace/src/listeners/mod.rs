//! The listeners of this machine: whose they are, how full their queues are and were,
//! and how long connections wait. [`Row`] is what is known of one at a moment, from which the
//! line `listener` of docs/events.md is made ([`Snapshot`]). Anything unknown is absent.
//!
//! [`look`] asks the kernel (`diag`) in every network namespace, and finds the owners
//! (`owners`, `cgroup`); it needs nothing attached. What is kept in the kernel while
//! attached is added by `stats`.

pub mod cgroup;
pub mod diag;
pub mod group;
pub mod language;
pub mod member;
pub mod owners;
pub mod stats;
pub mod table;
pub mod watch;

use std::collections::BTreeMap;

use queue_trace_common::queue::BUCKETS;

pub use self::{
    cgroup::Cgroup,
    group::Group,
    look::{Look, look},
    stats::Stats,
    watch::Watch,
};
use crate::model::{
    event::rfc3339,
    latency::Distribution,
    runtime::is_default_somaxconn,
    sight::Sight,
    snapshot,
    snapshot::{Descriptors, Gauge, Snapshot},
    socket::{Listener, Process},
};

mod look;

/// What is known of one listener at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// When it was looked at, by the wall clock, nanoseconds since 1970.
    pub time: i128,
    /// Inode number of its network namespace.
    pub netns: u32,
    /// The socket.
    pub listener: Listener,
    /// The processes that hold the socket, by number; several for a forked server.
    pub processes: Vec<Process>,
    /// Where it runs.
    pub cgroup: Cgroup,
    /// Its `SO_REUSEPORT` group, if it shares its port.
    pub group: Option<Group>,
    /// The accept queue.
    pub accept_queue: AcceptGauge,
    /// The SYN queue; absent where requests cannot be told apart by socket.
    pub syn_queue: Option<SynGauge>,
    /// Refused packets by cause, since attached; absent if not attached.
    pub drops: Option<BTreeMap<String, u64>>,
    /// Every outcome by its name, since attached; absent if not attached.
    pub counts: Option<BTreeMap<String, u64>>,
    /// How long accepted connections had waited, since attached.
    pub accept_latency_us: Option<Distribution>,
    /// How long handshakes took, from the first SYN-ACK, since attached.
    pub handshake_us: Option<Distribution>,
    /// Age of the oldest connection that nobody has accepted, microseconds.
    pub oldest_waiting_us: Option<u64>,
    /// The runtime whose default backlog the limit is, if its owner is that runtime.
    pub default_of: Option<&'static str>,
    /// What the owners' threads do, how many each; of a full accept queue only.
    pub threads: Option<BTreeMap<String, u32>>,
    /// The file descriptors of the owner that has least room for more; of a full accept queue only.
    pub descriptors: Option<Descriptors>,
    /// How many connections entered its accept queue, since attached.
    pub entered: Option<u64>,
    /// How many accepted connections had waited how long: a histogram.
    pub waits: Option<[u64; BUCKETS]>,
    /// How long they had waited, all together, nanoseconds.
    pub waited_sum_ns: Option<u64>,
    /// Place in its `SO_REUSEPORT` group, and how many are in it, as the kernel has it.
    pub place: Option<(u32, u32)>,
    /// The device that it is bound to, by number; 0: none.
    pub device: u32,
    /// Whether it was closed: then these are its last words.
    pub closed: bool,
}

/// The accept queue of a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AcceptGauge {
    /// Connections that nobody has accepted yet.
    pub depth: u32,
    /// The backlog in force; full when the depth is above it.
    pub limit: u32,
    /// What set the limit.
    pub limit_from: Option<LimitFrom>,
    /// The backlog that listen() was given, if it was called while attached.
    pub asked: Option<i32>,
    /// `net.core.somaxconn` of the namespace, now.
    pub somaxconn: Option<u32>,
    /// The deepest that it was, since attached.
    pub high_water: Option<u32>,
    /// When it was that deep for the first time.
    pub high_water_time: Option<i128>,
    /// How long it was full, all together, since attached, microseconds.
    pub full_us: Option<u64>,
    /// How often it became full, since attached.
    pub full_times: Option<u64>,
}

impl AcceptGauge {
    /// Whether the next connection would be refused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.depth > self.limit
    }
}

/// What set the limit of an accept queue, as far as can be told afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitFrom {
    /// The backlog that the application asked for.
    Backlog,
    /// `net.core.somaxconn`, which is as much or less than what was asked for.
    Somaxconn,
    /// An earlier `net.core.somaxconn` or a backlog below it: the setting is lower now.
    EarlierSomaxconn,
    /// The backlog that the application asked for, or an earlier `net.core.somaxconn`: the limit is a kernel's
    /// default of it.
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

/// The SYN queue of a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SynGauge {
    /// Requests whose handshake is not finished.
    pub depth: u32,
    /// Those among them whose SYN-ACK was not sent again.
    pub young: u32,
    /// The backlog in force, which bounds this queue too.
    pub limit: u32,
    /// The deepest that it was, since attached.
    pub high_water: Option<u32>,
    /// When it was that deep for the first time.
    pub high_water_time: Option<i128>,
}

impl From<AcceptGauge> for Gauge {
    fn from(queue: AcceptGauge) -> Self {
        Self {
            depth: Some(queue.depth),
            young: None,
            limit: Some(queue.limit),
            limit_from: queue.limit_from.map(|from| from.name().to_owned()),
            asked: queue.asked,
            somaxconn: queue.somaxconn,
            high_water: queue.high_water,
            high_water_time: queue.high_water_time.map(rfc3339),
            full_us: queue.full_us,
            full_times: queue.full_times,
        }
    }
}

impl From<SynGauge> for Gauge {
    fn from(queue: SynGauge) -> Self {
        Self {
            depth: Some(queue.depth),
            young: Some(queue.young),
            limit: Some(queue.limit),
            high_water: queue.high_water,
            high_water_time: queue.high_water_time.map(rfc3339),
            ..Self::default()
        }
    }
}

impl From<&Row> for Sight {
    fn from(row: &Row) -> Self {
        Self {
            snapshot: Snapshot::from(row),
            waits: row.waits.map(|waits| waits.map(u64::from)),
            waited_sum_ns: row.waited_sum_ns,
        }
    }
}

impl From<&Row> for Snapshot {
    fn from(row: &Row) -> Self {
        Self {
            time: Some(rfc3339(row.time)),
            netns: row.netns,
            listener: row.listener,
            processes: Some(row.processes.clone()),
            cgroup: row.cgroup.path.clone(),
            unit: row.cgroup.unit.clone(),
            container: row.cgroup.container.clone(),
            pod: row.cgroup.pod.clone(),
            group: row.group.map(|group| snapshot::Group {
                index: group.index,
                size: group.size,
                share: group.share,
                full_among_idle: group.full_among_idle.then_some(true),
            }),
            accept_queue: Some(row.accept_queue.into()),
            syn_queue: row.syn_queue.map(Into::into),
            drops: row.drops.clone(),
            counts: row.counts.clone(),
            accept_latency_us: row.accept_latency_us.map(Into::into),
            handshake_us: row.handshake_us.map(Into::into),
            oldest_waiting_us: row.oldest_waiting_us,
            default_of: row.default_of.map(str::to_owned),
            threads: row.threads.clone(),
            descriptors: row.descriptors,
            closed: row.closed.then_some(true),
        }
    }
}
