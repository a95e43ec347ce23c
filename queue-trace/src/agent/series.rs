//! Which series there are, and what they count: sockets come and go, a series is what has the
//! same labels. The number of series is bounded whatever happens on the machine.
//!
//! A listener has a series of its own once it is older than half a minute or has refused
//! something, and while there are places. What the others count goes to the series
//! `overflow`, so that sums stay exact. A count goes to the series that the socket is in at
//! that time, and no series ever goes down.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use queue_trace_common::{
    outcome::{Kind, Outcome},
    queue::BUCKETS,
};

use super::{
    exposition::{Exposition, Value, Whose},
    labels::{Allowed, EPHEMERAL, Ephemeral, Owner, labels_of, overflow},
    registry::{
        BOUNDS, CONNECTIONS, FILLS, FINDING, FROM_ZERO, FULL, FULL_SOCKETS, LIMIT, LISTENER_INFO,
        LISTENERS, OLDEST, OUTCOMES, PEAK, SOCKETS, SYN_REQUESTS, WAIT,
    },
};
use crate::{
    listeners::pods::PodNames,
    model::{snapshot::Snapshot, socket::Listener},
};

/// How series are made.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The words of owners that are labels.
    pub allowed: Allowed,
    /// The ports that are one label.
    pub ephemeral: Ephemeral,
    /// Series of listeners, at most.
    pub listeners: usize,
}

/// How long a listener is young.
const YOUNG: Duration = Duration::from_secs(30);
/// How long a series stays when its last listener is gone.
const STAYS: Duration = Duration::from_secs(300);
/// Half of the time of which the deepest queue is told.
const HALF: Duration = Duration::from_secs(30);

/// What tells a socket from others.
pub type SeriesKey = (u32, u16, Option<u64>);

/// The key of a listener.
#[must_use]
pub fn key_of(netns: u32, listener: &Listener) -> SeriesKey {
    (netns, listener.port, listener.inode)
}

#[derive(Debug, Clone)]
struct Socket {
    whose: Arc<Whose>,
    /// Whether it counts for the series of its labels, or for the overflow.
    placed: bool,
    /// Whether it found no place.
    crowded: bool,
    /// Whether its labels are those of earlier limits, until the next look.
    outdated: bool,
    since: Duration,
    older: bool,
    refused: bool,
    ephemeral: bool,
    /// In which look it was there last.
    look: u64,
    depth: Option<u32>,
    limit: Option<u32>,
    syn: Option<u32>,
    oldest_us: Option<u64>,
    limit_from: Option<String>,
    default_of: Option<String>,
    /// The deepest in this half of the time, and in the one before.
    deepest: [u32; 2],
    high_water: Option<u32>,
    kept: KeptSeries,
}

/// What the kernel side had counted of a socket.
#[derive(Debug, Clone, Copy, Default)]
struct KeptSeries {
    full_us: u64,
    fills: u64,
    waits: [u64; BUCKETS],
    waited_sum_ns: u64,
}

impl Socket {
    /// The deepest of the last minute.
    fn peak(&self) -> u32 {
        self.deepest[0].max(self.deepest[1])
    }

    fn is_full(&self) -> bool {
        matches!((self.depth, self.limit), (Some(depth), Some(limit)) if depth > limit)
    }
}

#[derive(Debug, Clone, Default)]
struct Series {
    whose: Arc<Whose>,
    outcomes: BTreeMap<u8, u64>,
    full_us: Option<u64>,
    fills: Option<u64>,
    waits: Option<[u64; BUCKETS]>,
    waited_sum_ns: u64,
    findings: BTreeMap<&'static str, bool>,
    /// Since when no socket is in it.
    vacant: Option<Duration>,
}

impl Series {
    fn new(whose: Arc<Whose>) -> Self {
        Self {
            whose,
            outcomes: FROM_ZERO.map(|tag| (tag, 0)).into(),
            ..Self::default()
        }
    }

