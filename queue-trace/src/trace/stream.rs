//! The live stream: attach, print what happens until told to stop, close the books.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, ErrorKind},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use queue_trace_common::{
    loss::Loss,
    outcome::Outcome,
    settings::{CountKey, Counted},
};
use tokio::time::Instant;

use crate::{
    kernel::{
        decode::decode,
        host::Host,
        plan::{Family, Plan},
        privilege,
        probe::Probe,
        selection::Selection,
        session::Session,
    },
    listeners::{Row, Watch, look},
    model::{
        clients::ClientTable,
        clock::{monotonic_now, wall_now},
        event::{Name, rfc3339},
        lines::{AttachPlan, Counts, Header, LossNote, SCHEMA, Total},
        sight::Sight,
        socket::Listener,
    },
    options::Kernel,
    sink::Sink,
    stderr::say,
    stop::{StopSignals, reader_is_gone},
    trace::{audit::Audit, withheld, withheld::Withheld},
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
    audit: Audit,
    plan: Plan,
    selection: Selection,
    host: Host,
    listeners: HashMap<u64, Listener>,
    clients: ClientTable,
    loss: Loss,
    missed: u64,
    undecoded: u64,
    events: u64,
    /// Records that came during the self-test and are not its own.
    early: Vec<Bytes>,
    /// What was held back and has been printed as counts.
    held: Withheld,
    /// What was counted when the counts were last printed.
    counted: HashMap<CountKey, u64>,
    /// Which listeners the stream has told of.
    watch: Watch,
    /// The listeners that there were when it was attached, to be told first.
    listed: Vec<Row>,
    signals: StopSignals,
    began_ns: i128,
}

impl Live {
    /// Attaches, opens the books, and lets go of the privileges that were needed only
    /// for that.
    ///
    /// # Errors
    /// Whatever keeps it from attaching, with what to do about it.
    pub fn begin(kernel: &Kernel, selection: Selection) -> Result<Self> {
        // From here on a signal ends the run in good order.
        let signals = StopSignals::listen().context("cannot handle signals")?;
        Self::begin_until(kernel, selection, signals)
    }

    /// The same, until one of these signals comes.
    ///
    /// # Errors
    /// Whatever keeps it from attaching, with what to do about it.
    pub fn begin_until(
        kernel: &Kernel,
        selection: Selection,
        signals: StopSignals,
    ) -> Result<Self> {
        let began_ns = wall_now();
        let mut session = Session::begin(kernel, &selection)?;
        let audit = Audit::open(&mut session.probe, &selection)?;
        privilege::keep_only_what_is_needed()?;
        let Session {
            mut probe,
            plan,
            host,
            early,
        } = session;
        let mut watch = Watch::new(plan.family);
        // Before anybody hears that it is attached: maps are read for it.
        let listed = watch.all(&mut probe, &selection)?;
        Ok(Self {
            clients: ClientTable::new(selection.networks),
            watch,
            listed,
            probe,
            audit,
            plan,
            selection,
            host,
            listeners: HashMap::new(),
            loss: Loss::default(),
            missed: 0,
            undecoded: 0,
            events: 0,
            early,
            held: Withheld::default(),
            counted: HashMap::new(),
            signals,
            began_ns,
        })
    }

