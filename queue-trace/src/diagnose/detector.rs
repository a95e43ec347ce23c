//! Finds the episodes of a listener, packet by packet: live or in a recording, in bounded memory.
//! The worst episodes are kept whole, the others as sums.
//!
//! Moments must come from one clock that goes forward, as
//! [`Timeline`](super::timeline::Timeline) makes it.

use std::{collections::BTreeMap, net::IpAddr};

use queue_trace_common::outcome::{self, Outcome, Set};

use super::{
    distinct::{Distinct, Estimate},
    episode::{ENTERED, Episode, OutcomeSums, Pattern, Trouble, add, set_of},
};
use crate::model::{
    clock::NS_PER_SECOND,
    event::{AcceptQueue, Event, SynQueue, Sysctls, outcome_named},
    socket::{Client, Listener},
};

/// An episode is over after so many calm seconds.
pub const CALM_NS: i128 = 5 * NS_PER_SECOND;
/// The same while the accept queue was not seen to be at half of its limit again: clients try again
/// ever more rarely.
pub const CALM_WHILE_FULL_NS: i128 = 60 * NS_PER_SECOND;
/// A client that was refused may get in for so long after the end.
const SETTLING_NS: i128 = 130 * NS_PER_SECOND;
/// Episodes of a listener that are kept whole, of each kind.
const WHOLE: usize = 8;
/// Room for connections, for clients, and for the connections of a burst.
const CONNECTIONS: usize = 512;
const CLIENTS: usize = 512;
const BURST: usize = 256;

/// What happened to one packet, or to several that are told as a number.
#[derive(Debug, Clone, Copy)]
pub struct Observed {
    /// When; of a number: until when, within a second.
    pub at: i128,
    /// What.
    pub outcome: &'static Outcome,
    /// How often.
    pub count: u64,
    /// Whose packet.
    pub client: Option<Client>,
    /// The queues then, and the settings.
    pub accept_queue: Option<AcceptQueue>,
    /// The SYN queue then.
    pub syn_queue: Option<SynQueue>,
    /// The settings then.
    pub sysctls: Option<Sysctls>,
    /// Whether it is a packet told by itself, whose moment is exact.
    pub exact: bool,
}

impl Observed {
    /// What an event tells.
    #[must_use]
    pub fn event(event: &Event, at: i128) -> Self {
        Self {
            at,
            outcome: event.outcome,
            count: event.count,
            client: event.client,
            accept_queue: event.accept_queue,
            syn_queue: event.syn_queue,
            sysctls: event.sysctls,
            exact: !event.is_held_back(),
        }
    }

    /// So many of an outcome until this moment.
    #[must_use]
    pub fn number(outcome: &'static Outcome, count: u64, at: i128) -> Self {
        Self {
            at,
            outcome,
            count,
            client: None,
            accept_queue: None,
            syn_queue: None,
            sysctls: None,
            exact: false,
        }
    }
}

/// What became of the episodes of a listener.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// One began.
    Began(Box<Episode>),
    /// One is over.
    Ended(Box<Episode>),
}

/// The episodes of one listener.
#[derive(Debug, Clone)]
pub struct Detector {
    told: Set,
    open: [Option<Box<OpenEpisode>>; Trouble::COUNT],
    past: [PastEpisodes; Trouble::COUNT],
    /// Whether the listener was closed.
    closed: bool,
}

/// The episodes that are over.
#[derive(Debug, Clone, Default)]
struct PastEpisodes {
    /// The last one, and its connections, of which some may still get in.
    last: Option<(Episode, Distinct)>,
    /// The worst of the others.
    whole: Vec<Episode>,
    /// The rest.
    sums: BTreeMap<Pattern, Rest>,
}

/// Episodes that are known as sums alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rest {
    /// How many.
    pub times: u64,
    /// Packets refused in them.
    pub packets: u64,
    /// Seconds with such.
    pub seconds: u64,
    /// The first packet, and the last.
    pub span: Option<(i128, i128)>,
}

