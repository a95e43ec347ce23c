//! What the agent costs beside node_exporter and a loop of `ss`: CPU time while a thousand
//! listeners in a hundred network namespaces have nothing to do, or one of them is flooded.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use live_tests::Room;
use queue_trace::lab::{
    Family, Netns,
    raw::{Flood, flood},
};

use crate::{
    cpu,
    scale::{allow_files, inhabit},
};

const NAMESPACES: usize = 100;
/// In each of them.
const LISTENERS: u16 = 10;
/// As Prometheus scrapes by default in many places.
const SCRAPES: Duration = Duration::from_secs(15);
/// What has begun is not at rest yet.
const SETTLING: Duration = Duration::from_secs(15);

/// What is measured.
pub struct Idle<'a> {
    /// The program.
    pub program: &'a Path,
    /// How it attaches.
    pub attach: &'a str,
    /// node_exporter, if it is there.
    pub node_exporter: Option<&'a Path>,
    /// How long each is measured.
    pub time: Duration,
    /// The names of those that are wanted; none: all are.
    pub only: &'a [String],
}

impl Idle<'_> {
    /// Prints a table of what each takes at rest.
    pub fn at_rest(&self) {
        let crowd = crowd();
        let time = self.time;
        println!("at rest, {} s each", time.as_secs());
        println!("| | CPU a minute, ms | of one core | resident, KiB |");
        println!("|---|---:|---:|---:|");
        if self.wants("agent") {
            let ours = self.agent();
            row("`queue-trace agent`, scraped every 15 s", time, &ours, "");
            let refused = ours.refused.1 - ours.refused.0;
            if refused > 0 {
                // It looks every second while something is refused, wherever that is.
                println!("not at rest: {refused} refusals on this machine meanwhile");
            }
        }
        if let Some(theirs) = self.exporter() {
            row("node_exporter, scraped every 15 s", time, &theirs, "");
        }
        if self.wants("ss") {
            let one = polled(&[&crowd[0].0], time, |_| Command::new("ss"));
            row("`ss -ltn` every second, one namespace", time, &one, "");
        }
        if !self.wants("nsenter") {
            return;
        }
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
            "",
        );
    }

    /// The same while a listener with a full accept queue is sent so many SYNs a second, each of
    /// which is dropped. Fails if the agent does not count each of them.
    pub fn flooded(&self, rate: u32) {
        let crowd = crowd();
        let room = Room::new(Family::V4, 4, &[("net.ipv4.tcp_syncookies", 0)]);
        let _clients = room.connect(5);
        let time = self.time;
        println!(
            "{rate} SYNs a second, each dropped, {} s each",
            time.as_secs()
        );
        println!(
            "| | CPU a minute, ms | of one core | resident, KiB | SYNs sent | sender's CPU a SYN, ns |"
        );
        println!("|---|---:|---:|---:|---:|---:|");
        let print = |what, taken: &Taken, sent: &Sent| {
            let more = format!(
                " {} | {} |",
                sent.syns,
                sent.cpu.as_nanos() / u128::from(sent.syns.max(1))
            );
            row(what, time, taken, &more);
        };
        let (nothing, sent) = while_flooded(&room, rate, || {
            thread::sleep(time);
            Taken::default()
        });
        print("nothing", &nothing, &sent);
        let (ours, sent) = while_flooded(&room, rate, || self.agent());
        print("`queue-trace agent`, scraped every 15 s", &ours, &sent);
        let counted = ours.refused.1 - ours.refused.0;
        let unexplained = sum(&ours.answer, |line| {
            line.starts_with("queue_trace_unexplained_events")
        });
        println!(
            "the agent counted {counted} refusals while it was measured; unexplained: {unexplained}"
        );
        // Some packets are on their way.
        assert!(counted > 0 && unexplained <= 2, "{}", ours.answer);
        if self.wants("node_exporter")
            && let (Some(theirs), sent) = while_flooded(&room, rate, || self.exporter())
        {
            print("node_exporter, scraped every 15 s", &theirs, &sent);
        }
        if !self.wants("ss") {
            return;
        }
        let (one, sent) = while_flooded(&room, rate, || {
            polled(&[&crowd[0].0], time, |_| Command::new("ss"))
        });
        print("`ss -ltn` every second, one namespace", &one, &sent);
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn agent(&self) -> Taken {
        let address = free_address();
        let mut agent = Command::new(self.program);
        let at = address.to_string();
        agent.args(["agent", "--attach", self.attach, "--listen", &at]);
        let ours = scraped(&mut agent, address, self.time);
        assert!(
            ours.answer.contains("queue_trace_listeners"),
            "the agent serves no metrics"
        );
        ours
    }

    fn exporter(&self) -> Option<Taken> {
        let address = free_address();
        let program = self.node_exporter.filter(|_| self.wants("node_exporter"))?;
        let mut exporter = Command::new(program);
        exporter.arg(format!("--web.listen-address={address}"));
        let theirs = scraped(&mut exporter, address, self.time);
        assert!(theirs.answer.contains("node_sockstat"), "no node_exporter");
        Some(theirs)
    }
}

