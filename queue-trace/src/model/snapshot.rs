//! A listener as it stands at one moment: the JSON lines of type `listener`.
//!
//! Everything but the identity is optional, as not every way of looking tells all.

use std::collections::BTreeMap;

use queue_trace_common::{
    outcome::{Kind, Outcome},
    queue::BUCKETS,
};
use serde::{Deserialize, Serialize};

use crate::model::{
    printable::{Printable, printable},
    socket::{Listener, Process},
    stall::Stall,
};

/// A listener at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "listener", default)]
pub struct Snapshot {
    /// When, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// The network namespace.
    pub netns: u32,
    /// Which listener.
    pub listener: Listener,
    /// The processes that hold it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<Vec<Process>>,
    /// Their cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The systemd unit that the cgroup names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The container that the cgroup names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The Kubernetes pod that the cgroup names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The pod's name, `NAMESPACE/NAME`, if the kubelet's folders tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// The name of the device that it is bound to, in its namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_name: Option<String>,
    /// Its place in a group that shares the port by `SO_REUSEPORT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// Its accept queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_queue: Option<Gauge>,
    /// Its SYN queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syn_queue: Option<Gauge>,
    /// What was refused since it was attached, by cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drops: Option<BTreeMap<String, u64>>,
    /// Every outcome by its name, since it was attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<BTreeMap<String, u64>>,
    /// How long connections waited for accept().
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_latency_us: Option<Latency>,
    /// How long handshakes took, from the first SYN-ACK.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake_us: Option<Latency>,
    /// Age of the oldest connection that nobody has accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_waiting_us: Option<u64>,
    /// The runtime whose default backlog the limit is, if its owner is that runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_of: Option<String>,
    /// What the owners' threads did when its accept queue was full, how many each: the letter
    /// of the state as in ps(1), and the kernel function that they waited in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<BTreeMap<String, u32>>,
    /// The file descriptors of the owner that had least room for more, when its accept queue was
    /// full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<Descriptors>,
    /// What kept its owner from accepting, when its queue was full or its oldest connection had
    /// waited long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stall: Option<Box<Stall>>,
    /// When listen() was called, RFC 3339, if that was while attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_time: Option<String>,
    /// Whether it was closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<bool>,
    /// When it was closed, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_time: Option<String>,
    /// How many connections entered its accept queue, since it was attached. This and what
    /// follows is for conclusions about it, and does not travel in JSON.
    #[serde(skip)]
    pub entered: Option<u64>,
    /// How many accepted connections had waited how long: a histogram.
    #[serde(skip)]
    pub waits: Option<[u64; BUCKETS]>,
    /// How long they had waited, all together, nanoseconds.
    #[serde(skip)]
    pub waited_sum_ns: Option<u64>,
    /// Place in its `SO_REUSEPORT` group, and how many are in it, as the kernel has it.
    #[serde(skip)]
    pub place: Option<(u32, u32)>,
}

/// File descriptors of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Descriptors {
    /// The process.
    pub pid: u32,
    /// How many are open, of those with a number below the limit.
    pub open: u64,
    /// How many may be, `RLIMIT_NOFILE`.
    pub limit: u64,
}

impl Descriptors {
    /// Whether the next one is refused.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.open >= self.limit
    }
}

/// A listener's socket: namespace, port and inode number.
pub type SocketKey = (u32, u16, Option<u64>);

impl Snapshot {
    /// Which one.
    #[must_use]
    pub fn key(&self) -> SocketKey {
        (self.netns, self.listener.port, self.listener.inode)
    }

    /// Whose it is, as a person says it: `nginx[812,813] nginx.service`.
    #[must_use]
    pub fn owner(&self) -> Option<String> {
        const SHOWN: usize = 3;
        let mut names: Vec<(&str, Vec<u32>)> = Vec::new();
        for process in self.processes.iter().flatten() {
            match names.iter_mut().find(|(name, _)| *name == process.comm) {
                Some((_, pids)) => pids.push(process.pid),
                None => names.push((&process.comm, vec![process.pid])),
            }
        }
        let mut parts: Vec<_> = names
            .iter()
            .map(|(comm, pids)| {
                let shown: Vec<_> = pids.iter().take(SHOWN).map(u32::to_string).collect();
                let more = if pids.len() > SHOWN { ",…" } else { "" };
                format!("{}[{}{more}]", Printable(comm), shown.join(","))
            })
            .collect();
        // As container tools show an id.
        let short = |id: &String| {
            let id = id.get(..12).unwrap_or(id);
            format!("container {}", Printable(id))
        };
        let pod = self.pod_name.as_ref().or(self.pod.as_ref());
        let place = pod.map(|pod| format!("pod {}", Printable(pod)));
        let place = place.or_else(|| self.container.as_ref().map(short));
        let unit = self.unit.as_deref();
        parts.extend(place.or_else(|| unit.map(|unit| printable(unit).into_owned())));
        (!parts.is_empty()).then(|| parts.join(" "))
    }

    /// What set the limit of its accept queue, in words: `backlog (somaxconn 4096)`. Empty
    /// if it was closed.
    #[must_use]
    pub fn limit_words(&self) -> String {
        let Some(queue) = self.accept_queue.as_ref().filter(|_| !self.is_closed()) else {
            return String::new();
        };
        let from = queue.limit_from.as_deref();
        let mut text = match from {
            Some("backlog_or_earlier_somaxconn") => "backlog, or somaxconn at that time".to_owned(),
            from => from.unwrap_or_default().replace('_', " "),
        };
        if let Some(asked) = queue.asked.filter(|_| from != Some("backlog")) {
            text.push_str(&format!(" (asked {asked})"));
        }
        if let Some(somaxconn) = queue.somaxconn.filter(|_| from != Some("somaxconn")) {
            text.push_str(&format!(" (somaxconn {somaxconn})"));
        }
        if let Some(default_of) = &self.default_of {
            text.push_str(&format!(", default of {default_of}"));
        }
        text
    }

