//! `queue-trace agent`: always on. Metrics for scrapers and OTLP, a recording of each incident
//! with the minute before it.

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::{Arc, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use queue_trace_common::outcome::{Kind, of_kind};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::{
    agent::{
        board::{Board, BoardState},
        host::{Attached, HostSeries},
        labels::{Allowed, Ephemeral},
        otlp::{self, Endpoint, RefusalQueue},
        pace::Pace,
        recorder::{Folder, Recorder},
        series::Fleet,
        server::{self, Bound},
        settings::{ListenAt, Said, Settings, duration, size},
        systemd,
        text::MetricsFormat,
        trouble::Troubles,
        watch::{NewSettings, Watcher},
        words::{self, Announcer},
    },
    kernel::{host::Host, plan::Plan, selection::Selection, session},
    listeners::pods::PodNames,
    options::KernelOptions,
    stderr::say,
    stop::StopSignals,
    trace::stream::{Live, Until, write_error},
};

/// Options of `agent`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace agent                                 metrics on http://127.0.0.1:9801/metrics\n  \
    queue-trace agent --incidents /var/lib/queue-trace --keep 1G\n  \
    queue-trace agent --listen 0.0.0.0:9801 --otlp http://127.0.0.1:4318\n  \
    queue-trace agent --once > /var/lib/node_exporter/queue-trace.prom")]
pub struct AgentArgs {
    /// Serve metrics here: an address with a port, or unix:PATH. May be given several times.
    /// Default: 127.0.0.1:9801, or the sockets that systemd hands over
    #[arg(long, value_name = "ADDR:PORT|unix:PATH")]
    pub listen: Vec<ListenAt>,

    /// Send metrics and refusals to this OTLP endpoint, as protobuf over HTTP
    #[arg(long, value_name = "URL")]
    pub otlp: Option<Endpoint>,

    /// Settings that may change while it runs, in TOML; read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Words of a listener's owner that are labels, or none
    #[arg(long, value_name = "NAME[,NAME]")]
    pub labels: Option<Allowed>,

    /// Listeners with series of their own; what the others count is in one series [default: 256]
    #[arg(long, value_name = "N")]
    pub max_listeners: Option<usize>,

    /// Ports that are one label, or none. Default: those of ip_local_port_range
    #[arg(long, value_name = "A-B")]
    pub ephemeral_ports: Option<Ephemeral>,

    /// Write a recording of each incident into this folder
    #[arg(long, value_name = "FOLDER")]
    pub incidents: Option<PathBuf>,

    /// Bytes of all incident recordings together; the oldest go [default: 1G]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub keep: Option<u64>,

    /// Age of the oldest incident recording [default: 30d]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub keep_for: Option<Duration>,

    /// How much of the time before an incident is in its recording [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub before: Option<Duration>,

    /// How long after the last refusal an incident recording ends [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub after: Option<Duration>,

    /// Bytes of one incident recording [default: 64M]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub incident_size: Option<u64>,

    /// Incident recordings of one listener in a day [default: 10]
    #[arg(long, value_name = "N")]
    pub incidents_a_day: Option<u32>,

    /// Limit of records a second from each CPU; the others are counted all the same
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,

    /// How often listeners are looked at where something happened; each second where something
    /// is refused; all of them every fourth time
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "15s")]
    pub look: Duration,

    /// Watch for this time, print the metrics once as text, and end: for the textfile collector
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "1s", value_parser = duration)]
    pub once: Option<Duration>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: KernelOptions,
}

impl AgentArgs {
    fn said(&self) -> Said {
        Said {
            labels: self.labels.clone(),
            max_listeners: self.max_listeners,
            ephemeral_ports: self.ephemeral_ports.clone(),
            before: self.before,
            after: self.after,
            incident_size: self.incident_size,
            incidents_a_day: self.incidents_a_day,
            keep: self.keep,
            keep_for: self.keep_for,
        }
    }

    fn settings(&self) -> Result<Settings> {
        Settings::of(&self.said(), self.config.as_deref())
    }

    /// The sockets to serve on.
    fn bind(&self) -> Result<Vec<Bound>> {
        if self.once.is_some() {
            return Ok(Vec::new());
        }
        let mut bound = Bound::from_systemd()?;
        for listen in &self.listen {
            bound.push(Bound::bind(listen)?);
        }
        if bound.is_empty() {
            bound.push(Bound::bind(&ListenAt::default())?);
        }
        Ok(bound)
    }
}

/// How often the two sides of the ledger are compared where nothing was counted.
const AUDIT_AT_REST: Duration = Duration::from_secs(60);

