//! What is known of one listener: its sums, its episodes, and its course over time for charts.

use std::{collections::BTreeMap, net::IpAddr};

use queue_trace_common::outcome::{
    Kind, OUTCOMES, SYN_DROPPED_LAST_QUARTER, SYN_DROPPED_OTHER, Set, of_kind,
};

use super::{
    detector::{Detector, Excess},
    episode::{OutcomeSums, add, sum},
};
use crate::model::{
    clock::NS_PER_SECOND,
    event::{AcceptQueue, Event, SynQueue, Sysctls},
    latency::Histogram,
    snapshot::{Latency, Snapshot},
    socket::Listener,
    stall::{Stall, cause::conclude},
    words::listener_words,
};

/// What happened at one listener.
#[derive(Debug, Clone)]
pub struct History {
    /// The listener, as far as it became known.
    pub listener: Listener,
    /// How often each outcome was, by events and counts; by the totals; by the snapshots. Each
    /// may have seen only a part.
    pub(super) excess: Excess,
    pub(super) totalled: OutcomeSums,
    pub(super) reported: OutcomeSums,
    /// The episodes.
    pub detector: Detector,
    /// The course of time.
    pub slots: BTreeMap<i64, TimeSlot>,
    /// First and last time of each outcome, by tag.
    pub times: BTreeMap<u8, (i128, i128)>,
    /// The settings, as they were last.
    pub sysctls: Option<Sysctls>,
    /// The limit of both queues, as it was last.
    pub limit: Option<u32>,
    /// The deepest that the accept queue was seen.
    pub deepest: Option<u32>,
    /// The deepest that the SYN queue was seen.
    pub deepest_syn: Option<u32>,
    /// What a snapshot said last, with the owner that was known before it closed.
    pub snapshot: Option<Snapshot>,
    /// When listen() was called, and when it was closed, where that was observed.
    pub listened: Option<i128>,
    /// See `listened`.
    pub closed: Option<i128>,
    /// The longest that a connection was seen to wait.
    pub oldest_waiting_us: Option<u64>,
    /// The most half-open requests at once whose SYN-ACK had been sent again.
    pub unanswered: Option<u32>,
    /// Why the application did not accept, in the order of time.
    pub stalls: Vec<Stalled>,
    /// SYNs dropped for a reason that is not told, when the rule of the last quarter of
    /// `tcp_max_syn_backlog` applied.
    pub in_last_quarter: u64,
    /// Where its packets were sent.
    sent_to: SentTo,
}

/// The addresses to which packets were sent.
#[derive(Debug, Default, Clone, Copy)]
enum SentTo {
    /// Not known.
    #[default]
    Nowhere,
    /// All of them to this one.
    One(IpAddr),
    Several,
}

impl SentTo {
    fn learn(&mut self, addr: IpAddr) {
        *self = match *self {
            Self::Nowhere => Self::One(addr),
            Self::One(one) if one == addr => return,
            _ => Self::Several,
        };
    }
}

/// A part of the time.
#[derive(Debug, Clone, Default)]
pub struct TimeSlot {
    /// How often each outcome was, by tag.
    pub outcomes: OutcomeSums,
    /// Depth of the accept queue, at most.
    pub depth: Option<u32>,
    /// Its limit, as it was last in it.
    pub limit: Option<u32>,
    /// Depth of the SYN queue, at most.
    pub syn_depth: Option<u32>,
    /// How long the connections had waited whose accept() was told one by one.
    pub waits: Option<Box<Histogram>>,
    /// How long all connections had waited until then, as the latest snapshot has it.
    pub latency_us: Option<Latency>,
    /// What kept the application from accepting.
    pub held: Option<Box<HeldUp>>,
}

/// What kept an application from accepting, in percent of the time between two looks; the most
/// where there were several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldUp {
    /// Its CPU quota stopped it, all CPUs together.
    pub throttled: Option<u64>,
    /// The thread of it that waited longest for a CPU did so.
    pub delay: Option<u64>,
    /// The thread of it that ran longest did so.
    pub run: Option<u64>,
    /// Something on the host waited for a CPU.
    pub cpu: Option<u64>,
    /// Something on the host waited for a disk.
    pub io: Option<u64>,
    /// Something in its cgroup, or else on the host, waited for memory.
    pub memory: Option<u64>,
}

