//! What is known of an incident: a recording or a live stream, digested line by line into
//! bounded memory. The rules and the report look at this and nothing else.

use std::{collections::BTreeMap, io, net::SocketAddr};

use queue_trace_common::outcome::{self, Kind, OUTCOMES, Outcome, Set, of_kind};

use crate::{
    model::{
        clients::{ClientTable, Clients},
        clock::NS_PER_SECOND,
        event::{Event, Sysctls, from_rfc3339, outcome_named},
        latency::Histogram,
        ledger::Ledger,
        lines::{Counts, Header, LossNote, Total},
        snapshot::{Latency, Snapshot},
        socket::Listener,
    },
    sink::Sink,
};

/// An incident.
#[derive(Debug, Default)]
pub struct Case {
    /// Who observed what, how: the first header.
    pub header: Option<Header>,
    /// The outcomes that were looked for and could be told; only of these does absence
    /// mean that they did not happen.
    pub told: Set,
    /// By listener.
    pub listeners: BTreeMap<Key, History>,
    /// Listeners that found no room here.
    pub crowded_out: u64,
    /// The last ledger of each namespace.
    pub ledgers: BTreeMap<u32, Ledger>,
    /// What was lost, by name.
    pub losses: BTreeMap<&'static str, u64>,
    /// The first and the last moment of which something is known.
    pub span: Option<(i128, i128)>,
    /// Seconds that a slot of the courses covers.
    pub width: i64,
    /// Events, counted by their lines.
    pub lines: u64,
    /// What is missing of the recording, a sentence each.
    pub notes: Vec<String>,
    /// Whether it came to its end.
    pub ended: bool,
    /// Where clients that were refused, or put off with a cookie, came from.
    clients: ClientTable,
}

/// What tells a listener from others in one recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The network namespace.
    pub netns: u32,
    /// The port.
    pub port: u16,
    /// The socket's inode number.
    pub inode: Option<u64>,
}

/// What befell one listener.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The listener, as far as it became known.
    pub listener: Listener,
    /// How often each outcome was, by tag: by the counts, the totals, the events and the
    /// snapshots, each of which may have seen only a part.
    counted: Sums,
    totalled: Sums,
    streamed: Sums,
    told: Sums,
    /// The course of time.
    pub slots: BTreeMap<i64, Slot>,
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
    /// What was last said of it.
    pub snapshot: Option<Snapshot>,
    /// The longest that a connection was seen to wait.
    pub oldest_waiting_us: Option<u64>,
}

/// A part of the time.
#[derive(Debug, Clone, Default)]
pub struct Slot {
    /// How often each outcome was, by tag.
    pub outcomes: BTreeMap<u8, u64>,
    /// Depth of the accept queue, at most.
    pub depth: Option<u32>,
    /// Depth of the SYN queue, at most.
    pub syn_depth: Option<u32>,
    /// How long the connections had waited whose accept() was told one by one.
    pub waits: Option<Box<Histogram>>,
    /// How long all connections had waited until then, as the latest snapshot has it.
    pub latency_us: Option<Latency>,
}

/// Counts by tag.
pub type Sums = BTreeMap<u8, u64>;

/// Listeners kept at most.
const MOST_LISTENERS: usize = 1024;
/// Slots of a course at most, before they are made wider.
const MOST_SLOTS: i64 = 900;

/// The outcomes of a set of tags.
#[must_use]
pub const fn set_of(tags: &[u8]) -> Set {
    let mut set = 0;
    let mut at = 0;
    while at < tags.len() {
        set |= 1 << tags[at];
        at += 1;
    }
    set
}

/// Refused because the accept queue was full.
pub const ACCEPT_FULL: Set = set_of(&[
    outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
    outcome::COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
]);
/// Refused, or put off with a cookie, because of the SYN queue.
pub const SYN_FULL: Set = set_of(&[
    outcome::COOKIE_SENT_FULL,
    outcome::SYN_DROPPED_SYN_QUEUE_FULL,
    outcome::SYN_DROPPED_LAST_QUARTER,
]);
/// Entered the accept queue.
pub const ENTERED: Set = set_of(&[
    outcome::ESTABLISHED_HANDSHAKE,
    outcome::ESTABLISHED_COOKIE,
    outcome::ESTABLISHED_FAST_OPEN,
]);

/// What JSON holds exactly, and no count reaches: sums stop there.
const MOST_COUNT: u64 = 1 << 53;

/// Adds to a sum, whatever a garbled recording says.
pub(super) fn add(sum: &mut u64, count: u64) {
    *sum = sum.saturating_add(count).min(MOST_COUNT);
}