type Crowd = Vec<(Netns, Vec<TcpListener>, std::sync::mpsc::Sender<()>)>;

/// Listeners to which nobody comes.
fn crowd() -> Crowd {
    allow_files();
    println!(
        "{} listeners in {NAMESPACES} network namespaces",
        NAMESPACES * usize::from(LISTENERS)
    );
    (0..NAMESPACES).map(|_| inhabit(LISTENERS)).collect()
}

/// What a flood sent.
struct Sent {
    syns: u64,
    /// What it took the sender, in whose context the kernel handles what is sent on loopback.
    cpu: Duration,
}

/// Floods at an even pace while something is done.
fn while_flooded<R>(room: &Room, rate: u32, work: impl FnOnce() -> R) -> (R, Sent) {
    let over = AtomicBool::new(false);
    let send = || {
        let mut syns = 0;
        while !over.load(Ordering::Relaxed) {
            let some = Flood {
                per_second: Some(rate),
                ..Flood::hasty(rate / 4)
            };
            syns += u64::from(flood(room.address, &some)?.sent);
        }
        Ok(syns)
    };
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let before = cpu::own();
            let syns = room.netns.run(send).unwrap();
            Sent {
                syns,
                cpu: cpu::own().saturating_sub(before),
            }
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        (done, sender.join().unwrap())
    })
}

/// What something took.
#[derive(Default)]
struct Taken {
    cpu: Duration,
    resident: Option<u64>,
    answer: String,
    /// By the first answer and by the last.
    refused: (u64, u64),
}

/// `more`: cells of further columns.
fn row(what: &str, time: Duration, taken: &Taken, more: &str) {
    let part = taken.cpu.as_secs_f64() / time.as_secs_f64();
    let resident = taken.resident.map(|kib| kib.to_string());
    println!(
        "| {what} | {:.1} | {:.3}% | {} |{more}",
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
    let (began, before) = (Instant::now(), cpu::of(child.id()).unwrap());
    let mut answer = scrape(address).unwrap();
    let first = refused(&answer);
    while began.elapsed() < time {
        answer = scrape(address).unwrap();
        thread::sleep(SCRAPES.min(time.saturating_sub(began.elapsed())));
    }
    answer = scrape(address).unwrap_or(answer);
    let cpu = cpu::of(child.id()).unwrap().saturating_sub(before);
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
    let (began, before) = (Instant::now(), cpu::of_children());
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
        cpu: cpu::of_children().saturating_sub(before),
        ..Taken::default()
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
    sum(answer, |line| {
        line.starts_with("queue_trace_host_outcomes_total{") && line.contains("_dropped")
    })
}

/// The values of such lines, added up.
fn sum(answer: &str, of: impl Fn(&str) -> bool) -> u64 {
    let series = answer.lines().filter(|line| of(line));
    let counts = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    counts.map(|count| count as u64).sum()
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn resident(child: &Child) -> u64 {
    crate::churn::memory(child.id())
}