/// An episode that goes on.
#[derive(Debug, Clone)]
struct OpenEpisode {
    episode: Episode,
    connections: Distinct,
    clients: Distinct,
    burst: Distinct,
    /// When something was last seen to leave.
    still_since: i128,
    accepted: u64,
    entered: u64,
    /// The depth at the first packet and at the last that tells it.
    depths: Option<(u32, u32)>,
    /// Since when the queue is full, if it has not been drained since.
    run_since: Option<i128>,
    /// The second of the last packet refused, and how many there were in it.
    second: (i128, u64),
}

impl Detector {
    /// Where outcomes of this set are told.
    #[must_use]
    pub fn new(told: Set) -> Self {
        Self {
            told,
            open: [const { None }; Trouble::COUNT],
            past: [const { PastEpisodes::NONE }; Trouble::COUNT],
            closed: false,
        }
    }

    /// More is told from now on.
    pub fn tells(&mut self, told: Set) {
        self.told |= told;
    }

    /// Takes in what happened; gives the episodes that ended before it, or began with it.
    pub fn take(&mut self, seen: &Observed) -> Vec<Change> {
        let mut changes = self.tick(seen.at);
        for trouble in Trouble::ALL {
            let is_trouble = trouble.outcomes() & seen.outcome.bit() != 0;
            let place = trouble as usize;
            if is_trouble && self.open[place].is_none() {
                let began = OpenEpisode::new(trouble, seen.at);
                changes.push(Change::Began(Box::new(began.episode.clone())));
                self.open[place] = Some(Box::new(began));
            }
            if let Some(open) = &mut self.open[place] {
                open.take(seen, is_trouble, self.told);
            }
            if ENTERED & seen.outcome.bit() != 0
                && let Some((episode, connections)) = &mut self.past[place].last
                && let Some(client) = seen.client
            {
                connections.mark(&(client.addr, client.port));
                episode.served_later = connections.marked();
            }
        }
        changes
    }

    /// Takes in how the accept queue stands.
    pub fn gauge(&mut self, at: i128, queue: AcceptQueue) {
        for open in self.open.iter_mut().flatten() {
            open.depth(at, queue);
        }
    }

    /// Whether the listener is closed: its queue is not full any more, and refuses nobody.
    pub fn closed(&mut self, closed: bool) {
        self.closed = closed;
    }

    /// Time went on: gives the episodes that ended.
    pub fn tick(&mut self, now: i128) -> Vec<Change> {
        let mut changes = Vec::new();
        for trouble in Trouble::ALL {
            let place = trouble as usize;
            let over = |open: &&mut Option<Box<OpenEpisode>>| {
                let open = open.as_ref();
                open.is_some_and(|open| now - open.episode.end_ns > open.calm_ns(self.closed))
            };
            let slot = &mut self.open[place];
            if let Some(open) = Some(slot).filter(over).and_then(Option::take) {
                let (episode, connections) = open.over();
                changes.push(Change::Ended(Box::new(episode.clone())));
                self.past[place].push(episode, connections, self.told);
            }
            let past = &mut self.past[place];
            let settled = |(episode, _): &(Episode, _)| now - episode.end_ns > SETTLING_NS;
            if past.last.as_ref().is_some_and(settled) {
                past.settle(self.told);
            }
        }
        changes
    }

    /// Whether one goes on.
    #[must_use]
    pub fn is_in_trouble(&self) -> bool {
        self.open.iter().any(Option::is_some)
    }

