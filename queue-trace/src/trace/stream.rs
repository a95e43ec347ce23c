//! The live stream: attach, print what happens until told to stop, close the ledgers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io::{self, ErrorKind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use queue_trace_common::{
    outcome::{
        ACK_DROPPED_ACCEPT_QUEUE_FULL, ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
        COOKIE_DROPPED_ACCEPT_QUEUE_FULL, Outcome, SYN_DROPPED_ACCEPT_QUEUE_FULL,
    },
    queue::QueueKey,
    settings::{CountKey, Counted},
};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    aside::Aside,
    kernel::{
        decode::decode,
        host::Host,
        namespaces::KnownNamespaces,
        plan::{HookFamily, Plan},
        privilege,
        probe::{AT_ONCE, CountActivity, CountedNetns, Probe},
        selection::Selection,
        session::Session,
    },
    listeners::{Look, News, Watch},
    model::{
        clients::ClientTable,
        clock::{monotonic_now, wall_now},
        event::{Name, rfc3339},
        lines::{AttachPlan, Counts, Header, SCHEMA, Total},
        snapshot::Snapshot,
        socket::Listener,
    },
    options::KernelOptions,
    sink::{Sink, Wanted},
    stderr::say,
    stop::{StopSignals, reader_is_gone},
    trace::{
        audit::{Audit, Audited},
        losses::Losses,
        seconds::Seconds,
        totals::{self, Totals},
        withheld::{self, Withheld},
    },
};

/// When to stop without being told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Until {
    /// After this many events.
    pub count: Option<u64>,
    /// After this time.
    pub duration: Option<Duration>,
    /// When nobody reads standard output any more, as it goes there.
    pub reader_is_gone: bool,
}

/// A tracer that is attached and has not begun to print.
pub struct Live {
    probe: Probe,
    plan: Plan,
    selection: Selection,
    host: Host,
    audit: Aside<Audit, Result<Audited>>,
    /// Ends an audit that nobody waits for any more.
    give_up_audit: Arc<AtomicBool>,
    /// Which listeners the stream has reported.
    watch: Aside<Watch, Result<News>>,
    give_up_look: Arc<AtomicBool>,
    /// The listeners that there were when it was attached, to be reported first.
    listed: Vec<Snapshot>,
    /// What could not be looked at, a sentence each.
    notes: Vec<String>,
    /// Those among them that are about listeners.
    unlisted: Vec<String>,
    listeners: HashMap<QueueKey, Listener>,
    /// The one of them that is there for the latest record: mostly it is the next one's too.
    told_last: Option<(QueueKey, Listener)>,
    clients: ClientTable,
    losses: Losses,
    undecoded: u64,
    events: u64,
    /// Records that came during the self-test and are not its own.
    early: Vec<Bytes>,
    /// What was withheld and has been printed as counts.
    held: Withheld,
    /// What was counted when the counts were last printed.
    counted: HashMap<CountKey, u64>,
    /// What tells whether anything was counted since then.
    activity: Option<CountActivity>,
    /// How often listeners had been made or closed at the latest turn of a second.
    changes: u64,
    /// When they came and went by the dozen.
    churned: Instant,
    /// The namespaces in which a full accept queue refused something since the latest look.
    refused_in: BTreeSet<u32>,
    /// What was counted of listeners that are over.
    over: Totals,
    /// Counts of namespaces that were gone at the latest audit.
    gone: HashMap<CountKey, u64>,
    signals: StopSignals,
    began_ns: i128,
}

/// Why the stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// There was as much as was asked for.
    Enough,
    /// By a signal.
    BySignal,
}

impl Live {
    /// Attaches, opens the ledgers, and lets go of the privileges that were needed only
    /// for that.
    ///
    /// # Errors
    /// Whatever keeps it from attaching, with what to do about it.
    pub fn begin(kernel: &KernelOptions, selection: Selection) -> Result<Self> {
        // From here on a signal ends the run in good order.
        let signals = StopSignals::listen().context("cannot handle signals")?;
        Self::begin_until(kernel, selection, signals)
    }

