//! What is known of an incident: a recording or a live stream, digested line by line into
//! bounded memory. The rules and the report look at this and nothing else.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    io,
};

use queue_trace_common::outcome::{Kind, Outcome, Set, of_kind};

pub use super::{
    detector::Key,
    episode::{ACCEPT_FULL, ENTERED, SYN_FULL, set_of},
    history::{HeldUp, History, Stalled, TimeSlot},
};
use super::{
    detector::Observed,
    episode::{MOST_COUNT, add},
    question::Question,
    timeline::Timeline,
};
use crate::{
    model::{
        clients::{ClientTable, Clients},
        clock::NS_PER_SECOND,
        event::{Event, outcome_named},
        ledger::Ledger,
        lines::{Counts, Header, LossNote, Total},
        snapshot::Snapshot,
        socket::Listener,
    },
    options::Filters,
    recording::select::LeftOut,
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
    /// Listeners that were in less trouble than others and made room for them.
    pub crowded_out: u64,
    /// Listeners that refused nothing and made room for others.
    pub left_out: u64,
    /// The last ledger of each namespace.
    pub ledgers: BTreeMap<u32, Ledger>,
    /// What was lost, by name.
    pub losses: BTreeMap<&'static str, u64>,
    /// When the lines were.
    pub timeline: Timeline,
    /// Seconds that a slot of the courses covers.
    pub width: i64,
    /// Events, counted by their lines.
    pub lines: u64,
    /// What is missing of the recording, a sentence each.
    pub notes: Vec<String>,
    /// Whether it came to its end.
    pub ended: bool,
    /// What was asked about, if not all that happened.
    pub question: Option<Question>,
    /// The outcomes that were asked for.
    pub asked_for: Set,
    /// Whether the counts of a second are those of all packets that are wanted.
    pub has_whole_counts: bool,
    /// Where clients that were refused, or answered with a cookie, came from.
    clients: ClientTable,
}

/// Listeners kept at most,
const MOST_LISTENERS: usize = 1280;
/// and how many stay once there are as many: those in most trouble.
const STAY: usize = 1024;
/// Slots of a history at most, before they are made wider.
const MOST_SLOTS: i64 = 900;

impl Case {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            width: 1,
            asked_for: Set::MAX,
            has_whole_counts: true,
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

    /// The networks of the clients that a listener refused, or answered with a cookie.
    #[must_use]
    pub fn clients_of(&self, key: &Key) -> Option<Clients> {
        self.clients.of(key.netns, key.port, key.inode)
    }

    /// The first and the last moment of which something is known.
    #[must_use]
    pub fn span(&self) -> Option<(i128, i128)> {
        self.timeline.span()
    }

    /// How long it lasted, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.timeline.seconds()
    }

    /// Whether the recording counts once a second. If not, the events are all there is.
    fn has_counts(&self) -> bool {
        let header = self.header.as_ref();
        self.has_whole_counts && header.is_some_and(|header| header.attach.outcomes.is_some())
    }

    /// The ledgers that matter: of the namespaces of what was asked about, if it is known where it
    /// is.
    pub(super) fn ledgers_asked(&self) -> impl Iterator<Item = &Ledger> {
        let asked = self.question.is_some() && !self.listeners.is_empty();
        let there: BTreeSet<u32> = self.listeners.keys().map(|key| key.netns).collect();
        let ledgers = self.ledgers.values();
        ledgers.filter(move |ledger| !asked || there.contains(&ledger.netns))
    }

    /// Notes what was asked, now that all has been read, and what the filters left out.
    pub fn ask(&mut self, filters: &Filters, left_out: &LeftOut) {
        self.notes.extend(left_out.notes());
        self.question = filters.listeners.ask().then(|| Question {
            words: filters.words(),
            listed: left_out.any_listener,
            made_with: left_out.made_with.clone(),
            unlisted: Vec::new(),
            unplaced: left_out
                .without_owner
                .saturating_add(left_out.without_address),
        });
    }

    /// What is known of a listener.
    fn history(&mut self, netns: u32, listener: &Listener) -> &mut History {
        let key = Key::of(netns, listener);
        if self.listeners.len() >= MOST_LISTENERS && !self.listeners.contains_key(&key) {
            self.make_room();
        }
        let told = self.told;
        let history = self
            .listeners
            .entry(key)
            .or_insert_with(|| History::new(told));
        history.learn(listener);
        history
    }

    /// Leaves out those in least trouble, of equals those that were in it longer ago.
    fn make_room(&mut self) {
        let mut all: Vec<_> = std::mem::take(&mut self.listeners).into_iter().collect();
        all.sort_by_cached_key(|(_, history)| Reverse(history.trouble()));
        for (_, history) in all.drain(STAY..) {
            if history.is_in_trouble() {
                self.crowded_out += 1;
            } else {
                self.left_out += 1;
            }
        }
        self.listeners = all.into_iter().collect();
    }

    /// The slot of a moment. Makes all slots wider if there would be too many.
    fn slot_of(&mut self, at: i128) -> i64 {
        if let Some((from, to)) = self.timeline.span() {
            while (to - from) / NS_PER_SECOND / i128::from(self.width) > i128::from(MOST_SLOTS) {
                self.widen();
            }
        }
        i64::try_from(at.div_euclid(NS_PER_SECOND * i128::from(self.width))).unwrap_or(0)
    }

    fn widen(&mut self) {
        self.width *= 2;
        for history in self.listeners.values_mut() {
            let mut wider: BTreeMap<i64, TimeSlot> = BTreeMap::new();
            for (at, slot) in std::mem::take(&mut history.slots) {
                wider.entry(at.div_euclid(2)).or_default().add(slot);
            }
            history.slots = wider;
        }
    }

    /// The beginning of a slot, seconds since 1970.
    #[must_use]
    pub fn begins(&self, slot: i64) -> i64 {
        slot.saturating_mul(self.width)
    }
}