    /// Whether there was none.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        let none = |past: &PastEpisodes| past.last.is_none() && past.whole.is_empty();
        !self.is_in_trouble() && self.past.iter().all(none)
    }

    /// The episodes that are known whole, in the order of time; one that goes on is as it stands.
    #[must_use]
    pub fn episodes(&self, trouble: Trouble) -> Vec<Episode> {
        let past = &self.past[trouble as usize];
        let mut all = past.whole.clone();
        all.extend(past.last.iter().map(|(episode, _)| episode.clone()));
        let open = self.open[trouble as usize].iter().map(|open| Episode {
            ongoing: !self.closed,
            ..open.so_far()
        });
        all.extend(open);
        all.sort_by_key(|episode| episode.begin_ns);
        all
    }

    /// The others, by pattern.
    #[must_use]
    pub fn rest(&self, trouble: Trouble) -> &BTreeMap<Pattern, Rest> {
        &self.past[trouble as usize].sums
    }
}

impl PastEpisodes {
    const NONE: Self = Self {
        last: None,
        whole: Vec::new(),
        sums: BTreeMap::new(),
    };

    fn push(&mut self, episode: Episode, connections: Distinct, told: Set) {
        self.settle(told);
        self.last = Some((episode, connections));
    }

    /// Nothing of the last one changes any more.
    fn settle(&mut self, told: Set) {
        let Some((episode, _)) = self.last.take() else {
            return;
        };
        self.whole.push(episode);
        if self.whole.len() <= WHOLE {
            return;
        }
        let mildest = self.whole.iter().enumerate();
        let mildest = mildest.min_by_key(|(_, episode)| episode.weight());
        let Some(at) = mildest.map(|(at, _)| at) else {
            return;
        };
        let episode = self.whole.remove(at);
        let rest = self.sums.entry(episode.pattern(told)).or_default();
        rest.times += 1;
        add(&mut rest.packets, episode.packets);
        add(&mut rest.seconds, episode.seconds);
        let (begin, end) = (episode.begin_ns, episode.end_ns);
        let (from, to) = rest.span.unwrap_or((begin, end));
        rest.span = Some((from.min(begin), to.max(end)));
    }
}

impl OpenEpisode {
    fn new(trouble: Trouble, at: i128) -> Self {
        Self {
            episode: Episode::new(trouble, at),
            connections: Distinct::new(CONNECTIONS),
            clients: Distinct::new(CLIENTS),
            burst: Distinct::new(BURST),
            still_since: at,
            accepted: 0,
            entered: 0,
            depths: None,
            run_since: None,
            second: (i128::MIN, 0),
        }
    }

    fn take(&mut self, seen: &Observed, is_trouble: bool, told: Set) {
        let bit = seen.outcome.bit();
        add(
            self.episode.outcomes.entry(seen.outcome.tag).or_default(),
            seen.count,
        );
        self.leaving(seen, told);
        if let Some(queue) = seen.syn_queue {
            self.episode.deepest_syn = self.episode.deepest_syn.max(Some(queue.depth));
        }
        if is_trouble {
            self.refused(seen);
        }
        if ENTERED & bit != 0 {
            add(&mut self.entered, seen.count);
            let part = self.episode.course.part(seen.at - self.episode.begin_ns);
            add(&mut part.entered, seen.count);
            if let Some(Client { addr, port }) = seen.client {
                self.connections.mark(&(addr, port));
            }
        }
        if let Some(queue) = seen.accept_queue {
            self.depth(seen.at, queue);
        }
        if let Some(SynQueue { depth, limit, .. }) = seen.syn_queue
            && self.episode.trouble == Trouble::SynQueueFull
        {
            self.drained(seen.at, depth, limit);
        }
    }

    /// What shows that connections left the accept queue: accept() where it is seen; else that
    /// one entered which had been full.
    fn leaving(&mut self, seen: &Observed, told: Set) {
        const ACCEPTED: Set = set_of(&[outcome::ACCEPTED]);
        let bit = seen.outcome.bit();
        if ACCEPTED & bit != 0 {
            add(&mut self.accepted, seen.count);
        }
        let shows = if told & ACCEPTED != 0 {
            ACCEPTED
        } else {
            ENTERED
        };
        // Of a number it is only known that it was within the second.
        let earliest = if seen.exact {
            seen.at
        } else {
            seen.at - NS_PER_SECOND
        };
        if shows & bit != 0 && seen.at > self.episode.begin_ns {
            // While there is room nothing has to leave. accept() shows until when none did. That one
            // entered does not: since the last that was refused, perhaps nobody came.
            if self.run_since.is_some() && shows == ACCEPTED {
                self.still_until(earliest);
            }
            self.still_since = self.still_since.max(seen.at);
            self.episode.last_left_ns = self.episode.last_left_ns.max(seen.at);
        }
    }

