//! The live stream: attach, print what happens until told to stop, close the books.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    os::fd::AsFd,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use queue_trace_common::{
    outcome::Outcome,
    settings::{CountKey, Loss},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    time::{ClockId, clock_gettime},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    books::Books,
    btf::Types,
    canary, cli,
    decode::decode,
    event::{Event, Listener, rfc3339},
    host::{Host, OLDEST},
    netns::{self, Door},
    plan::{Family, Offers, Plan, PlanError},
    privilege,
    probe::{AttachError, Probe, Wanted},
    sink::{AttachPlan, Header, LossNote, SCHEMA, Sink, Total},
};

/// When to stop without being told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Until {
    /// After this many events.
    pub count: Option<u64>,
    /// After this time.
    pub duration: Option<Duration>,
}

/// A tracer that is attached and has not begun to print.
pub struct Live {
    probe: Probe,
    books: Books,
    plan: Plan,
    wanted: Wanted,
    host: Host,
    listeners: HashMap<u64, Listener>,
    loss: Loss,
    missed: u64,
    undecoded: u64,
    events: u64,
    /// Records that came during the self-test and are not its own.
    early: Vec<Bytes>,
    /// What was held back and has been printed as counts.
    held: HashMap<CountKey, u64>,
    signals: StopSignals,
    began_ns: i128,
}

/// What the command line asks of the kernel side.
///
/// # Errors
/// If a namespace named by its path is not there.
pub fn wanted(trace: &cli::Trace) -> Result<Wanted> {
    let netns = trace
        .netns
        .iter()
        .map(|arg| match arg {
            cli::NetnsArg::Id(id) => Ok((*id, None)),
            cli::NetnsArg::Path(path) => netns::id(path)
                .map(|id| (id, Some(Door::Path(path.clone()))))
                .with_context(|| format!("--netns {}: no network namespace there", path.display())),
        })
        .collect::<Result<_>>()?;
    Ok(Wanted {
        outcomes: trace.wanted(),
        ports: trace.ports.clone(),
        addrs: trace.addrs.clone(),
        clients: trace.clients.clone(),
        netns,
        rate: trace.rate,
        debug: trace.verbose >= 2,
    })
}

/// Refuses to begin where it cannot end well, and says what to do.
///
/// # Errors
/// If the kernel is too old, or privileges are missing.
pub fn fit_to_attach(host: &Host) -> Result<()> {
    if host.too_old() {
        let (major, minor) = OLDEST;
        bail!(
            "Linux {} is too old: queue-trace needs {major}.{minor} or newer (BPF ring buffer)",
            host.release
        );
    }
    if !host.privileges.suffice() {
        bail!(
            "attaching to the kernel takes root, or the capabilities CAP_BPF and CAP_PERFMON: \
             run it with sudo"
        );
    }
    Ok(())
}

/// Attaches by the best plan that the kernel does not refuse.
///
/// # Errors
/// If none is left, or the one asked for is refused.
pub fn attach(
    host: &Host,
    types: &Types,
    kernel: &cli::Kernel,
    wanted: &Wanted,
) -> Result<(Probe, Plan)> {
    let mut offers = Offers::look(host, types);
    loop {
        let plan = Plan::make(kernel.attach, wanted.outcomes, &offers)
            .map_err(|error| with_remedy(error, host))?;
        match Probe::attach(&plan, types, wanted) {
            Ok(probe) => return Ok((probe, plan)),
            Err(AttachError::Refused { hook, why }) => {
                log::debug!("{}: refused: {why}", plan.family.name());
                offers.refused(plan.family, hook, why);
            }
            Err(AttachError::Other(error)) => return Err(error),
        }
    }
}

