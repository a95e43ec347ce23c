//! Adds to the listeners that were looked at what the kernel side kept of them since it
//! was attached. Pure arithmetic, but for the names of cgroups.

use std::collections::{BTreeMap, HashMap, HashSet};

use queue_trace_common::{
    outcome::Outcome,
    queue::{Queue, QueueKey},
    settings::{CountKey, Counted},
};

use crate::{
    kernel::{
        decode::text,
        plan::HookFamily,
        probe::{Kept, QueueSums},
    },
    listeners::{LimitFrom, cgroup::Folders, group, look},
    model::{
        clock::{monotonic_now, wall_now},
        event::{Name, rfc3339},
        latency::Distribution,
        runtime,
        snapshot::{Gauge, Snapshot, drops},
        socket::{Listener, Process},
    },
};

/// What was kept, as it is needed here.
#[derive(Debug, Clone, Copy)]
pub struct Stats<'a> {
    /// Of the queues.
    pub kept: &'a Kept,
    /// Of the outcomes.
    pub counts: &'a HashMap<CountKey, Counted>,
    /// How the kernel side is attached: tracepoints do not tell when connections leave.
    pub family: HookFamily,
}

impl Stats<'_> {
    /// Adds to each listener what was kept of it, and the listeners that were closed.
    pub fn add_to(&self, rows: &mut Vec<Snapshot>, folders: &mut Folders) {
        let clock = Clock::now();
        let all = self.kept.listeners.iter();
        let gone: HashMap<_, _> = all
            .filter(|(_, (queue, _))| queue.closed_ns != 0)
            .map(|(key, (queue, _))| (key.inode, queue))
            .collect();
        // They may have been closed since they were looked at.
        rows.retain(|row| {
            let inode = row.listener.inode;
            inode.is_none_or(|inode| !gone.contains_key(&inode))
        });
        rows.extend(
            gone.iter()
                .map(|(inode, queue)| closed(*inode, queue, clock)),
        );
        let mut counts = self.counts_by_socket();
        let keys = self.kept.listeners.keys();
        let keys: HashMap<u64, &QueueKey> = keys.map(|key| (key.inode, key)).collect();
        for row in rows.iter_mut() {
            let inode = row.listener.inode.unwrap_or_default();
            let mine = counts.remove(&(row.netns, inode)).unwrap_or_default();
            row.drops = Some(drops(mine.iter().copied()));
            row.counts = Some(
                mine.iter()
                    .map(|(outcome, count)| (Name(outcome).to_string(), *count))
                    .collect(),
            );
            if let Some(key) = keys.get(&inode)
                && let Some((queue, sums)) = self.kept.listeners.get(*key)
            {
                self.add_marks(row, queue, sums, clock, folders);
            }
            let waiting = keys.get(&inode).and_then(|key| self.kept.waiting.get(*key));
            if let Some(waiting) = waiting {
                add_oldest(row, waiting, clock);
            }
        }
        group::find(rows);
        look::sort(rows);
    }

    /// How often each outcome occurred at each socket, by namespace and inode number.
    fn counts_by_socket(&self) -> HashMap<(u32, u64), Vec<(&'static Outcome, u64)>> {
        let mut sums: HashMap<_, BTreeMap<u8, u64>> = HashMap::new();
        for (key, counted) in self.counts.iter().filter(|(key, _)| key.inode != 0) {
            let outcomes = sums.entry((key.netns, key.inode)).or_default();
            *outcomes.entry(key.outcome).or_default() += counted.seen;
        }
        sums.into_iter()
            .map(|(socket, outcomes)| {
                let known = outcomes.into_iter();
                let known = known.filter_map(|(tag, count)| Some((Outcome::of(tag)?, count)));
                (socket, known.collect())
            })
            .collect()
    }

    fn add_marks(
        &self,
        row: &mut Snapshot,
        queue: &Queue,
        sums: &QueueSums,
        clock: Clock,
        folders: &mut Folders,
    ) {
        if queue.made_ns != 0 {
            row.listen_time = Some(rfc3339(clock.wall(queue.made_ns)));
        }
        if row.processes.as_ref().is_none_or(Vec::is_empty) && queue.pid != 0 {
            row.processes = Some(vec![maker(queue)]);
        }
        if row.cgroup.is_none()
            && queue.cgroup != 0
            && let Some(cgroup) = folders.cgroup(queue.cgroup)
        {
            cgroup.describe(row);
        }
        let limit = row.limit();
        let accept_queue = row.accept_queue.get_or_insert_default();
        accept_queue.asked = asked(queue, limit.unwrap_or(0));
        if let Some(asked) = accept_queue.asked {
            // What was asked for is known, so it need not be guessed from the limit.
            let names = row.processes.iter().flatten();
            let names = names.map(|process| process.comm.as_str());
            let default = runtime::asked_for(asked, names);
            let default = default.map(|default| default.name.to_owned());
            row.default_of = default.or_else(|| row.default_of.take());
            let either = LimitFrom::BacklogOrEarlierSomaxconn.name();
            if accept_queue.limit_from.as_deref() == Some(either) && limit == Some(asked as u32) {
                accept_queue.limit_from = Some(LimitFrom::Backlog.name().to_owned());
            }
        }
        let by_tracepoints = self.family == HookFamily::Tracepoint;
        if by_tracepoints && row.group.is_some() && sums.entered == 0 {
            // Where packets are not seen at delivery it is not known which socket of a group it was.
            return;
        }
        row.entered = Some(sums.entered);
        if sums.accept_high > 0 {
            accept_queue.high_water = Some(sums.accept_high);
            accept_queue.high_water_time = Some(rfc3339(clock.wall(sums.accept_high_ns)));
        }
        if let Some(syn) = &mut row.syn_queue
            && sums.syn_high > 0
        {
            syn.high_water = Some(sums.syn_high);
            syn.high_water_time = Some(rfc3339(clock.wall(sums.syn_high_ns)));
        }
        if by_tracepoints {
            return;
        }
        let since = match queue.full_since_ns {
            0 => 0,
            since => clock.mono_ns.saturating_sub(since),
        };
        accept_queue.full_us = Some(queue.full_ns.saturating_add(since) / 1000);
        accept_queue.full_times = Some(queue.full_times);
        let waited = Distribution::of(&sums.waited, sums.waited_max_ns / 1000);
        row.accept_latency_us = waited.map(Into::into);
        row.waits = Some(sums.waited);
        row.waited_sum_ns = Some(sums.waited_sum_ns);
        let handshakes = Distribution::of(&sums.handshakes, sums.handshake_max_us);
        row.handshake_us = handshakes.map(Into::into);
    }
}