    fn still_until(&mut self, at: i128) {
        let still = at - self.still_since;
        if still > self.episode.longest_still_ns {
            self.episode.longest_still_ns = still;
            self.episode.still_since_ns = self.still_since;
        }
    }

    fn refused(&mut self, seen: &Observed) {
        let episode = &mut self.episode;
        add(&mut episode.packets, seen.count);
        episode.begin_ns = episode.begin_ns.min(seen.at);
        episode.end_ns = episode.end_ns.max(seen.at);
        let second = seen.at.div_euclid(NS_PER_SECOND);
        if self.second.0 == second {
            add(&mut self.second.1, seen.count);
        } else if self.second.0 < second {
            episode.seconds += 1;
            self.second = (second, seen.count);
        }
        episode.worst_second = episode.worst_second.max(self.second.1);
        let part = episode.course.part(seen.at - episode.begin_ns);
        add(&mut part.refused, seen.count);
        episode.sysctls = seen.sysctls.or(episode.sysctls);
        let depth = seen.accept_queue.map(|queue| queue.depth);
        episode.deepest_at_refusals = episode.deepest_at_refusals.max(depth);
        // Each queue's limit is the same number, the backlog in force.
        let limit = seen.accept_queue.map(|queue| queue.limit);
        if let Some(limit) = limit.or(seen.syn_queue.map(|queue| queue.limit)) {
            let (least, most) = episode.limit.unwrap_or((limit, limit));
            episode.limit = Some((least.min(limit), most.max(limit)));
        }
        if self.run_since.is_none() {
            // It had room until now, so nothing had to leave.
            self.still_since = self.still_since.max(seen.at);
        }
        let run_since = *self.run_since.get_or_insert(seen.at);
        episode.longest_run_ns = episode.longest_run_ns.max(seen.at - run_since);
        match seen.client {
            Some(Client { addr, port }) => {
                let connection: (IpAddr, u16) = (addr, port);
                self.connections.insert(&connection);
                self.clients.insert(&addr);
                self.burst.insert(&connection);
            }
            None => add(&mut episode.unnamed, seen.count),
        }
        if episode.trouble == Trouble::AcceptQueueFull {
            self.still_until(seen.at);
        }
    }

    /// How the accept queue stood.
    fn depth(&mut self, at: i128, queue: AcceptQueue) {
        let episode = &mut self.episode;
        episode.deepest = episode.deepest.max(Some(queue.depth));
        let part = episode.course.part(at - episode.begin_ns);
        part.depth = part.depth.max(Some(queue.depth));
        let first = self.depths.map_or(queue.depth, |(first, _)| first);
        self.depths = Some((first, queue.depth));
        if episode.trouble == Trouble::AcceptQueueFull {
            self.drained(at, queue.depth, queue.limit);
        }
    }

    /// Whether its queue has room again.
    fn drained(&mut self, at: i128, depth: u32, limit: u32) {
        // A limit that was raised meanwhile would make any queue look drained.
        let limit = self
            .episode
            .limit
            .map_or(limit, |(_, most)| most.min(limit));
        if depth <= limit / 2 && at > self.episode.end_ns && self.run_since.is_some() {
            self.run_since = None;
            self.episode.drained += 1;
            self.end_burst();
        }
    }

    fn end_burst(&mut self) {
        let burst = std::mem::replace(&mut self.burst, Distinct::new(BURST)).all();
        if burst.count > self.episode.deepest_burst.count {
            self.episode.deepest_burst = burst;
        }
    }