/// Runs the self-test, notes in the plan what it found, and removes its traces. Gives
/// the records of others that came meanwhile.
///
/// # Errors
/// If the kernel side's maps cannot be read.
pub fn self_test(probe: &mut Probe, plan: &mut Plan) -> Result<Vec<Bytes>> {
    let canary = match canary::sing(probe) {
        Ok(canary) => canary,
        Err(error) => {
            plan.amiss
                .push(format!("the self-test could not be made: {error:#}"));
            return Ok(Vec::new());
        }
    };
    plan.heard(&canary.silent);
    let mut early = Vec::new();
    loop {
        let records = probe.take_records();
        if records.is_empty() {
            break;
        }
        let others = records.into_iter().filter(|record| {
            decode(record.clone(), 0).map_or(true, |event| event.netns != canary.netns)
        });
        early.extend(others);
    }
    probe.forget(canary.netns)?;
    Ok(early)
}

fn with_remedy(error: PlanError, host: &Host) -> anyhow::Error {
    let mut remedy = match &error {
        PlanError::Refused { .. } => {
            "leave --attach out to use what the kernel allows (queue-trace check shows it)"
                .to_owned()
        }
        PlanError::None(_) => "queue-trace check shows what this kernel offers".to_owned(),
    };
    if let Some(mode) = &host.lockdown {
        remedy.push_str(&format!("; the kernel is locked down ({mode})"));
    }
    anyhow::Error::new(error)
        .context(remedy)
        .context("cannot attach")
}

impl Live {
    /// Attaches, opens the books, and lets go of the privileges that were needed only
    /// for that.
    ///
    /// # Errors
    /// Whatever keeps it from attaching, with what to do about it.
    pub fn begin(kernel: &cli::Kernel, wanted: Wanted) -> Result<Self> {
        // From here on a signal ends the run in good order.
        let signals = StopSignals::listen().context("cannot handle signals")?;
        let began_ns = wall_now();
        let host = Host::look();
        fit_to_attach(&host)?;
        let types = Types::read(kernel.btf.as_deref())?;
        let (mut probe, mut plan) = attach(&host, &types, kernel, &wanted)?;
        plan.amiss.extend_from_slice(probe.notes());
        let early = if kernel.no_canary {
            Vec::new()
        } else {
            self_test(&mut probe, &mut plan)?
        };
        let books = Books::open(&probe, &wanted)?;
        privilege::keep_only_what_is_needed()?;
        Ok(Self {
            probe,
            books,
            plan,
            wanted,
            host,
            listeners: HashMap::new(),
            loss: Loss::default(),
            missed: 0,
            undecoded: 0,
            events: 0,
            early,
            held: HashMap::new(),
            signals,
            began_ns,
        })
    }

    fn header(&self) -> Header {
        Header {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            time: rfc3339(self.began_ns),
            host: self.host.name.clone(),
            kernel: self.host.release.clone(),
            attach: AttachPlan::from(&self.plan),
        }
    }