    /// The same, until one of these signals comes.
    ///
    /// # Errors
    /// Whatever keeps it from attaching, with what to do about it.
    pub fn begin_until(
        kernel: &KernelOptions,
        selection: Selection,
        signals: StopSignals,
    ) -> Result<Self> {
        let session = Session::begin(kernel, &selection)?;
        let namespaces = KnownNamespaces::default();
        let audit = Audit::open(
            session.probe.reader(),
            &selection,
            session.plan.observable,
            namespaces.clone(),
        )?;
        privilege::keep_only_what_is_needed()?;
        let Session {
            probe,
            plan,
            host,
            early,
        } = session;
        let mut watch =
            Watch::new(probe.reader(), plan.family, selection.clone()).sharing(namespaces);
        // Before anybody hears that it is attached: maps are read for it.
        let listed = watch.all()?;
        let unlisted = listed.notes;
        let mut notes = unlisted.clone();
        notes.extend(audit.unread().map(|(netns, why)| {
            format!("the counters of netns {netns} cannot be read, so it has no ledger: {why}")
        }));
        Ok(Self {
            clients: ClientTable::new(selection.networks),
            give_up_look: watch.given_up(),
            watch: Aside::new(watch),
            give_up_audit: audit.given_up(),
            audit: Aside::new(audit),
            listed: listed.rows,
            notes,
            unlisted,
            probe,
            plan,
            selection,
            host,
            listeners: HashMap::new(),
            told_last: None,
            losses: Losses::default(),
            undecoded: 0,
            events: 0,
            early,
            held: Withheld::default(),
            counted: HashMap::new(),
            activity: None,
            changes: 0,
            churned: Instant::now(),
            refused_in: BTreeSet::new(),
            over: Totals::default(),
            gone: HashMap::new(),
            signals,
            // What came before was not observed.
            began_ns: wall_now(),
        })
    }

    /// Compares the two sides so often where nothing was counted.
    pub fn at_rest(&mut self, calm: Duration) {
        if let Some(audit) = self.audit.idle() {
            audit.at_rest(calm);
        }
    }

    /// How it is attached, and what can be seen.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Why some listeners may be missing, a sentence each.
    #[must_use]
    pub fn unlisted(&self) -> &[String] {
        &self.unlisted
    }

