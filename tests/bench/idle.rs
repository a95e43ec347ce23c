//! What the agent costs at rest, beside node_exporter and a loop of `ss`: CPU time while a
//! thousand listeners in a hundred network namespaces have nothing to do.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use queue_trace::lab::Netns;

use crate::scale::{allow_files, children, inhabit};

const NAMESPACES: usize = 100;
/// In each of them.
const LISTENERS: u16 = 10;
/// As Prometheus scrapes by default in many places.
const SCRAPES: Duration = Duration::from_secs(15);
/// What has begun is not at rest yet.
const SETTLING: Duration = Duration::from_secs(15);

/// Prints a table of what each takes in so much time.
pub fn run(program: &Path, attach: &str, node_exporter: Option<&Path>, time: Duration) {
    allow_files();
    let crowd: Vec<_> = (0..NAMESPACES).map(|_| inhabit(LISTENERS)).collect();
    println!(
        "{} listeners in {NAMESPACES} network namespaces, {} s each",
        NAMESPACES * usize::from(LISTENERS),
        time.as_secs()
    );
    println!("| | CPU a minute, ms | of one core | resident, KiB |");
    println!("|---|---:|---:|---:|");
    let address = free_address();
    let mut agent = Command::new(program);
    agent.args([
        "agent",
        "--attach",
        attach,
        "--listen",
        &address.to_string(),
    ]);
    let ours = scraped(&mut agent, address, time);
    row("`queue-trace agent`, scraped every 15 s", time, &ours);
    assert!(
        ours.answer.contains("queue_trace_listeners"),
        "the agent serves no metrics"
    );
    let refused = ours.refused.1 - ours.refused.0;
    if refused > 0 {
        // It looks every second while something is refused, wherever that is.
        println!("not at rest: {refused} refusals on this machine meanwhile");
    }
    if let Some(node_exporter) = node_exporter {
        let address = free_address();
        let mut exporter = Command::new(node_exporter);
        exporter.arg(format!("--web.listen-address={address}"));
        let theirs = scraped(&mut exporter, address, time);
        assert!(theirs.answer.contains("node_sockstat"), "no node_exporter");
        row("node_exporter, scraped every 15 s", time, &theirs);
    }
    let own = |_: &Netns| Command::new("ss");
    let one = polled(
        &crowd[..1].iter().map(|it| &it.0).collect::<Vec<_>>(),
        time,
        own,
    );
    row("`ss -ltn` every second, one namespace", time, &one);
    let all: Vec<_> = crowd.iter().map(|it| &it.0).collect();
    let each = polled(&all, time, |netns| {
        let mut enter = Command::new("nsenter");
        enter
            .arg(format!("--net={}", netns.path().display()))
            .arg("ss");
        enter
    });
    row(
        "`nsenter` and `ss -ltn` every second, all namespaces",
        time,
        &each,
    );
}

/// What something took.
struct Taken {
    cpu: Duration,
    resident: Option<u64>,
    answer: String,
    /// By the first answer and by the last.
    refused: (u64, u64),
}

fn row(what: &str, time: Duration, taken: &Taken) {
    let part = taken.cpu.as_secs_f64() / time.as_secs_f64();
    let resident = taken.resident.map(|kib| kib.to_string());
    println!(
        "| {what} | {:.0} | {:.3}% | {} |",
        part * 60_000.0,
        part * 100.0,
        resident.unwrap_or_default()
    );
}

/// Starts a server of metrics, and scrapes it.
fn scraped(command: &mut Command, address: SocketAddr, time: Duration) -> Taken {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !scrape(address).is_some_and(|answer| answer.contains(" 200 ")) {
        assert!(Instant::now() < deadline, "{command:?} never answered");
        assert_eq!(child.try_wait().unwrap(), None, "{command:?} ended");
        thread::sleep(Duration::from_millis(200));
    }
    thread::sleep(SETTLING);
    let (began, before) = (Instant::now(), cpu(&child));
    let mut answer = scrape(address).unwrap();
    let first = refused(&answer);
    while began.elapsed() < time {
        answer = scrape(address).unwrap();
        thread::sleep(SCRAPES.min(time.saturating_sub(began.elapsed())));
    }
    let cpu = cpu(&child).saturating_sub(before);
    let resident = Some(resident(&child));
    let _ = child.kill();
    let _ = child.wait();
    Taken {
        cpu,
        resident,
        refused: (first, refused(&answer)),
        answer,
    }
}

/// Runs `ss` in each namespace once a second.
fn polled(crowd: &[&Netns], time: Duration, by: impl Fn(&Netns) -> Command) -> Taken {
    let (began, before) = (Instant::now(), children());
    while began.elapsed() < time {
        let next = Instant::now() + Duration::from_secs(1);
        for netns in crowd {
            let mut command = by(netns);
            let output = command.args(["-H", "-l", "-t", "-n"]).output().unwrap();
            assert!(output.status.success(), "{command:?}");
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    // On a machine that is too slow a turn takes longer than a second: per turn, then.
    Taken {
        cpu: children().saturating_sub(before),
        resident: None,
        answer: String::new(),
        refused: (0, 0),
    }
}

fn scrape(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let request = "GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// What the agent has seen refused.
fn refused(answer: &str) -> u64 {
    let series = answer.lines().filter(|line| {
        line.starts_with("queue_trace_host_outcomes_total{") && line.contains("_dropped")
    });
    let counts = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    counts.map(|count| count as u64).sum()
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// CPU time of a process with all its threads (`utime` and `stime`, proc_pid_stat(5)).
fn cpu(child: &Child) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields = rest.split(' ').skip(11).take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

fn resident(child: &Child) -> u64 {
    crate::churn::memory(child.id())
}