    /// How it is attached, and what can be seen.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
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
            attach: AttachPlan::from(&self.plan),
        }
    }

    /// Says on standard error what cannot be told here, and that it is attached.
    pub fn announce(&self) {
        for limit in self.plan.limits() {
            say!("note: {limit}");
        }
        let what = match self.plan.family {
            Family::Tracepoint => "tracepoints",
            Family::Fentry | Family::Kprobe => "kernel functions",
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
        let ended = streamed.and_then(|()| self.end(sink, until.count));
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
    ) -> io::Result<()> {
        let mut messages = if self.selection.debug {
            Some(self.probe.messages().map_err(io::Error::other)?)
        } else {
            None
        };
        tokio::pin!(stop);
        let deadline = tokio::time::sleep(until.duration.unwrap_or(FOREVER));
        tokio::pin!(deadline);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut rested = Instant::now();
        let mut audit = tokio::time::interval(AUDIT);
        audit.reset();
        sink.header(&self.header())?;
        print_rows(sink, &std::mem::take(&mut self.listed))?;
        sink.flush()?;
        loop {
            tokio::select! {
                // Told to stop goes before more to print.
                biased;
                () = self.signals.any() => return Ok(()),
                () = &mut stop => return Ok(()),
                () = &mut deadline => return Ok(()),
                ready = async {
                    tokio::time::sleep_until(rested).await;
                    self.probe.ready().await
                } => {
                    ready?;
                    if self.print_records(sink, until.count)? {
                        return Ok(());
                    }
                    if self.selection.rate != 0 {
                        rested = Instant::now() + REST;
                    }
                }
                _ = tick.tick() => {
                    if let Some(messages) = &mut messages {
                        messages.flush();
                    }
                    self.note_loss(sink)?;
                    self.print_counts(sink)?;
                    self.print_news(sink)?;
                    if sink.second()? {
                        self.show_all(sink)?;
                    }
                    sink.flush()?;
                    if until.reader_is_gone && reader_is_gone() {
                        return Err(ErrorKind::BrokenPipe.into());
                    }
                }
                _ = audit.tick() => {
                    let ledgers = self.audit.close(&mut self.probe).map_err(io::Error::other)?;
                    sink.books(&ledgers)?;
                    for ledger in &self.audit.news(ledgers) {
                        sink.ledger(ledger)?;
                        say!(
                            "warning: {} movements of the kernel's counters in netns {} are unexplained",
                            ledger.unexplained.unwrap_or(0),
                            ledger.netns
                        );
                    }
                }
            }
        }
    }

    /// Prints what is in the ring; whether that was enough.
    fn print_records(&mut self, sink: &mut dyn Sink, most: Option<u64>) -> io::Result<bool> {
        let offset = wall_now() - i128::from(monotonic_now());
        loop {
            let mut records = std::mem::take(&mut self.early);
            records.extend(self.probe.take_records());
            if records.is_empty() {
                sink.flush()?;
                return Ok(false);
            }
            for record in records {
                self.print_record(sink, record, offset)?;
                if self.enough(most) {
                    sink.flush()?;
                    return Ok(true);
                }
            }
        }
    }

    /// Prints what was counted since the last time, and of it what was held back of the
    /// stream.
    fn print_counts(&mut self, sink: &mut dyn Sink) -> io::Result<()> {
        let counts = self.probe.counts().map_err(io::Error::other)?;
        self.print_held(sink, &counts)?;
        let mut news: BTreeMap<_, (Listener, BTreeMap<String, u64>)> = BTreeMap::new();
        for (key, counted) in &counts {
            let printed = self.counted.insert(*key, counted.seen).unwrap_or(0);
            let Some(outcome) = Outcome::of(key.outcome) else {
                continue;
            };
            if counted.seen > printed && self.plan.observable & outcome.bit() != 0 {
                let listener = self.listener(key);
                let whose = (key.netns, listener.port, listener.addr, listener.inode);
                let (_, outcomes) = news.entry(whose).or_insert((listener, BTreeMap::new()));
                *outcomes.entry(Name(outcome).to_string()).or_default() += counted.seen - printed;
            }
        }
        let time = rfc3339(wall_now());
        for ((netns, ..), (listener, outcomes)) in news {
            sink.counts(&Counts {
                time: time.clone(),
                netns,
                listener,
                outcomes,
            })?;
        }
        Ok(())
    }

    /// Prints what was held back since the last time.
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
        self.clients.end_second();
        Ok(())
    }

    /// What is known of the listener of a count.
    fn listener(&self, key: &CountKey) -> Listener {
        let told = withheld::listener_of(key);
        match self.listeners.get(&key.sk) {
            Some(listener) if listener.inode == told.inode => *listener,
            _ => told,
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
                self.listeners.insert(event.sk, event.listener);
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

    /// Prints the listeners that were made or closed.
    fn print_news(&mut self, sink: &mut dyn Sink) -> io::Result<()> {
        let rows = self.watch.news(&mut self.probe, &self.selection);
        print_rows(sink, &rows.map_err(io::Error::other)?)
    }

    /// Shows all listeners to a sink that wants to see them.
    fn show_all(&mut self, sink: &mut dyn Sink) -> io::Result<()> {
        let began = Instant::now();
        let rows = self.watch.all(&mut self.probe, &self.selection);
        let sights: Vec<_> = rows
            .map_err(io::Error::other)?
            .iter()
            .map(Sight::from)
            .collect();
        sink.look(&sights, began.elapsed())
    }

    fn note_loss(&mut self, sink: &mut dyn Sink) -> io::Result<()> {
        let loss = self.probe.loss();
        let undecoded = std::mem::take(&mut self.undecoded);
        let missed = self.probe.missed().map_err(io::Error::other)?;
        let note = LossNote {
            missed: missed - self.missed,
            undecoded,
            ..LossNote::between(&self.loss, &loss, rfc3339(wall_now()))
        };
        self.loss = loss;
        self.missed = missed;
        if note.parts().next().is_some() {
            sink.loss(&note)?;
        }
        Ok(())
    }

    /// Drains the ring, closes the books, writes the summary.
    fn end(&mut self, sink: &mut dyn Sink, most: Option<u64>) -> io::Result<()> {
        let ledgers = self
            .audit
            .close(&mut self.probe)
            .map_err(io::Error::other)?;
        self.note_loss(sink)?;
        // The kernel's lists go with the rest.
        let look = look(&self.selection, self.probe.iterators());
        // From here on nothing more comes, and what is counted is what is printed.
        self.probe.detach();
        if !self.enough(most) {
            self.print_records(sink, most)?;
            self.print_counts(sink)?;
        }
        let rows = self.watch.add_to(look, &mut self.probe, &self.selection);
        print_rows(sink, &rows.map_err(io::Error::other)?)?;
        let totals = self.totals().map_err(io::Error::other)?;
        sink.summary(&totals)?;
        for clients in self.clients.top(MOST_NETWORKS) {
            sink.clients(&clients)?;
        }
        for ledger in &ledgers {
            sink.ledger(ledger)?;
        }
        sink.end(&rfc3339(wall_now()))
    }

    /// The exact counts of the outcomes wanted, by listener.
    fn totals(&mut self) -> Result<Vec<Total>> {
        let mut totals: Vec<Total> = Vec::new();
        for (key, count) in self.probe.counts()? {
            let Some(outcome) = Outcome::of(key.outcome) else {
                continue;
            };
            if self.selection.outcomes & outcome.bit() == 0 {
                continue;
            }
            let listener = self.listener(&key);
            let count = count.seen;
            let same = totals.iter_mut().find(|total| {
                total.netns == key.netns
                    && total.listener == listener
                    && total.outcome.tag == outcome.tag
            });
            match same {
                Some(total) => total.count += count,
                None => totals.push(Total {
                    netns: key.netns,
                    listener,
                    outcome,
                    count,
                }),
            }
        }
        totals.sort_by_key(|total| {
            (
                total.netns,
                total.listener.port,
                total.listener.addr,
                total.listener.inode,
                total.outcome.tag,
            )
        });
        Ok(totals)
    }
}

/// Networks of clients in the recording, for each listener.
const MOST_NETWORKS: usize = 20;

fn print_rows(sink: &mut dyn Sink, rows: &[Row]) -> io::Result<()> {
    for row in rows {
        sink.sight(&Sight::from(row))?;
    }
    Ok(())
}

/// How long records gather before they are taken, where their rate is limited: the kernel side
/// wakes us for the first one only, and being woken costs more than printing one. The ring
/// has room for two seconds of them.
const REST: Duration = Duration::from_millis(50);

/// How often the books are looked at while running.
const AUDIT: Duration = Duration::from_secs(10);

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