/// Runs until a signal comes.
///
/// # Errors
/// What keeps it from attaching, or from listening.
pub async fn run(args: &AgentArgs) -> Result<()> {
    let settings = args.settings()?;
    session::fit(&Host::look())?;
    // Before attaching: what cannot be had costs nothing yet.
    let bound = args.bind()?;
    let own = bound.iter().filter_map(Bound::inode).collect();
    let folder = match &args.incidents {
        Some(path) => {
            let folder = Folder::open(path);
            Some(folder.with_context(|| format!("--incidents {}", path.display()))?)
        }
        None => None,
    };
    let signals = StopSignals::but_hangup().context("cannot handle signals")?;
    let hangup = signal(SignalKind::hangup()).context("cannot handle signals")?;
    if let Some(folder) = &folder {
        take_up(folder);
    }
    let selection = Selection {
        outcomes: of_kind(Kind::Refusal) | of_kind(Kind::Routine),
        rate: args.rate,
        ..Selection::default()
    };
    let mut live = Live::begin_until(&args.kernel, selection, signals)?;
    live.at_rest(AUDIT_AT_REST);
    let board = Arc::new(Board::new(BoardState {
        fleet: Fleet::new(settings.limits.clone(), PodNames::new("/var/log".as_ref())),
        host: HostSeries::new(attached(live.plan(), live.host(), args)),
        listeners: Arc::new([]),
        not_ready: None,
    }));
    let refusals = args
        .otlp
        .as_ref()
        .map(|_| Arc::new(RefusalQueue::default()));
    let _serving = if args.once.is_none() {
        let host = live.host().name.clone();
        Some(serve(
            bound,
            &board,
            args.otlp.clone(),
            refusals.clone(),
            host,
        )?)
    } else {
        None
    };
    let new_settings = NewSettings::default();
    let recorder = Recorder::new(folder, settings.bounds).context("no memory for the recorder")?;
    let troubles = Troubles::new(live.plan().observable);
    let mut watcher = Watcher::new(
        Arc::clone(&board),
        recorder,
        troubles,
        refusals,
        Arc::clone(&new_settings),
        if args.once.is_some() {
            Announcer::nothing()
        } else {
            Announcer::default()
        },
        Pace::new(args.look, live.plan().observable).but_for(own),
    );
    live.announce();
    let status = format!("attached by {}", live.plan().family.name());
    systemd::ready(&status);
    let until = Until {
        duration: args.once,
        ..Until::default()
    };
    live.run(
        &mut watcher,
        until,
        renew(args, hangup, new_settings, status.clone()),
    )
    .await
    .map_err(|error| write_error(error, "the recording"))?;
    systemd::stopping();
    if args.once.is_some() {
        let text = MetricsFormat::Prometheus.write(Arc::new(board.exposition()))?;
        io::stdout()
            .write_all(text.as_bytes())
            .context("cannot write to standard output")?;
    }
    Ok(())
}

/// Reads the settings again at each SIGHUP. Never ends.
async fn renew(
    args: &AgentArgs,
    mut hangup: tokio::signal::unix::Signal,
    new: NewSettings,
    status: String,
) {
    while hangup.recv().await.is_some() {
        systemd::reloading();
        match args.settings() {
            Ok(settings) => {
                *new.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
                say!("note: the settings were read again");
            }
            Err(error) => say!("warning: the settings stay as they were: {error:#}"),
        }
        systemd::ready(&status);
    }
    std::future::pending::<()>().await;
}

/// What an earlier run left without a diagnosis, as it was killed: says so, and makes it.
fn take_up(folder: &Folder) {
    let Ok(kept) = folder.list() else {
        return;
    };
    for kept in kept.into_iter().filter(|kept| kept.diagnosis.is_none()) {
        say!(
            "note: {} was cut off: its recorder was killed",
            kept.recording.display()
        );
        words::recorded(&crate::agent::recorder::Finished {
            path: kept.recording,
            bytes: kept.bytes,
            cut: true,
        });
    }
}

fn attached(plan: &Plan, host: &Host, args: &AgentArgs) -> Attached {
    Attached {
        family: plan.family.name().to_owned(),
        hooks: plan.attached_to().len(),
        kernel: host.release.clone(),
        self_test: match (args.kernel.no_canary, plan.warnings.is_empty()) {
            (true, _) => "left_out",
            (false, true) => "passed",
            (false, false) => "warned",
        },
        observable: plan.observable,
    }
}

/// The thread that serves. Dropping it ends it, and waits until its sockets are gone.
struct Serving {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has said what it had to say.
            let _ = thread.join();
        }
    }
}

/// Serves and sends, in a thread of its own that can do nothing else: the stream never waits
/// for a scraper.
fn serve(
    bound: Vec<Bound>,
    board: &Arc<Board>,
    endpoint: Option<Endpoint>,
    refusals: Option<Arc<RefusalQueue>>,
    host: String,
) -> Result<Serving> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the server's event loop")?;
    let board = Arc::clone(board);
    let (told, started) = std::sync::mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = thread::Builder::new()
        .name("serve".to_owned())
        .spawn(move || {
            let began = crate::kernel::privilege::keep_nothing().and_then(|()| {
                let _inside = runtime.enter();
                server::serve(bound, &board).context("cannot serve")
            });
            let failed = began.is_err();
            // Whoever waits for it is there.
            let _ = told.send(began);
            if failed {
                return;
            }
            runtime.block_on(async {
                let send = async {
                    if let (Some(endpoint), Some(refusals)) = (endpoint, refusals) {
                        let endpoint = Arc::new(endpoint);
                        tokio::join!(
                            otlp::send_metrics(
                                Arc::clone(&endpoint),
                                Arc::clone(&board),
                                host.clone()
                            ),
                            otlp::send_logs(endpoint, refusals, Arc::clone(&board), host),
                        );
                    }
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = send => {}
                    _ = stopped => {}
                }
            });
        })
        .context("cannot start the server")?;
    started.recv().context("the server did not start")??;
    Ok(Serving {
        stop: Some(stop),
        thread: Some(thread),
    })
}