/// The backlog that listen() was given. The kernel takes a negative one for a huge one, and
/// gives no more than was asked for: otherwise listen() was called again since.
fn asked(queue: &Queue, limit: u32) -> Option<i32> {
    (queue.asked != 0 && queue.asked as u32 >= limit).then_some(queue.asked)
}

/// The two clocks, at one moment.
#[derive(Debug, Clone, Copy)]
struct Clock {
    mono_ns: u64,
    wall_ns: i128,
}

impl Clock {
    fn now() -> Self {
        Self {
            mono_ns: monotonic_now(),
            wall_ns: wall_now(),
        }
    }

    /// The wall clock's time of a moment of the monotonic clock.
    fn wall(self, mono_ns: u64) -> i128 {
        self.wall_ns + i128::from(mono_ns) - i128::from(self.mono_ns)
    }
}

/// Connections leave in the order in which they entered, so those that wait are the newest.
/// If some of them entered before we attached, the age that the kernel tells stays.
fn add_oldest(row: &mut Snapshot, entered: &[u64], clock: Clock) {
    let Some(before) = row.depth().and_then(|depth| depth.checked_sub(1)) else {
        return;
    };
    if !row.is_closed()
        && let Some(at_ns) = entered.get(before as usize)
    {
        row.oldest_waiting_us = Some(clock.mono_ns.saturating_sub(*at_ns) / 1000);
    }
}

/// Who called listen().
fn maker(queue: &Queue) -> Process {
    Process {
        pid: queue.pid,
        comm: text(&queue.comm).unwrap_or_default(),
    }
}

/// What is left of a listener that was closed: how deep its queue is and what bounds it is
/// not known any more.
fn closed(inode: u64, queue: &Queue, clock: Clock) -> Snapshot {
    Snapshot {
        time: Some(rfc3339(clock.wall_ns)),
        netns: queue.netns,
        listener: Listener {
            addr: Some(std::net::Ipv6Addr::from(queue.addr).to_canonical()),
            port: queue.port,
            cookie: None,
            inode: Some(inode),
            device: None,
        },
        processes: Some(Vec::new()),
        accept_queue: Some(Gauge {
            depth: Some(queue.accept_depth),
            limit: Some(queue.accept_limit),
            ..Gauge::default()
        }),
        closed: Some(true),
        closed_time: Some(rfc3339(clock.wall(queue.closed_ns))),
        ..Snapshot::default()
    }
}

/// The listeners among those kept that were closed.
#[must_use]
pub fn closed_ones(queues: &HashMap<QueueKey, Queue>) -> HashSet<QueueKey> {
    let closed = queues.iter().filter(|(_, queue)| queue.closed_ns != 0);
    closed.map(|(key, _)| *key).collect()
}
