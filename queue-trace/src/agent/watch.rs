//! The sink that feeds the agent: counts go to the board, lines to the recorder, refusals to
//! OTLP.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use queue_trace_common::outcome::Kind;

use super::{
    board::Board,
    otlp::{Refusal, RefusalQueue},
    pace::Pace,
    recorder::{self, Finished, NotWritten, Recorder},
    series::{SeriesKey, key_of},
    settings::Settings,
    systemd::Watchdog,
    trouble::{TroubleChange, Troubles},
    words::{self, Announcer},
};
use crate::{
    diagnose::{self, Case},
    model::{
        clients::Clients,
        clock::monotonic_now,
        event::{Event, outcome_named},
        ledger::Ledger,
        lines::{Counts, Header, LossNote, Total},
        snapshot::Snapshot,
    },
    sink::{Extent, Sink, Wanted},
};

/// How soon, and how rarely at least, an episode that goes on is judged.
const JUDGED: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];

/// Settings that came with SIGHUP and are not in force yet.
pub type NewSettings = Arc<Mutex<Option<Settings>>>;

/// The sink.
pub struct Watcher {
    board: Arc<Board>,
    recorder: Recorder,
    troubles: Troubles,
    refusals: Option<Arc<RefusalQueue>>,
    new_settings: NewSettings,
    watchdog: Watchdog,
    told: Announcer,
    header: Option<Header>,
    /// What happened since something was refused, for the findings.
    case: Option<Case>,
    /// Since when something is refused.
    troubled: Option<Duration>,
    /// When it is judged next.
    judged: Duration,
    began: Instant,
    pace: Pace,
    /// Whether the stream shows the listeners that were there before.
    attaching: bool,
}

impl Watcher {
    /// Feeds the board.
    #[must_use]
    pub fn new(
        board: Arc<Board>,
        recorder: Recorder,
        troubles: Troubles,
        refusals: Option<Arc<RefusalQueue>>,
        new_settings: NewSettings,
        told: Announcer,
        pace: Pace,
    ) -> Self {
        Self {
            board,
            recorder,
            troubles,
            refusals,
            new_settings,
            watchdog: Watchdog::begin(),
            told,
            header: None,
            case: None,
            troubled: None,
            judged: Duration::ZERO,
            began: Instant::now(),
            pace,
            attaching: true,
        }
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(monotonic_now())
    }

    /// Takes in what became of episodes.
    fn changed(&mut self, changes: Vec<TroubleChange>) {
        for change in changes {
            match change {
                TroubleChange::Began(began) => {
                    let owner = {
                        let mut state = self.board.state();
                        state.host.episodes = self.troubles.open();
                        state.fleet.owner(&began.key).cloned().unwrap_or_default()
                    };
                    let who = format!("{} {}", began.listener.port, words::owner(&owner));
                    let before = self.recorder.open_file().cloned();
                    let file = self.begin(&who, began.listener.port);
                    self.told.began(&began, &owner, file.as_deref());
                    if file.is_some() && file != before {
                        // So that the recording has all listeners as they are now.
                        self.pace.all();
                    }
                }
                TroubleChange::Ended(ended) => {
                    let owner = {
                        let mut state = self.board.state();
                        state.host.episodes = self.troubles.open();
                        state.fleet.owner(&ended.key).cloned().unwrap_or_default()
                    };
                    let file = self.recorder.open_file().cloned();
                    let found = self.find();
                    let own = found.iter().filter(|(key, _)| *key == ended.key);
                    let rules: Vec<_> = own.map(|(_, rule)| (*rule).to_owned()).collect();
                    self.told.ended(&ended, &owner, &rules, file.as_deref());
                }
            }
        }
    }

    /// What the diagnosis finds now: the rules by listener.
    fn find(&mut self) -> Vec<(SeriesKey, &'static str)> {
        let Some(case) = &self.case else {
            return Vec::new();
        };
        let findings = diagnose::diagnose(case).findings;
        let found: Vec<_> = findings
            .iter()
            .map(|finding| {
                let key = finding.key;
                ((key.netns, key.port, key.inode), finding.rule)
            })
            .collect();
        self.board.state().fleet.findings(&found);
        found
    }

