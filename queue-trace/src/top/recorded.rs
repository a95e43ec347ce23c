//! A recording as what `top` shows, at any moment of it.
//!
//! It is read through once, to learn how long it is, and to leave checkpoints: what was
//! known at a moment, and where the lines go on from there. Another moment is reached from
//! the checkpoint before it. There are so many checkpoints at most, further apart the longer
//! the recording is, so that memory does not grow with it.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use queue_trace_common::outcome::{ACCEPTED, Kind, Outcome};

use crate::{
    model::{
        clients::Prefixes,
        clock::NS_PER_SECOND,
        event::{Event, Name, from_rfc3339, outcome_named},
        latency::Histogram,
        lines::{Counts, Header},
        snapshot::{Gauge, Snapshot, SocketKey, drops, is_drop},
        socket::Listener,
    },
    options::ListenerFilters,
    recording::{Input, Line, Reader, ReaderPlace, select::Only},
    top::{
        Source,
        seen::{PAST, Seen, key_of},
        state::Jump,
    },
};

/// Listeners kept at most.
const LISTENERS: usize = 1024;
/// Checkpoints kept at most.
const CHECKPOINTS: usize = 64;
/// Memory for them, bytes: fewer are kept of many listeners.
const WEIGHT: usize = 64 << 20;
/// Lines between checkpoints, at least.
const LINES: u64 = 1 << 13;
/// For so many seconds it is told how long the oldest connection has been waiting, and what
/// the threads do: both change at once.
const FRESH: i64 = 1;

/// A recording, read as far as its cursor.
pub struct Recorded {
    files: Vec<PathBuf>,
    only: Only,
    reader: Reader,
    /// Of a later second than the cursor's, so not taken in yet.
    next: Option<Line>,
    scene: Scene,
    checkpoints: Vec<Checkpoint>,
    span: (i64, i64),
    header: Option<Header>,
    notes: Vec<String>,
}

/// What was known before the lines from here on.
struct Checkpoint {
    place: ReaderPlace,
    scene: Scene,
    /// About how much memory it takes, bytes.
    weight: usize,
}

/// What was known at a moment.
#[derive(Debug, Clone, Default)]
struct Scene {
    /// The second that the latest lines are of, since 1970; `None` before the first.
    second: Option<i64>,
    listeners: BTreeMap<SocketKey, KnownListener>,
    /// Listeners that were left out for lack of room.
    crowded_out: u64,
    /// Whether there are counts once a second. If not, the events are all there is.
    counted: bool,
    seen: Seen,
}

/// What was known of one listener.
#[derive(Debug, Clone, Default)]
struct KnownListener {
    /// As it was told last, its queues as the events since say.
    told: Snapshot,
    /// In which second.
    told_at: Option<i64>,
    /// How often each outcome was, by tag.
    counts: BTreeMap<u8, u64>,
    /// How long accepted connections had waited, those whose event was told.
    waits: Histogram,
}