    fn add(&mut self, before: &KeptSeries, now: &KeptSeries, told: Readings) {
        if told.full {
            *self.full_us.get_or_insert(0) += now.full_us.saturating_sub(before.full_us);
            *self.fills.get_or_insert(0) += now.fills.saturating_sub(before.fills);
        }
        if told.waits {
            let waits = self.waits.get_or_insert([0; BUCKETS]);
            for (sum, (now, before)) in waits.iter_mut().zip(now.waits.iter().zip(before.waits)) {
                *sum += now.saturating_sub(before);
            }
            self.waited_sum_ns += now.waited_sum_ns.saturating_sub(before.waited_sum_ns);
        }
    }
}

/// What a snapshot said at all.
#[derive(Debug, Clone, Copy, Default)]
struct Readings {
    full: bool,
    waits: bool,
}

/// Counts of a listener that was not looked at yet.
#[derive(Debug, Clone)]
struct PendingOutcomes {
    since: Duration,
    outcomes: BTreeMap<u8, u64>,
}

/// How long counts wait for a look at their listener.
const WAITS_FOR_LOOK: Duration = Duration::from_secs(3);

/// All series of listeners.
#[derive(Debug)]
pub struct Fleet {
    limits: Limits,
    pods: PodNames,
    sockets: HashMap<SeriesKey, Socket>,
    series: BTreeMap<Arc<Whose>, Series>,
    overflow: Series,
    pending: HashMap<SeriesKey, PendingOutcomes>,
    look: u64,
    /// Whether the listeners that come now were there before.
    attaching: bool,
    half: Duration,
    /// Whether sockets or series changed since they were settled.
    changed: bool,
    /// When the next young listener will be old.
    ages: Option<Duration>,
    host: BTreeMap<u8, u64>,
}

impl PartialOrd for Whose {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Whose {
    /// By the labels alone: whoever has the same labels is the same series.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.words.cmp(&other.words)
    }
}

impl Fleet {
    /// No listener is known yet.
    #[must_use]
    pub fn new(limits: Limits, pods: PodNames) -> Self {
        let whose = Whose {
            words: overflow(),
            ..Whose::default()
        };
        Self {
            limits,
            pods,
            sockets: HashMap::new(),
            series: BTreeMap::new(),
            overflow: Series::new(Arc::new(whose)),
            pending: HashMap::new(),
            look: 0,
            attaching: true,
            half: Duration::ZERO,
            changed: true,
            ages: None,
            host: FROM_ZERO.map(|tag| (tag, 0)).into(),
        }
    }