    /// Judges what goes on, ever more rarely as it lasts; forgets it when it is over.
    fn judge(&mut self, trouble: bool, now: Duration) {
        if !trouble && self.case.is_some() {
            self.case = None;
            self.board.state().fleet.findings(&[]);
        }
        if trouble && self.case.is_none() {
            let mut case = Case::new();
            if let Some(header) = &self.header {
                // A case refuses no line.
                let _ = case.header(header);
            }
            for snapshot in self.board.state().listeners.iter() {
                let _ = case.listener(&recorder::alone(snapshot));
            }
            self.case = Some(case);
            self.judged = now + JUDGED[0];
        }
        if self.case.is_some() && now >= self.judged {
            self.find();
            let lasted = self
                .troubled
                .map_or(Duration::ZERO, |since| now.saturating_sub(since));
            self.judged = now + (lasted / 2).clamp(JUDGED[0], JUDGED[1]);
        }
    }

    /// Begins a recording. One that cannot be written ends nothing else.
    fn begin(&mut self, who: &str, port: u16) -> Option<PathBuf> {
        let was_open = self.recorder.open_file().is_some();
        let begun = self.recorder.begin(who, port, self.now(), Timestamp::now());
        let result = match &begun {
            Ok(Ok(_)) if was_open => return begun.ok().and_then(Result::ok),
            Ok(Ok(_)) => "begun",
            Ok(Err(NotWritten::NoFolder)) => return None,
            Ok(Err(NotWritten::Limited)) => "limited",
            Err(error) => {
                self.told.cannot_record(error);
                "failed"
            }
        };
        self.count_incident(result);
        begun.ok().and_then(Result::ok)
    }

    /// More of what goes on. A case refuses no line.
    fn feed(&mut self, line: impl FnOnce(&mut Case) -> io::Result<()>) {
        if let Some(case) = &mut self.case {
            let _ = line(case);
        }
    }

    fn count_incident(&self, result: &'static str) {
        *self.board.state().host.incidents.entry(result).or_default() += 1;
    }

    fn finished(&mut self, finished: io::Result<Option<Finished>>) {
        match finished {
            Ok(Some(finished)) => {
                self.count_incident("finished");
                self.told.recorded(finished);
            }
            Ok(None) => {}
            Err(error) => {
                self.told.cannot_record(&error);
                self.count_incident("failed");
            }
        }
    }

    /// What goes wrong with the recorder ends the recording, and nothing else.
    fn record(&self, recorded: io::Result<()>) {
        if let Err(error) = recorded {
            self.told.cannot_record(&error);
            self.count_incident("failed");
        }
    }

    /// Settings that came meanwhile.
    fn renew(&mut self) {
        let new = self
            .new_settings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(new) = new {
            self.recorder.bound(new.bounds);
            self.board.state().fleet.limit(new.limits);
            self.pace.all();
        }
    }
}