/// Whether a recording goes on with this header: files made by rotation have the same.
fn is_same_run(a: &Header, b: &Header) -> bool {
    a.host == b.host && a.time == b.time
}

impl Sink for Case {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        if let Some(first) = self.header.as_ref().filter(|h| !is_same_run(h, header)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "two recordings, of host {} from {} and of host {} from {}: diagnose one at a time",
                    first.host, first.time, header.host, header.time
                ),
            ));
        }
        self.told |= match &header.attach.outcomes {
            Some(names) => names
                .iter()
                .filter_map(|name| outcome_named(name))
                .fold(0, |set, outcome| set | outcome.bit()),
            // An older recording does not say; what it shows by default was looked for.
            None => of_kind(Kind::Refusal),
        } & self.asked_for;
        let told = self.told;
        for history in self.listeners.values_mut() {
            history.detector.tells(told);
        }
        // A file that was begun by rotation has what went before in another.
        self.ended = false;
        if self.header.is_none() {
            self.timeline.wall(&header.time, false);
            self.header = Some(header.clone());
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.lines += 1;
        let at = self.timeline.event(event);
        let slot = self.slot_of(at);
        let count_slots = !self.has_counts();
        if (ACCEPT_FULL | SYN_FULL) & event.outcome.bit() != 0 {
            self.clients.take(event);
        }
        let history = self.history(event.netns, &event.listener);
        let tag = event.outcome.tag;
        let count = history.excess.event(tag, event.count);
        history.saw(tag, at);
        history.learn_queues(event);
        history.detector.take(&Observed {
            count,
            ..Observed::event(event, at)
        });
        let slot = history.slots.entry(slot).or_default();
        slot.depth = slot.depth.max(event.accept_queue.map(|queue| queue.depth));
        slot.limit = event.accept_queue.map(|queue| queue.limit).or(slot.limit);
        slot.syn_depth = slot.syn_depth.max(event.syn_queue.map(|queue| queue.depth));
        if let Some(us) = event.waited_us {
            slot.waits.get_or_insert_default().add(us);
        }
        if count_slots {
            add(slot.outcomes.entry(tag).or_default(), event.count);
        }
        Ok(())
    }

    fn listener(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let time = snapshot.time.as_deref();
        let at = time.and_then(|time| self.timeline.wall(time, false));
        let slot = at.map(|at| self.slot_of(at));
        let moment = |time: &Option<String>| self.timeline.moment(time.as_deref()?);
        let (listened, closed) = (moment(&snapshot.listen_time), moment(&snapshot.closed_time));
        let history = self.history(snapshot.netns, &snapshot.listener);
        history.listened = listened.or(history.listened);
        // One that was shut down may listen again.
        history.closed = closed;
        history.learn_snapshot(snapshot, at);
        let accept = snapshot.accept_queue.as_ref();
        if let Some(slot) = slot.filter(|_| !snapshot.is_closed()) {
            let slot = history.slots.entry(slot).or_default();
            slot.depth = slot.depth.max(accept.and_then(|queue| queue.depth));
            slot.limit = accept.and_then(|queue| queue.limit).or(slot.limit);
            slot.latency_us = snapshot.accept_latency_us.or(slot.latency_us);
            slot.hold(snapshot.stall.as_deref().and_then(HeldUp::of));
        }
        for (name, count) in snapshot.counts.iter().flatten() {
            if let Some(outcome) = outcome_named(name) {
                history
                    .reported
                    .insert(outcome.tag, (*count).min(MOST_COUNT));
            }
        }
        Ok(())
    }

    fn counts(&mut self, counts: &Counts) -> io::Result<()> {
        // They come once a second, after what was withheld in it.
        self.clients.end_second();
        let Some(at) = self.timeline.counts(counts) else {
            return Ok(());
        };
        let slot = self.slot_of(at);
        let known = counts.outcomes.iter();
        let known: Vec<(&Outcome, u64)> = known
            .filter_map(|(name, count)| Some((outcome_named(name)?, *count)))
            .collect();
        let history = self.history(counts.netns, &counts.listener);
        for (outcome, count) in known {
            let tag = outcome.tag;
            // Without events of it, this is the time known.
            if history.excess.streamed(tag) == 0 {
                history.saw(tag, at);
            }
            let excess = history.excess.counts(tag, count);
            if excess > 0
                && let Some(outcome) = Outcome::of(tag)
            {
                history
                    .detector
                    .take(&Observed::number(outcome, excess, at));
            }
            let slot = history.slots.entry(slot).or_default();
            add(slot.outcomes.entry(tag).or_default(), count);
        }
        Ok(())
    }

    fn loss(&mut self, note: &LossNote) -> io::Result<()> {
        self.timeline.wall(&note.time, false);
        for (name, count) in note.parts() {
            add(self.losses.entry(name).or_default(), count);
        }
        Ok(())
    }

    fn summary(&mut self, totals: &[Total]) -> io::Result<()> {
        // Those that were left out are told here once more.
        let all_are_kept = self.crowded_out + self.left_out == 0;
        for total in totals {
            let key = Key::of(total.netns, &total.listener);
            if all_are_kept || self.listeners.contains_key(&key) {
                let history = self.history(total.netns, &total.listener);
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
        self.timeline.wall(time, false);
        self.ended = true;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