    /// Other limits from now on: every listener finds its place again.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
        self.changed = true;
        for socket in self.sockets.values_mut() {
            socket.placed = false;
            socket.outdated = true;
        }
        self.series.clear();
    }

    /// Listeners that come from now on are new.
    pub fn attached(&mut self) {
        self.attaching = false;
    }

    /// The namespaces of counts whose listeners were not looked at.
    pub fn unknown(&self) -> impl Iterator<Item = u32> {
        self.pending.keys().map(|(netns, ..)| *netns)
    }

    /// All listeners that there are, at a moment: `within` some namespaces, or anywhere.
    pub fn look(&mut self, listeners: &[Snapshot], within: Option<&BTreeSet<u32>>, now: Duration) {
        self.look += 1;
        for one in listeners {
            self.update(one, now);
        }
        let look = self.look;
        let elsewhere = |netns: u32| within.is_some_and(|within| !within.contains(&netns));
        self.sockets
            .retain(|(netns, ..), socket| socket.look == look || elsewhere(*netns));
        self.settle(now);
    }

    /// One listener, made or closed or just looked at.
    pub fn one(&mut self, one: &Snapshot, now: Duration) {
        self.update(one, now);
        self.place(now);
    }

    fn update(&mut self, one: &Snapshot, now: Duration) {
        self.changed = true;
        let snapshot = one;
        let key = key_of(snapshot.netns, &snapshot.listener);
        let owner = Owner::of(snapshot, &mut self.pods);
        let look = self.look;
        if snapshot.is_closed() {
            if let Some(mut socket) = self.sockets.remove(&key) {
                self.count_kept(&mut socket, one);
            }
            return;
        }
        let words = labels_of(
            snapshot,
            &owner,
            &self.limits.allowed,
            &self.limits.ephemeral,
        );
        let whose = Whose { words, owner };
        let mut socket = match self.sockets.remove(&key) {
            Some(mut socket) => {
                let unknown =
                    whose.owner == Owner::default() && socket.whose.owner != Owner::default();
                // The kernel side tells of a listener before its owner is known.
                if *socket.whose != whose && !unknown {
                    socket.whose = Arc::new(whose);
                    socket.placed = false;
                }
                socket
            }
            None => Socket {
                ephemeral: self.limits.ephemeral.has(snapshot.listener.port),
                whose: Arc::new(whose),
                placed: false,
                crowded: false,
                outdated: false,
                since: now,
                older: self.attaching,
                refused: false,
                look,
                depth: None,
                limit: None,
                syn: None,
                oldest_us: None,
                limit_from: None,
                default_of: None,
                deepest: [0; 2],
                high_water: None,
                kept: KeptSeries::default(),
            },
        };
        socket.look = look;
        socket.outdated = false;
        socket.oldest_us = snapshot.oldest_waiting_us;
        socket.default_of.clone_from(&snapshot.default_of);
        socket.syn = snapshot.syn_queue.as_ref().and_then(|queue| queue.depth);
        if let Some(queue) = &snapshot.accept_queue {
            socket.depth = queue.depth;
            socket.limit = queue.limit;
            socket.limit_from.clone_from(&queue.limit_from);
            let mut deepest = queue.depth.unwrap_or(0);
            // A mark that is higher than at the last look was set since.
            if queue.high_water > socket.high_water
                && (socket.high_water.is_some() || !socket.older)
            {
                deepest = deepest.max(queue.high_water.unwrap_or(0));
            }
            socket.high_water = queue.high_water.or(Some(0));
            socket.deepest[0] = socket.deepest[0].max(deepest);
        }
        self.count_kept(&mut socket, one);
        if let Some(pending) = self.pending.remove(&key) {
            socket.refused |= pending.outcomes.keys().any(|tag| is_refusal(*tag));
            self.sockets.insert(key, socket);
            self.place(now);
            self.add(key, pending.outcomes);
        } else {
            self.sockets.insert(key, socket);
        }
    }

    /// Adds what the kernel side counted of a socket since the last time.
    fn count_kept(&mut self, socket: &mut Socket, one: &Snapshot) {
        let queue = one.accept_queue.as_ref();
        let mut now = socket.kept;
        let told = Readings {
            full: queue.is_some_and(|queue| queue.full_us.is_some()),
            waits: one.waits.is_some() && one.waited_sum_ns.is_some(),
        };
        if let Some(queue) = queue {
            now.full_us = queue.full_us.unwrap_or(now.full_us);
            now.fills = queue.full_times.unwrap_or(now.fills);
        }
        now.waits = one.waits.unwrap_or(now.waits);
        now.waited_sum_ns = one.waited_sum_ns.unwrap_or(now.waited_sum_ns);
        let series = match self.series.get_mut(&socket.whose) {
            Some(series) if socket.placed => series,
            _ => &mut self.overflow,
        };
        series.add(&socket.kept, &now, told);
        socket.kept = now;
    }

    /// What happened at a listener since the last time.
    pub fn counts(
        &mut self,
        netns: u32,
        listener: &Listener,
        outcomes: &BTreeMap<u8, u64>,
        now: Duration,
    ) {
        for (tag, count) in outcomes {
            *self.host.entry(*tag).or_default() += count;
        }
        let mut key = key_of(netns, listener);
        if !self.sockets.contains_key(&key) && key.2.is_none() {
            // By tracepoints the socket of a group is not told, and its labels are the group's.
            key = self.only_one(netns, listener.port).unwrap_or(key);
        }
        if let Some(socket) = self.sockets.get_mut(&key) {
            let refused = outcomes.keys().any(|tag| is_refusal(*tag));
            if refused && !socket.refused {
                socket.refused = true;
                self.place(now);
            }
            self.add(key, outcomes.clone());
        } else {
            let pending = self.pending.entry(key).or_insert(PendingOutcomes {
                since: now,
                outcomes: BTreeMap::new(),
            });
            for (tag, count) in outcomes {
                *pending.outcomes.entry(*tag).or_default() += count;
            }
        }
    }

    /// The depth of a listener's accept queue at an event.
    pub fn depth(&mut self, netns: u32, listener: &Listener, depth: u32) {
        if let Some(socket) = self.sockets.get_mut(&key_of(netns, listener)) {
            socket.deepest[0] = socket.deepest[0].max(depth);
        }
    }

    /// The socket on a port, if all sockets on it have the same labels.
    fn only_one(&self, netns: u32, port: u16) -> Option<SeriesKey> {
        let mut found = self
            .sockets
            .iter()
            .filter(|(key, _)| key.0 == netns && key.1 == port);
        let (key, first) = found.next()?;
        found
            .all(|(_, other)| other.whose == first.whose)
            .then_some(*key)
    }

    fn add(&mut self, key: SeriesKey, outcomes: BTreeMap<u8, u64>) {
        let socket = self.sockets.get(&key).filter(|socket| socket.placed);
        let series = socket.and_then(|socket| self.series.get_mut(&socket.whose));
        let series = series.unwrap_or(&mut self.overflow);
        for (tag, count) in outcomes {
            *series.outcomes.entry(tag).or_default() += count;
        }
    }

    /// Once a second: counts without a listener, places, series that are vacant.
    pub fn settle(&mut self, now: Duration) {
        let late: Vec<_> = self
            .pending
            .iter()
            .filter(|(_, pending)| now.saturating_sub(pending.since) > WAITS_FOR_LOOK)
            .map(|(key, _)| *key)
            .collect();
        for key in late {
            if let Some(pending) = self.pending.remove(&key) {
                self.add(key, pending.outcomes);
            }
        }
        if now.saturating_sub(self.half) >= HALF {
            self.half = now;
            for socket in self.sockets.values_mut() {
                socket.deepest = [socket.depth.unwrap_or(0), socket.deepest[0]];
            }
        }
        // Sorting out a thousand listeners each second is most of what a calm second would cost.
        if std::mem::take(&mut self.changed) || self.ages.is_some_and(|at| now >= at) {
            self.place(now);
            self.find_vacant(now);
            let young = self
                .sockets
                .values()
                .filter(|socket| !socket.placed && !socket.older)
                .map(|socket| socket.since + YOUNG);
            self.ages = young.filter(|at| *at > now).min();
        }
        let before = self.series.len();
        self.series.retain(|_, series| {
            series
                .vacant
                .is_none_or(|since| now.saturating_sub(since) < STAYS)
        });
        self.changed = self.series.len() < before;
    }

    fn find_vacant(&mut self, now: Duration) {
        let taken: BTreeSet<_> = self
            .sockets
            .values()
            .filter(|socket| socket.placed)
            .map(|socket| Arc::clone(&socket.whose))
            .collect();
        for (whose, series) in &mut self.series {
            series.vacant = match series.vacant {
                _ if taken.contains(whose) => None,
                None => Some(now),
                since => since,
            };
        }
    }

    /// Gives places: to those that refused something first, then to the oldest.
    fn place(&mut self, now: Duration) {
        let limits = &self.limits;
        let mut waiting: Vec<_> = self
            .sockets
            .iter()
            .filter(|(_, socket)| {
                let old = socket.older || now.saturating_sub(socket.since) >= YOUNG;
                !socket.placed
                    && !socket.outdated
                    && (old || socket.refused || self.series.contains_key(&socket.whose))
            })
            .map(|(key, socket)| (!socket.refused, socket.since, *key))
            .collect();
        waiting.sort_unstable();
        for (_, _, key) in waiting {
            let Some(socket) = self.sockets.get_mut(&key) else {
                continue;
            };
            if let Some(series) = self.series.get_mut(&socket.whose) {
                series.whose = Arc::clone(&socket.whose);
            } else if self.series.len() < limits.listeners {
                let whose = Arc::clone(&socket.whose);
                self.series.insert(Arc::clone(&whose), Series::new(whose));
            } else {
                socket.crowded = true;
                continue;
            }
            socket.placed = true;
            socket.crowded = false;
        }
    }

    /// What the diagnosis finds now: the rules by listener.
    pub fn findings(&mut self, found: &[(SeriesKey, &'static str)]) {
        for series in self.series.values_mut() {
            series.findings.values_mut().for_each(|on| *on = false);
        }
        for (key, rule) in found {
            let socket = self.sockets.get(key);
            if let Some(series) = socket.and_then(|socket| self.series.get_mut(&socket.whose)) {
                series.findings.insert(rule, true);
            }
        }
    }

    /// What all listeners count together, by tag.
    #[must_use]
    pub fn host(&self) -> &BTreeMap<u8, u64> {
        &self.host
    }

    /// The words of a listener's owner, for a line of text.
    #[must_use]
    pub fn owner(&self, key: &SeriesKey) -> Option<&Owner> {
        self.sockets.get(key).map(|socket| &socket.whose.owner)
    }

    /// Tells all series.
    pub fn tell(&self, exposition: &mut Exposition) {
        let mut inside: BTreeMap<&Whose, Vec<&Socket>> = BTreeMap::new();
        let mut rest = Vec::new();
        for socket in self.sockets.values() {
            if socket.placed {
                inside.entry(&socket.whose).or_default().push(socket);
            } else {
                rest.push(socket);
            }
        }
        for (whose, series) in &self.series {
            let sockets = inside.get(&**whose).map_or(&[][..], Vec::as_slice);
            tell_series(series, sockets, exposition);
        }
        if !rest.is_empty() || self.overflow.outcomes.values().any(|count| *count > 0) {
            tell_series(&self.overflow, &rest, exposition);
        }
        self.tell_states(exposition);
    }

    fn tell_states(&self, exposition: &mut Exposition) {
        let mut states = [
            ("exported", 0),
            (EPHEMERAL, 0),
            ("young", 0),
            ("overflow", 0),
        ];
        for socket in self.sockets.values() {
            let place = match (socket.placed, socket.ephemeral, socket.crowded) {
                (true, false, _) => 0,
                (true, true, _) => 1,
                (false, _, false) => 2,
                (false, _, true) => 3,
            };
            states[place].1 += 1;
        }
        for (state, count) in states {
            exposition.host(
                LISTENERS,
                vec![("state", state.to_owned())],
                Value::Count(count),
            );
        }
    }
}

fn is_refusal(tag: u8) -> bool {
    Outcome::of(tag).is_some_and(|outcome| outcome.kind == Kind::Refusal)
}

/// The labels of an outcome.
#[must_use]
pub fn outcome_labels(outcome: &Outcome) -> super::labels::LabelWords {
    vec![
        ("verdict", outcome.verdict.to_owned()),
        ("cause", outcome.cause.unwrap_or_default().to_owned()),
    ]
}

fn tell_series(series: &Series, sockets: &[&Socket], exposition: &mut Exposition) {
    let whose = &series.whose;
    for (tag, count) in &series.outcomes {
        if let Some(outcome) = Outcome::of(*tag) {
            exposition.listener(
                OUTCOMES,
                whose,
                outcome_labels(outcome),
                Value::Count(*count),
            );
        }
    }
    let mut count = |metric, value: Option<Value>| {
        if let Some(value) = value {
            exposition.listener(metric, whose, Vec::new(), value);
        }
    };
    count(
        FULL,
        series.full_us.map(|us| Value::Measure(us as f64 / 1e6)),
    );
    count(FILLS, series.fills.map(Value::Count));
    let times = series
        .waits
        .as_ref()
        .map(|waits| times(waits, series.waited_sum_ns));
    count(WAIT, times);
    if !sockets.is_empty() {
        let sum = |value: fn(&Socket) -> Option<u32>| {
            let told: Vec<_> = sockets.iter().filter_map(|socket| value(socket)).collect();
            (!told.is_empty()).then(|| Value::Count(told.into_iter().map(u64::from).sum()))
        };
        count(CONNECTIONS, sum(|socket| socket.depth));
        count(SYN_REQUESTS, sum(|socket| socket.syn));
        let fullest = sockets
            .iter()
            .filter(|socket| socket.limit.is_some())
            .max_by(|a, b| {
                let part = |socket: &Socket, other: &Socket| {
                    u64::from(socket.peak()) * (u64::from(other.limit.unwrap_or(0)) + 1)
                };
                part(a, b).cmp(&part(b, a))
            });
        count(
            LIMIT,
            fullest
                .and_then(|socket| socket.limit)
                .map(|limit| Value::Count(limit.into())),
        );
        count(
            PEAK,
            fullest.map(|socket| Value::Count(socket.peak().into())),
        );
        count(OLDEST, oldest(sockets));
        count(SOCKETS, Some(Value::Count(sockets.len() as u64)));
        let full = sockets.iter().filter(|socket| socket.is_full()).count();
        count(FULL_SOCKETS, Some(Value::Count(full as u64)));
        if !whose.words.iter().any(|(name, _)| *name == "overflow")
            && let Some(first) = sockets.iter().min_by_key(|socket| socket.since)
        {
            let word = |word: &Option<String>| word.clone().unwrap_or_default();
            let labels = vec![
                ("limit_from", word(&first.limit_from)),
                ("default_of", word(&first.default_of)),
                ("k8s_pod_uid", word(&first.whose.owner.pod_uid)),
                ("container_id", word(&first.whose.owner.container)),
            ];
            exposition.listener(LISTENER_INFO, whose, labels, Value::Count(1));
        }
    }
    for (rule, on) in &series.findings {
        let labels = vec![("rule", (*rule).to_owned())];
        exposition.listener(FINDING, whose, labels, Value::Count((*on).into()));
    }
}

/// The age of the oldest connection that waits. A queue that holds some whose age is not
/// known tells nothing, rather than zero.
fn oldest(sockets: &[&Socket]) -> Option<Value> {
    let ages = sockets.iter().map(|socket| match socket.depth {
        Some(0) => Some(0),
        _ => socket.oldest_us,
    });
    let ages: Option<Vec<_>> = ages.collect();
    let oldest = ages?.into_iter().max();
    oldest.map(|us| Value::Measure(us as f64 / 1e6))
}

/// A histogram of the kernel side with fewer buckets.
fn times(waits: &[u64; BUCKETS], sum_ns: u64) -> Value {
    let mut buckets = Vec::with_capacity(BOUNDS.len() + 1);
    let mut from = 0;
    for bound in BOUNDS {
        // Place n has what is below 2^n microseconds.
        let to = bound as usize + 1;
        let count = waits[from..to].iter().sum();
        buckets.push((f64::from(1u32 << bound) / 1e6, count));
        from = to;
    }
    buckets.push((f64::INFINITY, waits[from..].iter().sum()));
    Value::Times {
        buckets,
        sum: sum_ns as f64 / 1e9,
    }
}

const _: () = assert!((BOUNDS[BOUNDS.len() - 1] as usize) < BUCKETS - 1);

#[cfg(test)]
mod tests;