impl Recorded {
    /// Reads it through, and goes to its beginning.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(
        files: &[PathBuf],
        listeners: &ListenerFilters,
        networks: Prefixes,
    ) -> Result<Self> {
        Self::open_with(files, listeners, networks, LINES)
    }

    /// With checkpoints so many lines apart, at least.
    fn open_with(
        files: &[PathBuf],
        listeners: &ListenerFilters,
        networks: Prefixes,
        apart: u64,
    ) -> Result<Self> {
        if files.iter().any(|path| path == Path::new("-")) {
            bail!("top reads keys from standard input: give it a recording by its name");
        }
        if let Some(other) = files
            .iter()
            .find(|path| path.exists() && !Input::is_file(path))
        {
            bail!(
                "cannot play {}: top reads a recording more than once, so it takes files only",
                other.display()
            );
        }
        let mut recorded = Self {
            files: files.to_vec(),
            only: Only::listeners(listeners)?,
            reader: Reader::open(files)?,
            next: None,
            scene: Scene {
                seen: Seen::new(networks),
                ..Scene::default()
            },
            checkpoints: Vec::new(),
            span: (0, 0),
            header: None,
            notes: Vec::new(),
        };
        if recorded.only.names_owners() {
            recorded.learn_owners()?;
        }
        recorded.read_through(apart)?;
        recorded.go_to(recorded.span.0)?;
        Ok(recorded)
    }

    /// Reads it through once to find out whose each listener is, and goes back to its beginning.
    fn learn_owners(&mut self) -> Result<()> {
        while let Some(entry) = self.reader.next()? {
            if let Some(line) = &entry.line {
                self.only.learn(line);
            }
        }
        self.reader = Reader::open(&self.files)?;
        Ok(())
    }

    /// Who observed what, how.
    pub fn title(&self) -> String {
        self.header.as_ref().map_or(String::new(), |header| {
            format!(
                "{}  Linux {}  attached by {}",
                header.host, header.kernel, header.attach.family
            )
        })
    }

    /// What is not told in it.
    pub fn notes(&self) -> Vec<String> {
        let limits = self.header.iter().flat_map(|header| &header.attach.limits);
        self.notes.iter().chain(limits).cloned().collect()
    }

    /// Its first and its last second, nanoseconds since 1970.
    pub fn span(&self) -> (i128, i128) {
        let (from, to) = self.span;
        (in_ns(from), in_ns(to))
    }

    fn read_through(&mut self, mut apart: u64) -> Result<()> {
        let mut from = None;
        loop {
            let place = self.reader.place();
            let Some(line) = self.next_line()? else {
                break;
            };
            if let Some(second) = second_of(&line) {
                let later = self.scene.second.is_none_or(|before| second > before);
                from = from.or(Some(second));
                self.scene.pass_to(second);
                let last = self.checkpoints.last();
                let far = |last: &Checkpoint| place.understood - last.place.understood >= apart;
                if later && last.is_none_or(far) {
                    let scene = self.scene.clone();
                    let weight = scene.weight();
                    self.checkpoints.push(Checkpoint {
                        place,
                        scene,
                        weight,
                    });
                }
                let weight: usize = self.checkpoints.iter().map(|one| one.weight).sum();
                let many = self.checkpoints.len() > CHECKPOINTS || weight > WEIGHT;
                if many && self.checkpoints.len() > 1 {
                    let mut number = 0..;
                    self.checkpoints
                        .retain(|_| number.next().is_some_and(|n| n % 2 == 0));
                    apart *= 2;
                }
            }
            if let Line::Header(header) = &line
                && self.header.is_none()
            {
                self.header = Some(header.clone());
            }
            self.scene.take(&line);
        }
        let (Some(from), Some(to)) = (from, self.scene.second) else {
            bail!("no line of the recording says when it was, so there is nothing to show");
        };
        self.span = (from, to);
        self.notes = self.reader.notes().to_vec();
        if self.scene.crowded_out > 0 {
            self.notes.push(format!(
                "{} listeners that were in less trouble than others are left out for lack of room",
                self.scene.crowded_out
            ));
        }
        Ok(())
    }

    /// The next line that is wanted.
    fn next_line(&mut self) -> Result<Option<Line>> {
        while let Some(entry) = self.reader.next()? {
            if let Some(line) = entry.line.filter(|line| self.only.passes(line)) {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// Shows what was known at the end of a second.
    fn go_to(&mut self, second: i64) -> Result<()> {
        let at = |scene: &Scene| scene.second.unwrap_or(i64::MIN);
        let before = self
            .checkpoints
            .partition_point(|checkpoint| at(&checkpoint.scene) <= second);
        // The first one is at the first second.
        let checkpoint = &self.checkpoints[before.saturating_sub(1)];
        if second < at(&self.scene) || at(&checkpoint.scene) > at(&self.scene) {
            self.reader = Reader::open_at(&self.files, checkpoint.place)?;
            self.scene = checkpoint.scene.clone();
            self.next = None;
        }
        loop {
            let line = match self.next.take() {
                Some(line) => line,
                None => match self.next_line()? {
                    Some(line) => line,
                    None => break,
                },
            };
            match second_of(&line) {
                Some(later) if later > second => {
                    self.next = Some(line);
                    break;
                }
                Some(then) => self.scene.pass_to(then),
                None => {}
            }
            self.scene.take(&line);
        }
        self.scene.pass_to(second);
        Ok(())
    }
}

impl Source for Recorded {
    fn tick(&mut self, paused: bool) -> Result<Option<Seen>> {
        let second = self.scene.second.unwrap_or(self.span.0);
        if self.scene.seen.at_ns == 0 {
            self.scene.seen.at_ns = in_ns(second);
            return Ok(Some(self.scene.seen()));
        }
        if paused || second >= self.span.1 {
            return Ok(None);
        }
        self.go(Jump::By(1))
    }

    fn go(&mut self, step: Jump) -> Result<Option<Seen>> {
        let (from, to) = self.span;
        let second = match step {
            Jump::By(seconds) => self.scene.second.unwrap_or(from).saturating_add(seconds),
            Jump::Home => from,
            Jump::End => to,
        };
        self.go_to(second.clamp(from, to))?;
        Ok(Some(self.scene.seen()))
    }
}

impl Scene {
    /// About how much memory it takes, bytes.
    fn weight(&self) -> usize {
        let listeners = self.listeners.values().map(KnownListener::weight);
        self.seen.weight() + listeners.sum::<usize>()
    }

    /// The seconds until this one are over.
    fn pass_to(&mut self, second: i64) {
        let from = self.second.unwrap_or(second);
        if second > from {
            // Of a long silence only the end can be seen.
            for at in from.max(second - PAST as i64)..second {
                let stand = self.listeners.iter().map(|(key, known)| {
                    let queue = known.told.accept_queue.as_ref();
                    (*key, known.drops(), queue.and_then(|queue| queue.depth))
                });
                self.seen.look(in_ns(at), stand);
            }
        }
        self.second = Some(from.max(second));
    }

    /// What is to be seen now, this second so far with it.
    fn seen(&self) -> Seen {
        let mut seen = self.seen.clone();
        let rows = self.listeners.values().map(|known| known.row(self.second));
        seen.take_rows(rows.collect(), in_ns(self.second.unwrap_or(0)));
        seen
    }

    fn take(&mut self, line: &Line) {
        match line {
            Line::Header(header) => self.counted = header.attach.outcomes.is_some(),
            Line::Event(event) => {
                let counted = self.counted;
                let known = self.known(key_of(event), &event.listener);
                known.event(event, counted);
                // As when it is live: what is routine is seen by its counts.
                if event.outcome.kind == Kind::Refusal {
                    self.seen.event(event);
                }
            }
            Line::Counts(counts) => {
                let Listener { port, inode, .. } = counts.listener;
                let known = self.known((counts.netns, port, inode), &counts.listener);
                known.counts(counts);
            }
            Line::Listener(snapshot) => self.told(snapshot),
            // What is said at the end is of no moment.
            Line::Total(_) | Line::Clients(_) | Line::Ledger(_) | Line::End(_) => {}
            Line::Loss(note) => self.seen.lost(note),
        }
    }

    fn told(&mut self, snapshot: &Snapshot) {
        let Listener { port, inode, .. } = snapshot.listener;
        let key = (snapshot.netns, port, inode);
        if snapshot.is_closed() {
            self.listeners.remove(&key);
            return;
        }
        let second = self.second;
        let known = self.known(key, &snapshot.listener);
        known.told = snapshot.clone();
        known.told_at = second;
    }

    /// Keeps the listeners in trouble.
    fn make_room(&mut self) {
        let trouble = |known: &KnownListener| {
            let refused = known.all_counts().filter(|(o, _)| o.kind == Kind::Refusal);
            let refused = refused.fold(0, |sum: u64, (_, count)| sum.saturating_add(count));
            (known.told.is_full(), refused, known.told.depth())
        };
        let mut all: Vec<_> = std::mem::take(&mut self.listeners).into_iter().collect();
        all.sort_by_cached_key(|(_, known)| Reverse(trouble(known)));
        self.crowded_out += all.len().saturating_sub(LISTENERS) as u64;
        all.truncate(LISTENERS);
        self.listeners = all.into_iter().collect();
    }

    /// The listener of that key, for which room is made.
    fn known(&mut self, key: SocketKey, listener: &Listener) -> &mut KnownListener {
        if self.listeners.len() >= 2 * LISTENERS && !self.listeners.contains_key(&key) {
            self.make_room();
        }
        let known = self.listeners.entry(key).or_default();
        known.told.netns = key.0;
        let before = known.told.listener;
        known.told.listener = Listener {
            addr: listener.addr.or(before.addr),
            cookie: listener.cookie.or(before.cookie),
            ..*listener
        };
        known
    }
}

impl KnownListener {
    fn weight(&self) -> usize {
        /// Of an entry of a map, with a short name.
        const ENTRY: usize = 96;
        let Snapshot {
            processes,
            cgroup,
            drops,
            counts,
            threads,
            stall,
            ..
        } = &self.told;
        let stall = stall.as_ref().map_or(0, |stall| stall.weight());
        let entries = self.counts.len()
            + [drops, counts]
                .into_iter()
                .flatten()
                .map(BTreeMap::len)
                .sum::<usize>()
            + threads.as_ref().map_or(0, BTreeMap::len)
            + processes.as_ref().map_or(0, Vec::len);
        size_of::<Self>()
            + stall
            + entries * ENTRY
            + cgroup.as_ref().map_or(0, String::len)
            + 2 * ENTRY
    }

    fn event(&mut self, event: &Event, counted: bool) {
        if let Some(queue) = event.accept_queue {
            let gauge = self.told.accept_queue.get_or_insert_default();
            stands(gauge, queue.depth, queue.limit);
        }
        if let Some(queue) = event.syn_queue {
            let gauge = self.told.syn_queue.get_or_insert_default();
            stands(gauge, queue.depth, queue.limit);
            gauge.young = Some(queue.young);
        }
        if !counted {
            self.count(event.outcome.tag, event.count);
        }
        if event.outcome.tag == ACCEPTED
            && let Some(us) = event.waited_us
        {
            self.waits.add(us);
        }
    }

    fn counts(&mut self, counts: &Counts) {
        for (name, count) in &counts.outcomes {
            if let Some(outcome) = outcome_named(name) {
                self.count(outcome.tag, *count);
            }
        }
    }

    fn count(&mut self, tag: u8, count: u64) {
        let sum = self.counts.entry(tag).or_default();
        *sum = sum.saturating_add(count);
    }

    /// How often each outcome was: what was told counts from the beginning too, and each may
    /// have missed some.
    fn all_counts(&self) -> impl Iterator<Item = (&'static Outcome, u64)> {
        let mut counts = self.counts.clone();
        for (name, count) in self.told.counts.iter().flatten() {
            if let Some(outcome) = outcome_named(name) {
                let sum = counts.entry(outcome.tag).or_default();
                *sum = (*sum).max(*count);
            }
        }
        let known = |(tag, count)| Some((Outcome::of(tag)?, count));
        counts.into_iter().filter_map(known)
    }

    fn drops(&self) -> u64 {
        let dropped = self.all_counts().filter(|(outcome, _)| is_drop(outcome));
        dropped.fold(0, |sum, (_, count)| sum.saturating_add(count))
    }

    fn row(&self, now: Option<i64>) -> Snapshot {
        let mut snapshot = self.told.clone();
        snapshot.drops = Some(drops(self.all_counts()));
        let named = self
            .all_counts()
            .map(|(o, count)| (Name(o).to_string(), count));
        snapshot.counts = Some(named.collect());
        let measured = self.waits.distribution();
        let told = snapshot.accept_latency_us.and_then(|latency| latency.count);
        let waits = measured.filter(|spread| spread.count >= told.unwrap_or(0));
        if let Some(spread) = waits {
            snapshot.accept_latency_us = Some(spread.into());
        }
        let age = now.zip(self.told_at).map(|(now, told)| now - told);
        if age.is_none_or(|age| age > FRESH) {
            snapshot.oldest_waiting_us = None;
            snapshot.threads = None;
            snapshot.stall = None;
        }
        snapshot.waits = waits.map(|_| self.waits.places);
        snapshot
    }
}

/// A queue is so deep.
fn stands(gauge: &mut Gauge, depth: u32, limit: u32) {
    gauge.depth = Some(depth);
    gauge.limit = Some(limit);
    gauge.high_water = gauge.high_water.max(Some(depth));
}

/// The second that a line is of.
fn second_of(line: &Line) -> Option<i64> {
    let of = |time: &str| from_rfc3339(time).ok();
    let ns = match line {
        Line::Event(event) => event.wall_ns,
        Line::Listener(snapshot) => of(snapshot.time.as_deref()?)?,
        Line::Counts(counts) => of(&counts.time)?,
        Line::Loss(note) => of(&note.time)?,
        Line::End(end) => of(&end.time)?,
        // Attaching takes its time, of which nothing is known.
        Line::Header(_) | Line::Total(_) | Line::Clients(_) | Line::Ledger(_) => return None,
    };
    i64::try_from(ns.div_euclid(NS_PER_SECOND)).ok()
}

fn in_ns(second: i64) -> i128 {
    i128::from(second) * NS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ratatui::{Terminal, backend::TestBackend};

    use super::{
        super::{state::Top, view},
        *,
    };

    fn open(apart: u64) -> Recorded {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
        let files = [folder.join("tracepoint-accept-too-slow.jsonl")];
        Recorded::open_with(
            &files,
            &ListenerFilters::default(),
            Prefixes::default(),
            apart,
        )
        .unwrap()
    }

    /// Reads on from the beginning only.
    fn seen_at(second: i64) -> String {
        let mut recorded = open(u64::MAX);
        assert_eq!(recorded.checkpoints.len(), 1);
        let (from, _) = recorded.span;
        format!(
            "{:?}",
            recorded.go(Jump::By(second - from)).unwrap().unwrap().rows
        )
    }

    /// However much there is to be known at each of them.
    #[test]
    fn memory_for_checkpoints_is_bounded() {
        let name = format!("queue-trace-checkpoints-{}.jsonl", std::process::id());
        let path = std::env::temp_dir().join(name);
        let long = "x".repeat(6000);
        let mut text = String::new();
        for second in 0..60 {
            // What is not told again stays as it was.
            let told = if second == 0 { 500 } else { 9 };
            for inode in 0..told {
                text.push_str(&format!(
                    "{{\"type\":\"listener\",\"time\":\"2026-11-21T10:00:{second:02}Z\",\"netns\":1,\
                     \"listener\":{{\"port\":80,\"inode\":{inode}}},\"cgroup\":\"{long}\",\
                     \"accept_queue\":{{\"depth\":1,\"limit\":2}}}}\n"
                ));
            }
        }
        std::fs::write(&path, text).unwrap();
        let files = vec![path.clone()];
        let recorded =
            Recorded::open_with(&files, &ListenerFilters::default(), Prefixes::default(), 1)
                .unwrap();
        std::fs::remove_file(path).unwrap();
        assert!(recorded.scene.weight() > 500 * 4000);
        let weight: usize = recorded.checkpoints.iter().map(|one| one.weight).sum();
        assert!(weight <= WEIGHT, "{weight}");
        assert!(recorded.checkpoints.len() > 5, "and not for want of them");
    }

    /// Events stand before the line that says whose their listener is.
    #[test]
    fn a_service_is_shown_alone() {
        let name = format!("queue-trace-service-{}.jsonl", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut text = String::new();
        for (inode, comm) in [(1, "nginx"), (2, "redis")] {
            let socket = format!("\"netns\":1,\"listener\":{{\"port\":80,\"inode\":{inode}}}");
            text.push_str(&format!(
                "{{\"type\":\"counts\",\"time\":\"2026-11-21T10:00:01Z\",{socket},\
                 \"outcomes\":{{\"queued\":3}}}}\n\
                 {{\"type\":\"listener\",\"time\":\"2026-11-21T10:00:02Z\",{socket},\
                 \"processes\":[{{\"pid\":1,\"comm\":\"{comm}\"}}]}}\n"
            ));
        }
        std::fs::write(&path, text).unwrap();
        let listeners = ListenerFilters {
            processes: vec!["nginx".parse().unwrap()],
            ..ListenerFilters::default()
        };
        let files = vec![path.clone()];
        let recorded = Recorded::open(&files, &listeners, Prefixes::default()).unwrap();
        std::fs::remove_file(path).unwrap();
        let inodes: Vec<_> = recorded.scene.listeners.keys().map(|key| key.2).collect();
        assert_eq!(inodes, [Some(1)]);
    }

    #[test]
    fn checkpoints_are_bounded() {
        let recorded = open(1);
        assert!(recorded.checkpoints.len() <= CHECKPOINTS);
        assert!(recorded.checkpoints.len() > 5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        /// Whichever way the cursor came, it is the same that is to be seen.
        #[test]
        fn a_moment_is_the_same_from_every_side(moments in proptest::collection::vec(0..12i64, 1..8)) {
            let mut recorded = open(8);
            let (from, to) = recorded.span;
            for moment in moments {
                let second = (from + moment).min(to);
                recorded.go_to(second).unwrap();
                let rows = format!("{:?}", recorded.scene.seen().rows);
                prop_assert_eq!(rows, seen_at(second));
            }
        }
    }

    proptest! {
        /// Whatever numbers a garbled recording has, something is shown of it.
        #[test]
        fn any_numbers_can_be_shown(
            garbled in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u64>()), 1..20),
            columns in 1..200u16,
            rows in 1..60u16,
        ) {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
            let text = std::fs::read_to_string(folder.join("tracepoint-default.jsonl")).unwrap();
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            for (at, number) in garbled {
                let line = at.get(&lines).clone();
                // What stands behind a colon and is a number, here and there.
                let parts: Vec<_> = line.split(':').map(|part| {
                    let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
                    let kept = end == 0 || number >> (part.len() % 64) & 1 == 0;
                    if kept { part.to_owned() } else { format!("{number}{}", &part[end..]) }
                }).collect();
                let at = at.index(lines.len());
                lines[at] = parts.join(":");
            }
            let mut scene = Scene::default();
            for line in &lines {
                if let Ok(line) = Line::parse(line.as_bytes()) {
                    if let Some(second) = second_of(&line) {
                        scene.pass_to(second);
                    }
                    scene.take(&line);
                }
            }
            let mut top = Top::new(String::new(), Vec::new(), true);
            top.span = Some((i128::MIN, i128::MAX));
            top.show(scene.seen());
            let screen = TestBackend::new(columns, rows);
            let mut terminal = Terminal::new(screen).unwrap();
            terminal.draw(|frame| view::draw(frame, &top)).unwrap();
        }
    }
}
