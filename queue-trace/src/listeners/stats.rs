//! Adds to the listeners that were looked at what the kernel side kept of them since it
//! was attached. Pure arithmetic.

use std::collections::{BTreeMap, HashMap, HashSet};

use queue_trace_common::{
    outcome::Outcome,
    queue::{Marks, Queue, QueueKey},
    settings::{CountKey, Counted},
};

use crate::{
    kernel::{decode::text, plan::Family, probe::Kept},
    listeners::{AcceptGauge, Cgroup, LimitFrom, Row, group, look},
    model::{
        clock::{monotonic_now, wall_now},
        event::Name,
        latency::Distribution,
        runtime,
        snapshot::drops,
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
    pub family: Family,
}

impl Stats<'_> {
    /// Adds to each listener what was kept of it, and the listeners that were closed.
    pub fn add_to(&self, rows: &mut Vec<Row>) {
        let clock = Clock::now();
        for (key, (queue, _)) in &self.kept.listeners {
            if queue.closed_ns != 0 {
                // It may have been closed since it was looked at.
                rows.retain(|row| row.listener.inode != Some(key.inode));
                rows.push(closed(key, queue));
            }
        }
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
                && let Some((queue, marks)) = self.kept.listeners.get(*key)
            {
                self.add_marks(row, queue, marks, clock);
            }
            let waiting = keys.get(&inode).and_then(|key| self.kept.waiting.get(*key));
            if let Some(waiting) = waiting {
                add_oldest(row, waiting, clock);
            }
        }
        group::find(rows);
        look::sort(rows);
    }

    /// How often each outcome befell each socket, by namespace and inode number.
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

    fn add_marks(&self, row: &mut Row, queue: &Queue, marks: &Marks, clock: Clock) {
        if row.processes.is_empty() && queue.pid != 0 {
            row.processes = vec![maker(queue)];
        }
        if row.cgroup.path.is_none() && queue.cgroup != 0 {
            row.cgroup = Cgroup::of_number(queue.cgroup).unwrap_or_default();
        }
        row.accept_queue.asked = asked(queue, row.accept_queue.limit);
        if let Some(asked) = row.accept_queue.asked {
            // What was asked for is known, so it need not be guessed from the limit.
            let names = row.processes.iter().map(|process| process.comm.as_str());
            let default = runtime::asked_for(asked, names);
            row.default_of = default.map(|default| default.name).or(row.default_of);
            row.accept_queue.limit_from = limit_from(&row.accept_queue, asked);
        }
        let by_tracepoints = self.family == Family::Tracepoint;
        if by_tracepoints && row.group.is_some() && marks.entered == 0 {
            // Where packets are not seen at delivery it is not known which socket of a group it was.
            return;
        }
        row.entered = Some(marks.entered);
        if marks.accept_high > 0 {
            row.accept_queue.high_water = Some(marks.accept_high);
            row.accept_queue.high_water_time = Some(clock.wall(marks.accept_high_ns));
        }
        if let Some(syn) = &mut row.syn_queue
            && marks.syn_high > 0
        {
            syn.high_water = Some(marks.syn_high);
            syn.high_water_time = Some(clock.wall(marks.syn_high_ns));
        }
        if by_tracepoints {
            return;
        }
        let since = match queue.full_since_ns {
            0 => 0,
            since => clock.mono_ns.saturating_sub(since),
        };
        row.accept_queue.full_us = Some((queue.full_ns + since) / 1000);
        row.accept_queue.full_times = Some(queue.full_times);
        row.accept_latency_us = Distribution::of(&marks.waited, marks.waited_max_ns / 1000);
        row.waits = Some(marks.waited);
        row.handshake_us = Distribution::of(&marks.handshakes, marks.handshake_max_us);
    }
}

/// The backlog that listen() was given. The kernel takes a negative one for a huge one, and
/// gives no more than was asked for: otherwise listen() was called again since.
fn asked(queue: &Queue, limit: u32) -> Option<i32> {
    (queue.asked != 0 && queue.asked as u32 >= limit).then_some(queue.asked)
}

/// What set the limit, where it is known what was asked for.
fn limit_from(queue: &AcceptGauge, asked: i32) -> Option<LimitFrom> {
    match queue.limit_from {
        Some(LimitFrom::BacklogOrEarlierSomaxconn) if asked as u32 == queue.limit => {
            Some(LimitFrom::Backlog)
        }
        from => from,
    }
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
fn add_oldest(row: &mut Row, entered: &[u64], clock: Clock) {
    let depth = row.accept_queue.depth as usize;
    if row.closed || depth == 0 {
        return;
    }
    if let Some(at_ns) = entered.get(depth - 1) {
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

/// What is left of a listener that was closed.
fn closed(key: &QueueKey, queue: &Queue) -> Row {
    Row {
        time: wall_now(),
        netns: queue.netns,
        listener: Listener {
            addr: Some(std::net::Ipv6Addr::from(queue.addr).to_canonical()),
            port: queue.port,
            cookie: None,
            inode: Some(key.inode),
            device: None,
        },
        processes: Vec::new(),
        cgroup: Cgroup::default(),
        group: None,
        accept_queue: AcceptGauge {
            depth: queue.accept_depth,
            limit: queue.accept_limit,
            ..AcceptGauge::default()
        },
        syn_queue: None,
        drops: None,
        counts: None,
        accept_latency_us: None,
        handshake_us: None,
        oldest_waiting_us: None,
        default_of: None,
        threads: None,
        descriptors: None,
        entered: None,
        waits: None,
        waited_sum_ns: None,
        place: None,
        device: 0,
        closed: true,
    }
}

/// The listeners among those kept that were closed.
#[must_use]
pub fn closed_ones(queues: &HashMap<QueueKey, Queue>) -> HashSet<QueueKey> {
    let closed = queues.iter().filter(|(_, queue)| queue.closed_ns != 0);
    closed.map(|(key, _)| *key).collect()
}