    /// How long it must be calm to be over.
    fn calm_ns(&self, closed: bool) -> i128 {
        let is_full = self.run_since.is_some() && !closed;
        match self.episode.trouble {
            Trouble::AcceptQueueFull if is_full => CALM_WHILE_FULL_NS,
            _ => CALM_NS,
        }
    }

    /// The episode as it stands, with the numbers that are kept aside.
    fn so_far(&self) -> Episode {
        let mut episode = self.episode.clone();
        episode.connections = self.connections.all();
        episode.served_later = self.connections.marked();
        episode.clients = self.clients.all();
        let burst: Estimate = self.burst.all();
        if burst.count > episode.deepest_burst.count {
            episode.deepest_burst = burst;
        }
        // What entered and is not there any more has left.
        let by_depth = self
            .depths
            .map(|(first, last)| (self.entered + u64::from(first)).saturating_sub(u64::from(last)));
        episode.left = match self.accepted {
            0 => by_depth,
            accepted => Some(accepted),
        };
        episode
    }

    fn over(self) -> (Episode, Distinct) {
        let mut episode = self.so_far();
        episode.ongoing = false;
        (episode, self.connections)
    }
}

/// What tells a listener from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The network namespace.
    pub netns: u32,
    /// The port.
    pub port: u16,
    /// The socket's inode number.
    pub inode: Option<u64>,
}

impl Key {
    /// Of a listener in a namespace.
    #[must_use]
    pub fn of(netns: u32, listener: &Listener) -> Self {
        Self {
            netns,
            port: listener.port,
            inode: listener.inode,
        }
    }
}

/// The numbers of a listener's outcomes come twice: as events, and once a second as counts. This
/// gives what only the counts tell.
#[derive(Debug, Clone, Default)]
pub struct Excess {
    streamed: OutcomeSums,
    counted: OutcomeSums,
    /// What was given and may still come as events.
    ahead: OutcomeSums,
}

impl Excess {
    /// An event: how many of it were not given yet.
    pub fn event(&mut self, tag: u8, count: u64) -> u64 {
        add(self.streamed.entry(tag).or_default(), count);
        let ahead = self.ahead.entry(tag).or_default();
        let known = count.min(*ahead);
        *ahead -= known;
        count - known
    }

    /// A count since the last one: how many of it no event told.
    pub fn counts(&mut self, tag: u8, count: u64) -> u64 {
        let counted = self.counted.entry(tag).or_default();
        add(counted, count);
        let ahead = self.ahead.entry(tag).or_default();
        let streamed = self.streamed.get(&tag).copied().unwrap_or(0);
        let excess = counted.saturating_sub(streamed.saturating_add(*ahead));
        add(ahead, excess);
        excess
    }

    /// A count that reaches back to before its events were followed: it is no excess.
    pub fn begin(&mut self, tag: u8) {
        let streamed = self.streamed(tag);
        self.counted.insert(tag, streamed);
    }

    /// What the events add up to.
    #[must_use]
    pub fn streamed(&self, tag: u8) -> u64 {
        self.streamed.get(&tag).copied().unwrap_or(0)
    }

    /// What the counts add up to.
    #[must_use]
    pub fn counted(&self, tag: u8) -> u64 {
        self.counted.get(&tag).copied().unwrap_or(0)
    }
}

/// The episodes of many listeners, live: what an agent follows. Only listeners that were in trouble
/// are kept, so many at most; those whose trouble is longest past make room.
#[derive(Debug)]
pub struct Episodes {
    told: Set,
    room: usize,
    listeners: BTreeMap<Key, Followed>,
}

#[derive(Debug)]
struct Followed {
    listener: Listener,
    detector: Detector,
    excess: Excess,
    /// Whether its counts were taken in since it is followed.
    counted: bool,
    last: i128,
}

impl Episodes {
    /// Where outcomes of this set are told; with room for so many listeners in trouble.
    #[must_use]
    pub fn new(told: Set, room: usize) -> Self {
        Self {
            told,
            room: room.max(1),
            listeners: BTreeMap::new(),
        }
    }