    /// The machine.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    fn header(&self) -> Header {
        Header {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time: rfc3339(self.began_ns),
            host: self.host.name.clone(),
            kernel: self.host.release.clone(),
            attach: AttachPlan {
                filters: Some(self.selection.words.clone()),
                ..AttachPlan::from(&self.plan)
            },
        }
    }

    /// Says on standard error what cannot be told here, and that it is attached.
    pub fn announce(&self) {
        for note in self.plan.limits().iter().chain(&self.notes) {
            say!("note: {note}");
        }
        let what = match self.plan.family {
            HookFamily::Tracepoint => "tracepoints",
            HookFamily::Fentry | HookFamily::Kprobe => "kernel functions",
        };
        say!(
            "ready: attached by {} to {} {what}",
            self.plan.family.name(),
            self.plan.attached_to().len()
        );
    }

    /// Prints until told to stop, by a signal, by `until`, or by the future `stop`;
    /// then the summary.
    ///
    /// # Errors
    /// What the sink's writer says; a reader that went away is not an error.
    pub async fn run(
        mut self,
        sink: &mut dyn Sink,
        until: Until,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let streamed = self.stream(sink, until, stop).await;
        let ended = match streamed {
            Ok(ended) => self.end(sink, until.count, ended).await,
            Err(error) => Err(error),
        };
        ended.or_else(|error| match error.kind() {
            ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        })
    }

    async fn stream(
        &mut self,
        sink: &mut dyn Sink,
        until: Until,
        stop: impl Future<Output = ()>,
    ) -> io::Result<Ended> {
        let mut messages = if self.selection.debug {
            Some(self.probe.messages().map_err(io::Error::other)?)
        } else {
            None
        };
        tokio::pin!(stop);
        let deadline = tokio::time::sleep(until.duration.unwrap_or(FOREVER));
        tokio::pin!(deadline);
        let mut audit = Instant::now() + AUDIT;
        let seconds = Seconds::begin()?;
        let mut churn = tokio::time::interval(CHURN);
        churn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut programs = Instant::now();
        let mut rested = Instant::now();
        let mut more = false;
        let mut wanted = Wanted::Nothing;
        sink.header(&self.header())?;
        print_rows(sink, &std::mem::take(&mut self.listed))?;
        sink.flush()?;
        loop {
            tokio::select! {
                // Told to stop goes before more to print, and what is due each second before
                // records, of which there may be no end.
                biased;
                () = self.signals.any() => return Ok(Ended::BySignal),
                () = &mut stop => return Ok(Ended::Enough),
                () = &mut deadline => return Ok(Ended::Enough),
                news = self.watch.done() => self.print_news(sink, news?)?,
                audited = self.audit.done() => self.print_audited(sink, audited?)?,
                turn = seconds.turn() => {
                    turn?;
                    if let Some(messages) = &mut messages {
                        messages.flush();
                    }
                    let now = Instant::now();
                    self.note_churn();
                    let calm = self.is_calm();
                    let ask = now >= programs;
                    self.note_loss(sink, ask)?;
                    if ask {
                        programs = now + if calm { PROGRAMS_AT_REST } else { PROGRAMS };
                    }
                    if calm {
                        self.clients.end_second();
                    } else {
                        self.print_counts(sink)?;
                    }
                    sink.flush()?;
                    if until.reader_is_gone && reader_is_gone() {
                        return Err(ErrorKind::BrokenPipe.into());
                    }
                    wanted = wanted.and(sink.second()?);
                    // If somebody is looking for news, a second later.
                    if self.begin_wanted_look(&wanted)? {
                        wanted = Wanted::Nothing;
                    } else if wanted == Wanted::Nothing && !self.begin_look_at_trouble()? {
                        self.begin_look(1)?;
                    }
                    if now >= audit {
                        audit = now + AUDIT;
                        self.begin_audit()?;
                    }
                }
                // Listeners that come and go by the hundred fill the kernel side's tables. Where
                // few do, the turn of each second is enough, and notices the first of more.
                _ = churn.tick(), if self.churned.elapsed() < SETTLED => self.begin_look(MANY)?,
                ready = async {
                    if more {
                        // So that signals are heard meanwhile.
                        tokio::task::yield_now().await;
                        return Ok(());
                    }
                    tokio::time::sleep_until(rested).await;
                    self.probe.ready().await
                } => {
                    ready?;
                    more = self.print_records(sink, until.count)?;
                    if self.enough(until.count) {
                        return Ok(Ended::Enough);
                    }
                    if self.selection.rate != 0 {
                        rested = Instant::now() + REST;
                    }
                }
            }
        }
    }

    /// Has somebody look at what the sink wants to see, if nobody is looking. Whether it did.
    fn begin_wanted_look(&mut self, wanted: &Wanted) -> io::Result<bool> {
        let begun = match wanted {
            Wanted::Nothing => return Ok(false),
            Wanted::All => self.watch.begin(Watch::all)?,
            Wanted::In(places) => {
                let places = places.union(&self.refused_in).copied().collect();
                self.watch.begin(|watch| watch.some(places))?
            }
        };
        if begun {
            self.refused_in.clear();
        }
        Ok(begun)
    }

    /// Has somebody look why queues are full, if some are or were a second ago, and nobody is
    /// looking. Whether it did.
    fn begin_look_at_trouble(&mut self) -> io::Result<bool> {
        let trouble = |watch: &mut Watch| watch.has_trouble();
        let trouble = self.watch.idle().is_some_and(trouble) || !self.refused_in.is_empty();
        if !trouble || self.watch.is_busy() {
            return Ok(false);
        }
        let refused_in = std::mem::take(&mut self.refused_in);
        self.watch.begin(move |watch| watch.trouble(&refused_in))
    }

    /// Has somebody look for news of listeners, if so many were made or closed, and nobody is
    /// looking.
    fn begin_look(&mut self, changes: u64) -> io::Result<()> {
        let may = self.watch.idle();
        if may.is_some_and(|watch| watch.may_have_news(changes)) {
            self.watch.begin(Watch::news)?;
        }
        Ok(())
    }

    /// Has somebody compare the two sides, if that may tell something new and nobody does.
    fn begin_audit(&mut self) -> io::Result<()> {
        if self.audit.idle().is_some_and(|audit| audit.may_have_news()) {
            self.audit.begin(|audit: &mut Audit| audit.news())?;
        }
        Ok(())
    }

    /// Prints the listeners that were made or closed, and takes the counts of those that are
    /// over out of the kernel.
    fn print_news(&mut self, sink: &mut dyn Sink, news: Result<News>) -> io::Result<()> {
        let news = news.map_err(io::Error::other)?;
        for note in &news.notes {
            log::info!("{note}");
        }
        match &news.looked {
            Some(extent) => sink.look(&news.rows, extent)?,
            None => print_rows(sink, &news.rows)?,
        }
        if !news.over.is_empty() || !news.counts_over.is_empty() {
            let retired = self.probe.retire(|key| news.is_over(key));
            retired.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Prints differences that are new, and takes the counts of namespaces that are gone out of
    /// the kernel.
    fn print_audited(&mut self, sink: &mut dyn Sink, audited: Result<Audited>) -> io::Result<()> {
        let audited = audited.map_err(io::Error::other)?;
        if let Some(there) = &audited.there {
            let forgotten = self.probe.forget_namespaces(|netns| there.contains(&netns));
            forgotten.map_err(io::Error::other)?;
        }
        sink.ledgers(&audited.ledgers)?;
        for ledger in &audited.news {
            sink.ledger(ledger)?;
            say!(
                "warning: {} movements of the kernel's counters in netns {} are unexplained",
                ledger.unexplained.unwrap_or(0),
                ledger.netns
            );
        }
        let counts = self.probe.counts().map_err(io::Error::other)?;
        let gone = counts
            .iter()
            .filter(|(key, _)| audited.gone.contains(&CountedNetns::of(key)));
        let gone: HashMap<_, _> = gone.map(|(key, counted)| (*key, counted.seen)).collect();
        // One that is only not to be found may still count. It is over if nothing came between
        // two audits.
        let before = std::mem::replace(&mut self.gone, gone);
        let gone = &self.gone;
        if before.iter().any(|(key, seen)| gone.get(key) == Some(seen)) {
            let is_over = |key: &CountKey| {
                gone.get(key)
                    .is_some_and(|seen| before.get(key) == Some(seen))
            };
            self.probe.retire(is_over).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Prints records that are in the ring; whether there are more.
    fn print_records(&mut self, sink: &mut dyn Sink, most: Option<u64>) -> io::Result<bool> {
        let offset = wall_now() - i128::from(monotonic_now());
        let taken = self.probe.take_records();
        let more = taken.len() == AT_ONCE;
        for record in std::mem::take(&mut self.early).into_iter().chain(taken) {
            self.print_record(sink, record, offset)?;
            self.count_shown(sink);
            if self.enough(most) {
                break;
            }
        }
        sink.flush()?;
        Ok(more)
    }

    /// Prints what was counted since the last time, and of it what was withheld of the
    /// stream.
    fn print_counts(&mut self, sink: &mut dyn Sink) -> io::Result<()> {
        self.activity = Some(self.probe.activity());
        let counts = self.probe.counts().map_err(io::Error::other)?;
        self.print_held(sink, &counts)?;
        let mut news: BTreeMap<_, (Listener, BTreeMap<String, u64>)> = BTreeMap::new();
        for (key, counted) in &counts {
            let printed = self.counted.insert(*key, counted.seen).unwrap_or(0);
            let Some(outcome) = Outcome::of(key.outcome) else {
                continue;
            };
            if counted.seen > printed && ACCEPT_QUEUE_FULL.contains(&outcome.tag) {
                self.refused_in.insert(key.netns);
            }
            if counted.seen > printed && self.plan.observable & outcome.bit() != 0 {
                let listener = self.listener(key);
                let whose = (key.netns, listener.port, listener.addr, listener.inode);
                let (_, outcomes) = news.entry(whose).or_insert((listener, BTreeMap::new()));
                *outcomes.entry(Name(outcome).to_string()).or_default() += counted.seen - printed;
            }
        }
        let (mono_ns, time) = (monotonic_now(), rfc3339(wall_now()));
        for ((netns, ..), (listener, outcomes)) in news {
            sink.counts(&Counts {
                time: time.clone(),
                mono_ns: Some(mono_ns),
                netns,
                listener,
                outcomes,
            })?;
        }
        self.release();
        if self.listeners.len() > LISTENERS {
            let counted: HashSet<_> = counts.keys().map(socket).collect();
            self.listeners.retain(|key, _| counted.contains(key));
        }
        Ok(())
    }

    /// Whether nothing was counted since the counts were printed.
    fn is_calm(&self) -> bool {
        self.activity == Some(self.probe.activity())
    }

    /// Notes how many listeners came and went in this second.
    fn note_churn(&mut self) {
        let changes = self.probe.listener_changes();
        if changes.wrapping_sub(self.changes) >= SOME {
            self.churned = Instant::now();
        }
        self.changes = changes;
    }

    /// Lets go of the counts that are over, of which all has been printed now.
    fn release(&mut self) {
        for (key, counted) in self.probe.release() {
            let listener = self.listener(&key);
            let tag = key.outcome;
            self.over.add(key.netns, listener, tag, counted.seen);
            withheld::forget(&mut self.counted, &key, counted.seen);
            self.held.forget(&key, counted.held);
            self.listeners.remove(&socket(&key));
            self.told_last = None;
        }
    }

    /// Prints what was withheld since the last time.
    fn print_held(
        &mut self,
        sink: &mut dyn Sink,
        counts: &HashMap<CountKey, Counted>,
    ) -> io::Result<()> {
        let mut held = std::mem::take(&mut self.held);
        let events = held.news(counts, |key| self.listener(key));
        self.held = held;
        for event in events {
            self.clients.take(&event);
            sink.event(&event)?;
            self.events += event.count;
        }
        self.count_shown(sink);
        self.clients.end_second();
        Ok(())
    }

    /// What is known of the listener of a count.
    fn listener(&self, key: &CountKey) -> Listener {
        let known = self.listeners.get(&socket(key));
        known.map_or_else(|| withheld::listener_of(key), |listener| *listener)
    }

    /// Where the sink leaves out some of the events, those count that it shows.
    fn count_shown(&mut self, sink: &dyn Sink) {
        if let Some(shown) = sink.shown() {
            self.events = shown;
        }
    }

    /// Whether as many events were printed as were asked for.
    fn enough(&self, most: Option<u64>) -> bool {
        most.is_some_and(|most| self.events >= most)
    }

    fn print_record(&mut self, sink: &mut dyn Sink, record: Bytes, offset: i128) -> io::Result<()> {
        match decode(record, offset) {
            Ok(event) => {
                self.events += event.count;
                // Of one that is not known there may be several.
                if let (sk, Some(inode)) = (event.sk, event.listener.inode)
                    && sk != 0
                {
                    let told = (QueueKey { sk, inode }, event.listener);
                    if self.told_last != Some(told) {
                        self.told_last = Some(told);
                        self.listeners.insert(told.0, told.1);
                    }
                }
                self.clients.take(&event);
                sink.event(&event)
            }
            Err(error) => {
                self.undecoded += 1;
                log::debug!("{error}");
                Ok(())
            }
        }
    }

    /// `programs`: whether it is asked how each of them fared.
    fn note_loss(&mut self, sink: &mut dyn Sink, programs: bool) -> io::Result<()> {
        let undecoded = std::mem::take(&mut self.undecoded);
        let note = self.losses.news(&self.probe, undecoded, programs);
        match note.map_err(io::Error::other)? {
            Some(note) => sink.loss(&note),
            None => Ok(()),
        }
    }

    /// Drains the ring, closes the ledgers, writes the summary.
    async fn end(
        &mut self,
        sink: &mut dyn Sink,
        most: Option<u64>,
        ended: Ended,
    ) -> io::Result<()> {
        let (audited, look, told) = self.last_looks(ended).await?;
        // What could not be looked at before has been said.
        for note in look.notes.iter().filter(|note| !self.notes.contains(*note)) {
            say!("note: {note}");
        }
        if audited.skipped > 0 {
            say!(
                "note: the counters of {} namespaces, in which nothing was seen, were not read in \
                 time: they have no ledger",
                audited.skipped
            );
        }
        self.note_loss(sink, true)?;
        // From here on nothing more comes, and what is counted is what is printed.
        self.probe.detach();
        if !self.enough(most) {
            while self.print_records(sink, most)? && !self.enough(most) {}
            self.print_counts(sink)?;
        }
        print_rows(sink, &told)?;
        if let Some(watch) = self.watch.idle() {
            let news = watch.add_to(look).map_err(io::Error::other)?;
            print_rows(sink, &news.rows)?;
        }
        let totals = self.totals().map_err(io::Error::other)?;
        sink.summary(&totals)?;
        for clients in self.clients.top(MOST_NETWORKS) {
            sink.clients(&clients)?;
        }
        for ledger in &audited.ledgers {
            sink.ledger(ledger)?;
        }
        sink.end(&rfc3339(wall_now()))
    }

    /// Closes the ledgers, and looks at the listeners once more. A signal makes it short: a
    /// difference is not looked at again, and listeners may be left out. Also the listeners whose
    /// end was found by a look that was under way: each end is told once.
    async fn last_looks(&mut self, ended: Ended) -> io::Result<(Audited, Look, Vec<Snapshot>)> {
        // What else is under way is of no interest any more.
        self.give_up(true);
        let mut told = Vec::new();
        let (patience, wait) = match ended {
            Ended::Enough => (PATIENCE, PATIENCE),
            Ended::BySignal => (SHORT_PATIENCE, 4 * SHORT_PATIENCE),
        };
        let mut until = Instant::now() + wait;
        while self.audit.is_busy() || self.watch.is_busy() {
            tokio::select! {
                audited = self.audit.done() => drop(audited?),
                news = self.watch.done() => {
                    let rows = news?.map(|news| news.rows).unwrap_or_default();
                    told.extend(rows.into_iter().filter(Snapshot::is_closed));
                }
                () = tokio::time::sleep_until(until) => break,
            }
        }
        self.give_up(false);
        let (mut audited, mut look) = (None, None);
        let auditing = self.audit.begin(|audit| audit.close())?;
        let looking = self.watch.begin(|watch| Ok(News::from(watch.look())))?;
        let mut hurry = Instant::now() + patience;
        let mut hurried = false;
        until = Instant::now() + PATIENCE;
        while auditing && audited.is_none() || looking && look.is_none() {
            tokio::select! {
                biased;
                done = self.audit.done() => audited = Some(done?),
                done = self.watch.done() => look = Some(done?),
                () = self.signals.any() => {
                    // Who asks once more does not want to wait for what is left.
                    if ended == Ended::BySignal || hurried {
                        break;
                    }
                    hurry = Instant::now();
                }
                () = tokio::time::sleep_until(hurry), if !hurried => {
                    hurried = true;
                    self.give_up(true);
                }
                () = tokio::time::sleep_until(until) => break,
            }
        }
        if audited.is_none() {
            say!("warning: the kernel's counters were not read in time: there is no ledger");
        }
        if look.is_none() {
            say!("note: the last look at the listeners did not end in time: it is left out");
        }
        let audited = audited.transpose().map_err(io::Error::other)?;
        let look = look.transpose().map_err(io::Error::other)?;
        Ok((
            audited.unwrap_or_default(),
            look.map(Look::from).unwrap_or_default(),
            told,
        ))
    }

    fn give_up(&self, yes: bool) {
        for flag in [&self.give_up_audit, &self.give_up_look] {
            flag.store(yes, Ordering::Relaxed);
        }
    }

    /// The exact counts of the outcomes that were asked for, by listener.
    fn totals(&mut self) -> Result<Vec<Total>> {
        let counts = self.probe.counts()?;
        let now = counts
            .iter()
            .map(|(key, counted)| (key.netns, self.listener(key), key.outcome, counted.seen));
        let wanted = |tag: u8| self.selection.outcomes & (1 << tag) != 0;
        let all = now.chain(self.over.iter());
        Ok(totals::lines(all.filter(|(.., tag, _)| wanted(*tag))))
    }
}

/// The socket of a count.
fn socket(key: &CountKey) -> QueueKey {
    QueueKey {
        sk: key.sk,
        inode: key.inode,
    }
}

/// What a full accept queue refuses.
const ACCEPT_QUEUE_FULL: [u8; 4] = [
    SYN_DROPPED_ACCEPT_QUEUE_FULL,
    ACK_DROPPED_ACCEPT_QUEUE_FULL,
    ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
    COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
];

/// Networks of clients in the recording, for each listener.
const MOST_NETWORKS: usize = 20;

fn print_rows(sink: &mut dyn Sink, rows: &[Snapshot]) -> io::Result<()> {
    rows.iter().try_for_each(|row| sink.listener(row))
}

/// How long records gather before they are taken, where their rate is limited: the kernel side
/// wakes us for the first one only, and being woken costs more than printing one. The ring
/// has room for two seconds of them.
const REST: Duration = Duration::from_millis(50);

/// Listeners that may be known until it is asked which of them are still counted: more than the
/// kernel side has places for. One whose counts found none leaves it in no other way.
const LISTENERS: usize = 16_384;

/// How often the two sides are compared while running: at the turn of a second after so long.
const AUDIT: Duration = Duration::from_millis(9500);

/// How often it is asked whether listeners come and go by the hundred, and how many that is.
const CHURN: Duration = Duration::from_millis(100);
const MANY: u64 = 256;

/// It is not asked, as each time wakes a processor, where for so long fewer than so many were made
/// and closed in a second. The tables have room for some thousands.
const SETTLED: Duration = Duration::from_secs(10);
const SOME: u64 = 32;

/// How often it is asked whether the kernel left out runs of the programs, which takes four system
/// calls for each: at the turn of a second after so long.
const PROGRAMS: Duration = Duration::from_millis(4500);
const PROGRAMS_AT_REST: Duration = Duration::from_millis(9500);

/// How long the last looks may take, and when they are hurried if somebody waits for the end.
const PATIENCE: Duration = Duration::from_secs(30);
const SHORT_PATIENCE: Duration = Duration::from_millis(500);

/// Longer than any incident.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Why the stream ended badly, with what to do. `output` is its name.
#[must_use]
pub fn write_error(error: io::Error, output: &str) -> anyhow::Error {
    // The kernel side's errors come wrapped, with words of their own.
    if error.kind() == ErrorKind::Other && error.get_ref().is_some() {
        return anyhow::Error::new(error);
    }
    let remedy = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            " (make room and start again; all lines that are whole in it are good)"
        }
        _ => "",
    };
    anyhow::Error::new(error).context(format!("cannot write to {output}{remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_output_is_blamed_for_what_it_says() {
        let said = |error| format!("{:#}", write_error(error, "standard output"));
        let full = said(io::Error::from(ErrorKind::StorageFull));
        assert!(full.contains("cannot write to standard output"), "{full}");
        assert!(full.contains("make room"), "{full}");
        let why = anyhow::anyhow!("no such key").context("cannot read the counts");
        let other = said(io::Error::other(why));
        assert!(!other.contains("cannot write"), "{other}");
        assert!(other.contains("cannot read the counts"), "{other}");
    }
}