    /// What its owners' threads did while its queue was full: `3 sleeping in
    /// futex_do_wait, 1 stopped`.
    #[must_use]
    pub fn thread_words(&self) -> Option<String> {
        let mut threads: Vec<_> = self.threads.as_ref()?.iter().collect();
        threads.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let words = |(doing, count): (&String, &u32)| {
            let (state, place) = doing.split_once(' ').unwrap_or((doing, ""));
            let state = match state {
                "R" => "running",
                "S" => "sleeping",
                "D" => "blocked in the kernel",
                "T" => "stopped",
                "t" => "stopped by a debugger",
                "Z" | "X" => "ended",
                other => other,
            };
            match place {
                "" => format!("{count} {state}"),
                place => format!("{count} {state} in {place}"),
            }
        };
        (!threads.is_empty()).then(|| {
            let all: Vec<_> = threads.into_iter().take(5).map(words).collect();
            all.join(", ")
        })
    }

    /// That an owner has no file descriptor left, in words: `20 open in server[12], its limit is 20`.
    #[must_use]
    pub fn descriptors_used_up(&self) -> Option<String> {
        let used = self.descriptors.filter(Descriptors::is_used_up)?;
        let mut owners = self.processes.iter().flatten();
        let owner = owners.find(|process| process.pid == used.pid);
        let comm = owner.map_or("", |process| &process.comm);
        Some(format!(
            "{} open in {comm}[{}], its limit is {}",
            used.open, used.pid, used.limit
        ))
    }

    /// How many wait in its accept queue, as far as is known.
    #[must_use]
    pub fn depth(&self) -> Option<u32> {
        self.accept_queue.as_ref()?.depth
    }

    /// How many may wait in its accept queue.
    #[must_use]
    pub fn limit(&self) -> Option<u32> {
        self.accept_queue.as_ref()?.limit
    }

    /// The limit of its accept queue, and `net.core.somaxconn` of the namespace.
    #[must_use]
    pub fn limits(&self) -> Option<(u32, Option<u32>)> {
        let queue = self.accept_queue.as_ref()?;
        Some((queue.limit?, queue.somaxconn))
    }

    /// Whether its accept queue is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.accept_queue.as_ref().is_some_and(Gauge::is_full)
    }

    /// How many packets it refused, as far as is known.
    #[must_use]
    pub fn refused(&self) -> u64 {
        let drops = self.drops.iter().flatten();
        drops.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Whether it needs somebody to look why nobody accepts: its queue is full, or its oldest
    /// connection has waited long.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        /// Microseconds.
        const LONG: u64 = 1_000_000;
        !self.is_closed() && (self.is_full() || self.oldest_waiting_us.is_some_and(|us| us >= LONG))
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed == Some(true)
    }
}

/// Whether something is refused. A cookie is an answer, and so is that to a SYN without fast open.
#[must_use]
pub fn is_drop(outcome: &Outcome) -> bool {
    outcome.kind == Kind::Refusal && !matches!(outcome.verdict, "cookie_sent" | "fast_open_refused")
}

/// What of these outcomes is refused, by cause.
#[must_use]
pub fn drops(counts: impl IntoIterator<Item = (&'static Outcome, u64)>) -> BTreeMap<String, u64> {
    let mut drops: BTreeMap<_, u64> = BTreeMap::new();
    for (outcome, count) in counts {
        if is_drop(outcome) {
            let cause = outcome.cause.unwrap_or(outcome.verdict);
            let sum = drops.entry(cause.to_owned()).or_default();
            *sum = sum.saturating_add(count);
        }
    }
    drops
}

/// A listener's place in a `SO_REUSEPORT` group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Group {
    /// From 0.
    pub index: u32,
    /// How many sockets are in it.
    pub size: u32,
    /// The part of the group's connections that this socket was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Whether its queue is full while a sibling's is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_among_idle: Option<bool>,
}

/// A queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gauge {
    /// How many are in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// Requests whose SYN-ACK was not sent again; SYN queue only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub young: Option<u32>,
    /// Its limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// What set the limit: `backlog`, `somaxconn` or `earlier_somaxconn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_from: Option<String>,
    /// The backlog that listen() was given, where its call was seen; accept queue only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<i32>,
    /// `net.core.somaxconn` of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub somaxconn: Option<u32>,
    /// The most there have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high_water: Option<u32>,
    /// When there were so many first, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high_water_time: Option<String>,
    /// How long it was full, all together, microseconds; accept queue only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_us: Option<u64>,
    /// How often it became full; accept queue only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_times: Option<u64>,
}

impl Gauge {
    /// Whether the next connection would be refused, as far as is known.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!((self.depth, self.limit), (Some(depth), Some(limit)) if depth > limit)
    }
}

/// Latency in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Half were faster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<u64>,
    /// 99 of 100 were faster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<u64>,
    /// The slowest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// Of how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_in_words_most_first() {
        let doing = [("S futex_do_wait", 3), ("T", 1), ("R", 2)];
        let snapshot = Snapshot {
            threads: Some(doing.map(|(what, count)| (what.to_owned(), count)).into()),
            ..Snapshot::default()
        };
        let words = snapshot.thread_words();
        assert_eq!(
            words.as_deref(),
            Some("3 sleeping in futex_do_wait, 2 running, 1 stopped")
        );
        assert_eq!(Snapshot::default().thread_words(), None);
    }
}