/// Adds up those of a set.
fn sum(sums: &Sums, set: Set) -> u64 {
    let in_set = sums.iter().filter(|(tag, _)| set >> **tag & 1 == 1);
    in_set.fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

impl Slot {
    /// How often outcomes of the set were.
    #[must_use]
    pub fn count(&self, set: Set) -> u64 {
        sum(&self.outcomes, set)
    }

    fn add(&mut self, other: Self) {
        for (tag, count) in other.outcomes {
            add(self.outcomes.entry(tag).or_default(), count);
        }
        self.depth = self.depth.max(other.depth);
        self.syn_depth = self.syn_depth.max(other.syn_depth);
        self.latency_us = other.latency_us.or(self.latency_us);
        match (&mut self.waits, other.waits) {
            (Some(waits), Some(more)) => waits.merge(&more),
            (waits, more) => *waits = waits.take().or(more),
        }
    }
}

impl History {
    /// How often an outcome was.
    #[must_use]
    pub fn count_of(&self, tag: u8) -> u64 {
        let of = |sums: &Sums| sums.get(&tag).copied().unwrap_or(0);
        // Each of them can only have missed some.
        of(&self.counted)
            .max(of(&self.totalled))
            .max(of(&self.streamed))
            .max(of(&self.told))
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

    /// Whether anything befell it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.count(Set::MAX) > 0
    }

    /// `net.core.somaxconn` of its namespace, as it was last.
    #[must_use]
    pub fn somaxconn(&self) -> Option<u32> {
        let told = self
            .snapshot
            .as_ref()
            .and_then(|told| told.accept_queue.as_ref());
        told.and_then(|queue| queue.somaxconn)
            .or(self.sysctls.map(|sysctls| sysctls.somaxconn))
    }

    /// Its address and port, as they are written together.
    #[must_use]
    pub fn name(&self) -> String {
        match self.listener.addr {
            Some(addr) => SocketAddr::new(addr, self.listener.port).to_string(),
            None => format!("?:{}", self.listener.port),
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

    fn saw(&mut self, tag: u8, time: i128) {
        let (first, last) = self.times.entry(tag).or_insert((time, time));
        *first = time.min(*first);
        *last = time.max(*last);
    }

    fn learn(&mut self, listener: &Listener) {
        self.listener.port = listener.port;
        self.listener.addr = listener.addr.or(self.listener.addr);
        self.listener.inode = listener.inode.or(self.listener.inode);
        self.listener.cookie = listener.cookie.or(self.listener.cookie);
    }
}

impl Case {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            width: 1,
            ..Self::default()
        }
    }

    /// Whether all of these outcomes would have been seen.
    #[must_use]
    pub fn tells(&self, set: Set) -> bool {
        self.told & set == set
    }

    /// How often outcomes of the set were, at all listeners.
    #[must_use]
    pub fn count(&self, set: Set) -> u64 {
        let counts = self.listeners.values().map(|history| history.count(set));
        counts.fold(0, u64::saturating_add)
    }

    /// The networks of the clients that a listener refused, or put off with a cookie.
    #[must_use]
    pub fn clients_of(&self, key: &Key) -> Option<Clients> {
        self.clients.of(key.netns, key.port, key.inode)
    }

    /// How long it lasted, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.span.map_or(0.0, |(from, to)| (to - from) as f64 / 1e9)
    }

    /// Whether the recording counts once a second. If not, the events are all there is.
    fn has_counts(&self) -> bool {
        let header = self.header.as_ref();
        header.is_some_and(|header| header.attach.outcomes.is_some())
    }

    fn history(&mut self, netns: u32, listener: &Listener) -> Option<&mut History> {
        let key = Key {
            netns,
            port: listener.port,
            inode: listener.inode,
        };
        if self.listeners.len() >= MOST_LISTENERS && !self.listeners.contains_key(&key) {
            self.crowded_out += 1;
            return None;
        }
        let history = self.listeners.entry(key).or_default();
        history.learn(listener);
        Some(history)
    }

    /// The slot of a moment. Makes all slots wider if there would be too many.
    fn slot_of(&mut self, time: i128) -> i64 {
        let (from, to) = self.span.unwrap_or((time, time));
        let (from, to) = (from.min(time), to.max(time));
        self.span = Some((from, to));
        while (to - from) / NS_PER_SECOND / i128::from(self.width) > i128::from(MOST_SLOTS) {
            self.width *= 2;
            for history in self.listeners.values_mut() {
                let mut wider: BTreeMap<i64, Slot> = BTreeMap::new();
                for (at, slot) in std::mem::take(&mut history.slots) {
                    wider.entry(at.div_euclid(2)).or_default().add(slot);
                }
                history.slots = wider;
            }
        }
        let seconds = time.div_euclid(NS_PER_SECOND);
        i64::try_from(seconds.div_euclid(i128::from(self.width))).unwrap_or(0)
    }

    /// The beginning of a slot, seconds since 1970.
    #[must_use]
    pub fn begins(&self, slot: i64) -> i64 {
        slot.saturating_mul(self.width)
    }
}