impl HeldUp {
    /// Of a look that was not the first.
    pub(super) fn of(stall: &Stall) -> Option<Self> {
        let over = stall.over_us.filter(|over| *over > 0)?;
        let part = |us: Option<u64>| Some(us?.saturating_mul(100) / over);
        let (own, host) = (stall.pressure, stall.host_pressure);
        let memory = own.and_then(|own| own.memory_us);
        Some(Self {
            throttled: part(stall.cpu.as_ref().and_then(|cpu| cpu.throttled_us)),
            delay: part(stall.delay_us()),
            run: part(stall.doing.iter().filter_map(|one| one.run_us).max()),
            cpu: part(host.and_then(|host| host.cpu_us)),
            io: part(host.and_then(|host| host.io_us)),
            memory: part(memory.or(host.and_then(|host| host.memory_us))),
        })
    }

    pub(super) fn worst(self, other: Self) -> Self {
        Self {
            throttled: self.throttled.max(other.throttled),
            delay: self.delay.max(other.delay),
            run: self.run.max(other.run),
            cpu: self.cpu.max(other.cpu),
            io: self.io.max(other.io),
            memory: self.memory.max(other.memory),
        }
    }
}

/// A time in which looks found the same cause.
#[derive(Debug, Clone)]
pub struct Stalled {
    /// The first look, nanoseconds since 1970.
    pub from: i128,
    /// The last.
    pub to: i128,
    /// How many looks.
    pub looks: u64,
    /// The cause's name; `None`: none was seen.
    pub cause: Option<&'static str>,
    /// What the listener was like, with the evidence: of the look that says most.
    pub snapshot: Snapshot,
}

/// Times that are kept of a listener.
const MOST_STALLS: usize = 8;

/// Looks at a listener in trouble come once a second: after a longer pause it is another time.
const NEXT_LOOK_NS: i128 = 10 * NS_PER_SECOND;

impl TimeSlot {
    /// How often outcomes of the set were.
    #[must_use]
    pub fn count(&self, set: Set) -> u64 {
        sum(&self.outcomes, set)
    }

    pub(super) fn hold(&mut self, held: Option<HeldUp>) {
        if let Some(held) = held {
            let before = self.held.as_deref().copied().unwrap_or_default();
            self.held = Some(Box::new(before.worst(held)));
        }
    }

    /// Adds the slot after it.
    pub(super) fn add(&mut self, other: Self) {
        for (tag, count) in other.outcomes {
            add(self.outcomes.entry(tag).or_default(), count);
        }
        self.depth = self.depth.max(other.depth);
        self.limit = other.limit.or(self.limit);
        self.syn_depth = self.syn_depth.max(other.syn_depth);
        self.latency_us = other.latency_us.or(self.latency_us);
        self.hold(other.held.as_deref().copied());
        match (&mut self.waits, other.waits) {
            (Some(waits), Some(more)) => waits.merge(&more),
            (waits, more) => *waits = waits.take().or(more),
        }
    }
}

impl History {
    /// Of a listener, where outcomes of this set are told.
    #[must_use]
    pub fn new(told: Set) -> Self {
        Self {
            listener: Listener::default(),
            excess: Excess::default(),
            totalled: OutcomeSums::new(),
            reported: OutcomeSums::new(),
            detector: Detector::new(told),
            slots: BTreeMap::new(),
            times: BTreeMap::new(),
            sysctls: None,
            limit: None,
            deepest: None,
            deepest_syn: None,
            snapshot: None,
            listened: None,
            closed: None,
            oldest_waiting_us: None,
            unanswered: None,
            stalls: Vec::new(),
            in_last_quarter: 0,
            sent_to: SentTo::default(),
        }
    }

    /// How often an outcome was.
    #[must_use]
    pub fn count_of(&self, tag: u8) -> u64 {
        let of = |sums: &OutcomeSums| sums.get(&tag).copied().unwrap_or(0);
        // Each of them can only have missed some.
        (self.excess.counted(tag))
            .max(self.excess.streamed(tag))
            .max(of(&self.totalled))
            .max(of(&self.reported))
    }