impl Sink for Watcher {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        self.recorder.header(header);
        self.header = Some(header.clone());
        Ok(())
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        let now = self.now();
        let routine = event.outcome.kind == Kind::Routine;
        self.pace.moved(event.netns, &event.listener, routine);
        if let Some(queue) = event.accept_queue {
            self.board
                .state()
                .fleet
                .depth(event.netns, &event.listener, queue.depth);
        }
        if event.outcome.kind == Kind::Refusal
            && let Some(queue) = &self.refusals
        {
            let key = key_of(event.netns, &event.listener);
            let owner = self
                .board
                .state()
                .fleet
                .owner(&key)
                .cloned()
                .unwrap_or_default();
            let refusal = Refusal {
                event: event.clone(),
                owner,
            };
            if queue.push(refusal) {
                *self
                    .board
                    .state()
                    .host
                    .otlp
                    .entry(("logs", "overflowed"))
                    .or_default() += 1;
            }
        }
        let recorded = self.recorder.line(event, now);
        self.record(recorded);
        self.feed(|case| case.event(event));
        let changes = self.troubles.event(event);
        self.changed(changes);
        Ok(())
    }

    fn listener(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let now = self.now();
        self.pace.listener(snapshot);
        self.board.state().fleet.one(snapshot, now);
        let recorded = self.recorder.listener(snapshot, now);
        self.record(recorded);
        self.feed(|case| case.listener(&recorder::alone(snapshot)));
        Ok(())
    }

    fn counts(&mut self, counts: &Counts) -> io::Result<()> {
        let now = self.now();
        let named = counts.outcomes.iter();
        let named = named.filter_map(|(name, count)| Some((outcome_named(name)?, *count)));
        let named: Vec<_> = named.collect();
        let routine = named
            .iter()
            .all(|(outcome, _)| outcome.kind == Kind::Routine);
        self.pace.moved(counts.netns, &counts.listener, routine);
        let named = named.into_iter();
        let outcomes: BTreeMap<u8, u64> =
            named.map(|(outcome, count)| (outcome.tag, count)).collect();
        self.board
            .state()
            .fleet
            .counts(counts.netns, &counts.listener, &outcomes, now);
        let recorded = self.recorder.line(counts, now);
        self.record(recorded);
        self.feed(|case| case.counts(counts));
        let changes = self.troubles.counts(counts);
        self.changed(changes);
        Ok(())
    }

    fn loss(&mut self, note: &LossNote) -> io::Result<()> {
        let now = self.now();
        self.board.state().host.lost(note);
        self.pace.lost();
        let recorded = self.recorder.line(note, now);
        self.record(recorded);
        self.feed(|case| case.loss(note));
        Ok(())
    }

    fn summary(&mut self, _: &[Total]) -> io::Result<()> {
        Ok(())
    }

    fn clients(&mut self, _: &Clients) -> io::Result<()> {
        Ok(())
    }

    fn ledger(&mut self, _: &Ledger) -> io::Result<()> {
        // All of them come as `ledgers`.
        Ok(())
    }

    fn end(&mut self, _: &str) -> io::Result<()> {
        let now = self.now();
        let stopped = self.recorder.stop(now);
        self.finished(stopped);
        self.told.wait();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.attaching && self.began.elapsed() >= Duration::from_millis(1) {
            self.attaching = false;
            self.board.state().fleet.attached();
        }
        Ok(())
    }

    fn second(&mut self) -> io::Result<Wanted> {
        let now = self.now();
        self.board.turn();
        self.watchdog.turn();
        self.renew();
        let changes = self.troubles.second();
        self.changed(changes);
        let trouble = self.troubles.open() > 0;
        self.troubled = if trouble {
            self.troubled.or(Some(now))
        } else {
            None
        };
        self.judge(trouble, now);
        let finished = self.recorder.second(trouble, now);
        self.finished(finished);
        let mut places: BTreeSet<u32> = self.troubles.places().collect();
        {
            let mut state = self.board.state();
            state.fleet.settle(now);
            places.extend(state.fleet.unknown());
        }
        Ok(self.pace.second(places, now))
    }

    fn look(&mut self, listeners: &[Snapshot], extent: &Extent) -> io::Result<()> {
        let now = self.now();
        let within = extent.within.as_ref();
        self.pace.looked(listeners, extent);
        {
            let mut state = self.board.state();
            state.fleet.look(listeners, within, now);
            if within.is_none() {
                state.host.look = Some(extent.took.as_secs_f64());
            }
            state.listeners = merged(&state.listeners, listeners, within);
        }
        for one in listeners {
            self.troubles.listener(one);
            self.feed(|case| case.listener(&recorder::alone(one)));
        }
        let recorded = self.recorder.look(listeners, within, now);
        self.record(recorded);
        Ok(())
    }

    fn ledgers(&mut self, ledgers: &[Ledger]) -> io::Result<()> {
        let now = self.now();
        self.board.state().host.ledgers(ledgers);
        self.recorder.ledgers(ledgers, now);
        Ok(())
    }
}

/// The listeners that there are now: those that were looked at, and those before that are
/// elsewhere.
fn merged(
    before: &[Arc<Snapshot>],
    looked: &[Snapshot],
    within: Option<&BTreeSet<u32>>,
) -> Arc<[Arc<Snapshot>]> {
    let known: HashSet<_> = looked.iter().map(Snapshot::key).collect();
    let stays = |one: &&Arc<Snapshot>| {
        within.is_some_and(|within| !within.contains(&one.netns)) && !known.contains(&one.key())
    };
    let open = looked.iter().filter(|one| !one.is_closed());
    let elsewhere = before.iter().filter(stays).map(Arc::clone);
    elsewhere.chain(open.cloned().map(Arc::new)).collect()
}