impl Sink for Case {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        self.told |= match &header.attach.outcomes {
            Some(names) => names
                .iter()
                .filter_map(|name| outcome_named(name))
                .fold(0, |set, outcome| set | outcome.bit()),
            // An older recording does not say; what it shows by default was looked for.
            None => of_kind(Kind::Refusal),
        };
        if let Ok(time) = from_rfc3339(&header.time) {
            self.slot_of(time);
        }
        // A file that was begun by rotation has what went before in another.
        self.ended = false;
        if self.header.is_none() {
            self.header = Some(header.clone());
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.lines += 1;
        let slot = self.slot_of(event.wall_ns);
        let count_slots = !self.has_counts();
        if (ACCEPT_FULL | SYN_FULL) & event.outcome.bit() != 0 {
            self.clients.take(event);
        }
        let Some(history) = self.history(event.netns, &event.listener) else {
            return Ok(());
        };
        let tag = event.outcome.tag;
        add(history.streamed.entry(tag).or_default(), event.count);
        history.saw(tag, event.wall_ns);
        if event.sysctls.is_some() {
            history.sysctls = event.sysctls;
        }
        let depth = event.accept_queue.map(|queue| queue.depth);
        let syn_depth = event.syn_queue.map(|queue| queue.depth);
        history.limit = event
            .accept_queue
            .map(|queue| queue.limit)
            .or(history.limit);
        history.deepest = history.deepest.max(depth);
        history.deepest_syn = history.deepest_syn.max(syn_depth);
        let slot = history.slots.entry(slot).or_default();
        slot.depth = slot.depth.max(depth);
        slot.syn_depth = slot.syn_depth.max(syn_depth);
        if let Some(us) = event.waited_us {
            slot.waits.get_or_insert_default().add(us);
        }
        if count_slots {
            add(slot.outcomes.entry(tag).or_default(), event.count);
        }
        Ok(())
    }

    fn listener(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let time = snapshot
            .time
            .as_deref()
            .and_then(|time| from_rfc3339(time).ok());
        let slot = time.map(|time| self.slot_of(time));
        let Some(history) = self.history(snapshot.netns, &snapshot.listener) else {
            return Ok(());
        };
        let accept = snapshot.accept_queue.as_ref();
        history.limit = accept.and_then(|queue| queue.limit).or(history.limit);
        history.deepest = history
            .deepest
            .max(accept.and_then(|queue| queue.high_water.max(queue.depth)));
        history.oldest_waiting_us = history.oldest_waiting_us.max(snapshot.oldest_waiting_us);
        if let Some(slot) = slot {
            let slot = history.slots.entry(slot).or_default();
            slot.depth = slot.depth.max(accept.and_then(|queue| queue.depth));
            slot.latency_us = snapshot.accept_latency_us.or(slot.latency_us);
        }
        for (name, count) in snapshot.counts.iter().flatten() {
            if let Some(outcome) = outcome_named(name) {
                history.told.insert(outcome.tag, (*count).min(MOST_COUNT));
            }
        }
        history.snapshot = Some(snapshot.clone());
        Ok(())
    }

    fn counts(&mut self, counts: &Counts) -> io::Result<()> {
        // They come once a second, after what was held back in it.
        self.clients.end_second();
        let Ok(time) = from_rfc3339(&counts.time) else {
            return Ok(());
        };
        let slot = self.slot_of(time);
        let Some(history) = self.history(counts.netns, &counts.listener) else {
            return Ok(());
        };
        for (name, count) in &counts.outcomes {
            let Some(Outcome { tag, .. }) = outcome_named(name) else {
                continue;
            };
            add(history.counted.entry(*tag).or_default(), *count);
            // Without events of it, this is the time known.
            if !history.streamed.contains_key(tag) {
                history.saw(*tag, time);
            }
            let slot = history.slots.entry(slot).or_default();
            add(slot.outcomes.entry(*tag).or_default(), *count);
        }
        Ok(())
    }

    fn loss(&mut self, note: &LossNote) -> io::Result<()> {
        if let Ok(time) = from_rfc3339(&note.time) {
            self.slot_of(time);
        }
        for (name, count) in note.parts() {
            add(self.losses.entry(name).or_default(), count);
        }
        Ok(())
    }

    fn summary(&mut self, totals: &[Total]) -> io::Result<()> {
        for total in totals {
            if let Some(history) = self.history(total.netns, &total.listener) {
                add(
                    history.totalled.entry(total.outcome.tag).or_default(),
                    total.count,
                );
            }
        }
        Ok(())
    }

    fn clients(&mut self, _: &Clients) -> io::Result<()> {
        // It is about all events that were asked for, and missing if the end is; those that
        // matter here were taken in one by one.
        Ok(())
    }

    fn ledger(&mut self, ledger: &Ledger) -> io::Result<()> {
        if self.ledgers.len() < MOST_LISTENERS || self.ledgers.contains_key(&ledger.netns) {
            self.ledgers.insert(ledger.netns, ledger.clone());
        }
        Ok(())
    }

    fn end(&mut self, time: &str) -> io::Result<()> {
        if let Ok(time) = from_rfc3339(time) {
            self.slot_of(time);
        }
        self.ended = true;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