    /// Says on standard error what cannot be told here, and that it is attached.
    pub fn announce(&self) {
        for limit in self.plan.limits() {
            eprintln!("note: {limit}");
        }
        let what = match self.plan.family {
            Family::Tracepoint => "tracepoints",
            Family::Fentry | Family::Kprobe => "kernel functions",
        };
        eprintln!(
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
        let mut messages = if self.wanted.debug {
            Some(self.probe.messages().map_err(io::Error::other)?)
        } else {
            None
        };
        tokio::pin!(stop);
        let deadline = tokio::time::sleep(until.duration.unwrap_or(FOREVER));
        tokio::pin!(deadline);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut audit = tokio::time::interval(AUDIT);
        audit.reset();
        sink.header(&self.header())?;
        sink.flush()?;
        loop {
            tokio::select! {
                // Told to stop goes before more to print.
                biased;
                () = self.signals.any() => return Ok(()),
                () = &mut stop => return Ok(()),
                () = &mut deadline => return Ok(()),
                ready = self.probe.ready() => {
                    ready?;
                    if self.print_records(sink, until.count)? {
                        return Ok(());
                    }
                }
                _ = tick.tick() => {
                    if let Some(messages) = &mut messages {
                        messages.flush();
                    }
                    self.note_loss(sink)?;
                    self.print_held(sink)?;
                    sink.flush()?;
                    if reader_is_gone() {
                        return Err(ErrorKind::BrokenPipe.into());
                    }
                }
                _ = audit.tick() => {
                    let news = self.books.audit(&self.probe).map_err(io::Error::other)?;
                    for ledger in &news {
                        sink.ledger(ledger)?;
                        eprintln!(
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

    /// Prints what was held back since the last time, a count for each listener and
    /// outcome.
    fn print_held(&mut self, sink: &mut dyn Sink) -> io::Result<()> {
        let counts = self.probe.counts().map_err(io::Error::other)?;
        let (mono_ns, wall_ns) = (monotonic_now(), wall_now());
        for (key, counted) in counts.iter().filter(|(_, counted)| counted.held > 0) {
            let printed = self.held.entry(*key).or_default();
            let news = counted.held - *printed;
            *printed = counted.held;
            let Some(outcome) = Outcome::of(key.outcome).filter(|_| news > 0) else {
                continue;
            };
            let listener = self.listener(key);
            sink.event(&Event {
                mono_ns,
                wall_ns,
                outcome,
                count: news,
                netns: key.netns,
                listener,
                local: None,
                client: None,
                accept_queue: None,
                syn_queue: None,
                sysctls: None,
                retransmits: None,
                moved: key.moved,
                cpu: None,
                sk: key.sk,
            })?;
            self.events += news;
        }
        Ok(())
    }

    /// What is known of the listener of a count.
    fn listener(&self, key: &CountKey) -> Listener {
        let inode = (key.inode != 0).then_some(key.inode);
        match self.listeners.get(&key.sk) {
            Some(listener) if listener.inode == inode => *listener,
            _ => Listener {
                addr: None,
                port: key.port,
                cookie: None,
                inode,
            },
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
                sink.event(&event)
            }
            Err(error) => {
                self.undecoded += 1;
                log::debug!("{error}");
                Ok(())
            }
        }
    }

    fn note_loss(&mut self, sink: &mut dyn Sink) -> io::Result<()> {
        let loss = self.probe.loss().map_err(io::Error::other)?;
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
        let ledgers = self.books.close(&self.probe).map_err(io::Error::other)?;
        self.note_loss(sink)?;
        // From here on nothing more comes, and what is counted is what is printed.
        self.probe.detach();
        if !self.enough(most) {
            self.print_records(sink, most)?;
            self.print_held(sink)?;
        }
        let totals = self.totals().map_err(io::Error::other)?;
        sink.summary(&totals)?;
        for ledger in &ledgers {
            sink.ledger(ledger)?;
        }
        sink.flush()
    }

    /// The exact counts of the outcomes wanted, by listener.
    fn totals(&self) -> Result<Vec<Total>> {
        let mut totals: Vec<Total> = Vec::new();
        for (key, count) in self.probe.counts()? {
            let Some(outcome) = Outcome::of(key.outcome) else {
                continue;
            };
            if self.wanted.outcomes & outcome.bit() == 0 {
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

/// How often the books are looked at while running.
const AUDIT: Duration = Duration::from_secs(10);

/// Longer than any incident.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The signals that end a run in good order.
struct StopSignals([Signal; 3]);

impl StopSignals {
    fn listen() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn any(&mut self) {
        let Self([interrupt, terminate, hangup]) = self;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Whether standard output is a pipe that nobody reads any more. Without this a quiet
/// listener would keep us attached until the next refusal.
fn reader_is_gone() -> bool {
    let stdout = io::stdout();
    let mut fds = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
        && fds[0].revents().contains(PollFlags::ERR)
}

/// Nanoseconds since 1970.
fn wall_now() -> i128 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

fn monotonic_now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Why the stream ended badly, with what to do. `output` is its name.
#[must_use]
pub fn write_error(error: io::Error, output: &str) -> anyhow::Error {
    let remedy = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            " (make room and start again; all lines that are whole in it are good)"
        }
        _ => "",
    };
    anyhow::Error::new(error).context(format!("cannot write to {output}{remedy}"))
}