    /// Takes in an event.
    pub fn event(&mut self, event: &Event, at: i128) -> Vec<(Key, Change)> {
        let key = Key::of(event.netns, &event.listener);
        let Some(followed) = self.follow(key, event.listener, event.outcome, at) else {
            return Vec::new();
        };
        let count = followed.excess.event(event.outcome.tag, event.count);
        let seen = Observed {
            count,
            ..Observed::event(event, at)
        };
        let changes = followed.detector.take(&seen);
        changes.into_iter().map(|change| (key, change)).collect()
    }

    /// Takes in a `counts` line: its outcomes by name.
    pub fn counts(
        &mut self,
        netns: u32,
        listener: &Listener,
        outcomes: &BTreeMap<String, u64>,
        at: i128,
    ) -> Vec<(Key, Change)> {
        let key = Key::of(netns, listener);
        let mut changes = Vec::new();
        let known = outcomes.iter();
        let mut known: Vec<_> = known
            .filter_map(|(name, count)| Some((outcome_named(name)?, *count)))
            .collect();
        // What is in trouble goes first: it makes the listener one that is followed.
        known.sort_by_key(|(outcome, _)| !is_trouble(outcome));
        for (outcome, count) in known {
            let Some(followed) = self.follow(key, *listener, outcome, at) else {
                continue;
            };
            if !followed.counted && !is_trouble(outcome) {
                followed.excess.begin(outcome.tag);
                continue;
            }
            let excess = followed.excess.counts(outcome.tag, count);
            if excess > 0 {
                let seen = Observed::number(outcome, excess, at);
                changes.extend(followed.detector.take(&seen));
            }
        }
        if let Some(followed) = self.listeners.get_mut(&key) {
            followed.counted = true;
        }
        changes.into_iter().map(|change| (key, change)).collect()
    }

    /// Takes in how the accept queue of a listener stands, if it is followed.
    pub fn gauge(&mut self, key: &Key, queue: AcceptQueue, at: i128) {
        if let Some(followed) = self.listeners.get_mut(key) {
            followed.detector.gauge(at, queue);
        }
    }

    /// Time went on: once a second.
    pub fn tick(&mut self, now: i128) -> Vec<(Key, Change)> {
        let mut changes = Vec::new();
        for (key, followed) in &mut self.listeners {
            let ended = followed.detector.tick(now);
            changes.extend(ended.into_iter().map(|change| (*key, change)));
        }
        changes
    }

    /// What is known of a listener that was in trouble.
    #[must_use]
    pub fn of(&self, key: &Key) -> Option<(&Listener, &Detector)> {
        let followed = self.listeners.get(key)?;
        Some((&followed.listener, &followed.detector))
    }

    fn follow(
        &mut self,
        key: Key,
        listener: Listener,
        outcome: &Outcome,
        at: i128,
    ) -> Option<&mut Followed> {
        let known = self.listeners.contains_key(&key);
        if !known && !is_trouble(outcome) {
            return None;
        }
        if !known && self.listeners.len() >= self.room {
            let idle = self.listeners.iter();
            let idle = idle.filter(|(_, followed)| !followed.detector.is_in_trouble());
            let oldest = idle.min_by_key(|(_, followed)| followed.last);
            let oldest = oldest.map(|(key, _)| *key)?;
            self.listeners.remove(&oldest);
        }
        let told = self.told;
        let followed = self.listeners.entry(key).or_insert_with(|| Followed {
            listener,
            detector: Detector::new(told),
            excess: Excess::default(),
            counted: false,
            last: at,
        });
        followed.last = followed.last.max(at);
        Some(followed)
    }
}

/// Whether it is of an episode.
fn is_trouble(outcome: &Outcome) -> bool {
    Trouble::ALL
        .iter()
        .any(|trouble| trouble.outcomes() & outcome.bit() != 0)
}

#[cfg(test)]
mod tests;