    /// How often outcomes of the set were.
    #[must_use]
    pub fn count(&self, set: Set) -> u64 {
        let tags = OUTCOMES.iter().filter(|o| set & o.bit() != 0);
        tags.fold(0, |sum, o| sum.saturating_add(self.count_of(o.tag)))
    }

    /// Whether it refused anything, or its queue was full.
    #[must_use]
    pub fn is_in_trouble(&self) -> bool {
        let full =
            matches!((self.deepest, self.limit), (Some(deepest), Some(limit)) if deepest > limit);
        full || self.count(of_kind(Kind::Refusal)) > 0
    }

    /// How much trouble it was in, to be compared: how often it refused, whether it was in trouble
    /// at all, and when it refused last.
    pub(super) fn trouble(&self) -> (u64, bool, Option<i128>) {
        let refusals = of_kind(Kind::Refusal);
        let last = self.time_of(refusals).map(|(_, last)| last);
        (self.count(refusals), self.is_in_trouble(), last)
    }

    /// Whether anything happened at it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.count(Set::MAX) > 0
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.snapshot.as_ref().is_some_and(Snapshot::is_closed)
    }

    /// `net.core.somaxconn` of its namespace, as it was last.
    #[must_use]
    pub fn somaxconn(&self) -> Option<u32> {
        let snapshot = self.snapshot.as_ref();
        let queue = snapshot.and_then(|snapshot| snapshot.accept_queue.as_ref());
        queue
            .and_then(|queue| queue.somaxconn)
            .or(self.sysctls.map(|sysctls| sysctls.somaxconn))
    }

    /// Its address and port, as they are written together.
    #[must_use]
    pub fn name(&self) -> String {
        let snapshot = self.snapshot.as_ref();
        let device = snapshot.and_then(|snapshot| snapshot.device_name.as_deref());
        listener_words(&self.listener, device)
    }

    /// The address that its packets were sent to, if there is one that all were sent to.
    #[must_use]
    pub fn sent_to(&self) -> Option<IpAddr> {
        match self.sent_to {
            SentTo::One(addr) => Some(addr),
            SentTo::Nowhere | SentTo::Several => None,
        }
    }

    /// The first and last time of outcomes of the set.
    #[must_use]
    pub fn time_of(&self, set: Set) -> Option<(i128, i128)> {
        let times = self.times.iter().filter(|(tag, _)| set >> **tag & 1 == 1);
        times
            .map(|(_, times)| *times)
            .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }

    pub(super) fn saw(&mut self, tag: u8, time: i128) {
        let (first, last) = self.times.entry(tag).or_insert((time, time));
        *first = time.min(*first);
        *last = time.max(*last);
    }

    pub(super) fn learn(&mut self, listener: &Listener) {
        self.listener.port = listener.port;
        self.listener.addr = listener.addr.or(self.listener.addr);
        self.listener.inode = listener.inode.or(self.listener.inode);
        self.listener.device = listener.device.or(self.listener.device);
        self.listener.cookie = listener.cookie.or(self.listener.cookie);
    }

    /// What an event says of the queues and the settings.
    pub(super) fn learn_queues(&mut self, event: &Event) {
        if let Some(addr) = event.local {
            self.sent_to.learn(addr);
        }
        self.sysctls = event.sysctls.or(self.sysctls);
        let accept = event.accept_queue;
        self.limit = accept.map(|queue| queue.limit).or(self.limit);
        self.deepest = self.deepest.max(accept.map(|queue| queue.depth));
        if let Some(SynQueue { depth, young, .. }) = event.syn_queue {
            self.deepest_syn = self.deepest_syn.max(Some(depth));
            self.unanswered = self.unanswered.max(Some(depth.saturating_sub(young)));
        }
        if is_of_last_quarter(event) {
            add(&mut self.in_last_quarter, event.count);
        }
    }

    /// What a snapshot says.
    pub(super) fn learn_snapshot(&mut self, snapshot: &Snapshot, at: Option<i128>) {
        let mut snapshot = snapshot.clone();
        if snapshot.is_closed() {
            // Its queues are gone: what they were is not what they are.
            self.keep_owner(&mut snapshot);
            snapshot.accept_queue = self
                .snapshot
                .as_mut()
                .and_then(|before| before.accept_queue.take());
        }
        self.detector.closed(snapshot.is_closed());
        let accept = snapshot.accept_queue.as_ref();
        self.limit = accept.and_then(|queue| queue.limit).or(self.limit);
        let deepest = accept.and_then(|queue| queue.high_water.max(queue.depth));
        self.deepest = self.deepest.max(deepest);
        self.oldest_waiting_us = self.oldest_waiting_us.max(snapshot.oldest_waiting_us);
        let both = accept.and_then(|queue| Some((queue.depth?, queue.limit?)));
        if let (Some(at), Some((depth, limit)), false) = (at, both, snapshot.is_closed()) {
            self.detector.gauge(at, AcceptQueue { depth, limit });
        }
        if let Some(queue) = &snapshot.syn_queue
            && let (Some(depth), Some(young)) = (queue.depth, queue.young)
        {
            self.unanswered = self.unanswered.max(Some(depth.saturating_sub(young)));
        }
        if let (Some(at), true) = (
            at,
            snapshot.stall.is_some() || snapshot.descriptors_used_up().is_some(),
        ) {
            self.learn_stall(&snapshot, at);
        }
        self.snapshot = Some(snapshot);
    }

    fn learn_stall(&mut self, snapshot: &Snapshot, at: i128) {
        /// Owners that are named.
        const OWNERS: usize = 8;
        let cause = conclude(snapshot).map(|conclusion| conclusion.cause.name);
        let kept = || {
            let mut kept = snapshot.clone();
            (kept.counts, kept.drops, kept.threads) = (None, None, None);
            kept.processes
                .iter_mut()
                .for_each(|all| all.truncate(OWNERS));
            kept
        };
        // Of two looks, the one with the longer time behind it says more.
        let says = |snapshot: &Snapshot| snapshot.stall.as_ref().and_then(|stall| stall.over_us);
        let goes_on = |last: &&mut Stalled| last.cause == cause && at - last.to <= NEXT_LOOK_NS;
        if let Some(last) = self.stalls.last_mut().filter(goes_on) {
            last.to = at.max(last.to);
            last.looks += 1;
            if says(snapshot) >= says(&last.snapshot) {
                last.snapshot = kept();
            }
            return;
        }
        if self.stalls.len() == MOST_STALLS {
            // The one that was seen least says least.
            let least = (0..MOST_STALLS).min_by_key(|at| self.stalls[*at].looks);
            self.stalls.remove(least.unwrap_or(0));
        }
        self.stalls.push(Stalled {
            from: at,
            to: at,
            looks: 1,
            cause,
            snapshot: kept(),
        });
    }

    /// Whose it was is not forgotten with the socket.
    fn keep_owner(&self, closed: &mut Snapshot) {
        let Some(before) = &self.snapshot else {
            return;
        };
        let known = |snapshot: &Snapshot| {
            let processes = snapshot.processes.as_ref();
            processes.is_some_and(|processes| !processes.is_empty())
        };
        if !known(closed) {
            closed.processes.clone_from(&before.processes);
        }
        let keep = |now: &mut Option<String>, then: &Option<String>| {
            if now.is_none() {
                now.clone_from(then);
            }
        };
        keep(&mut closed.cgroup, &before.cgroup);
        keep(&mut closed.unit, &before.unit);
        keep(&mut closed.container, &before.container);
        keep(&mut closed.pod, &before.pod);
        keep(&mut closed.pod_name, &before.pod_name);
        keep(&mut closed.device_name, &before.device_name);
        keep(&mut closed.default_of, &before.default_of);
        closed.group = closed.group.or(before.group);
        if closed.threads.is_none() {
            closed.threads.clone_from(&before.threads);
        }
    }
}

/// Whether a SYN met the rule of the last quarter, as far as its event tells
/// (`tcp_conn_request`, net/ipv4/tcp_input.c): cookies are off, and less than a quarter of
/// `tcp_max_syn_backlog` is left.
fn is_of_last_quarter(event: &Event) -> bool {
    let (Some(sysctls), Some(queue)) = (event.sysctls, event.syn_queue) else {
        return false;
    };
    let most = sysctls.tcp_max_syn_backlog;
    matches!(
        event.outcome.tag,
        SYN_DROPPED_OTHER | SYN_DROPPED_LAST_QUARTER
    ) && sysctls.tcp_syncookies == 0
        && i64::from(most) - i64::from(queue.depth) < i64::from(most >> 2)
}
