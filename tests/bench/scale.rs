//! What a look at all listeners takes, by how many there are, and how long a signal has to
//! wait then. Fails if a look misses some, or if its time grows faster than what it looks at.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use live_tests::{Launch, Room};
use queue_trace::lab::{
    Family, Listen, Netns, half_open,
    raw::{Flood, Wire, flood},
};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::Value;

use crate::cpu;

/// Listeners of each row.
const LISTENERS: [u32; 7] = [10, 100, 500, 1000, 2000, 5000, 10_000];
/// Half-open requests of each row.
const REQUESTS: [u32; 5] = [10, 1000, 10_000, 50_000, 100_000];
/// Namespaces of each row.
const NAMESPACES: [u32; 5] = [1, 20, 200, 1000, 2000];

/// Prints a table.
pub fn run(program: &Path, attach: &str) {
    allow_files();
    println!("| | a look, CPU s | a look, s | attach and look, s | end after a signal, s |");
    println!("|---|---:|---:|---:|---:|");
    let look = |what: &str, which: &[&str], least: &Found| row(what, program, attach, which, least);
    let netns = Netns::new().unwrap();
    let path = netns.path();
    let here = ["--netns", path.to_str().unwrap()];
    let mut crowd = Vec::new();
    let mut curve = Vec::new();
    for count in LISTENERS {
        while crowd.len() < count as usize {
            crowd.push(crowded(&netns, 1024 + crowd.len() as u16));
        }
        let what = format!("{count} listeners with two connections waiting");
        let least = Found {
            listeners: count.into(),
            waiting: 2 * u64::from(count),
            half_open: 0,
        };
        curve.push((count, look(&what, &here, &least)));
    }
    drop(crowd);
    let mut curves = vec![("listener", curve)];
    let large = [
        ("net.ipv4.tcp_syncookies", 0),
        ("net.core.somaxconn", 200_000),
        ("net.ipv4.tcp_max_syn_backlog", 400_000),
        // However slow the machine is, they are there until the end.
        ("net.ipv4.tcp_synack_retries", 10),
    ];
    let room = Room::new(Family::V4, 200_000, &large);
    let path = room.netns.path();
    let here = ["--netns", path.to_str().unwrap()];
    let mut sent = 0;
    let mut curve = Vec::new();
    for count in REQUESTS {
        sent = fill(&room, sent, count);
        let what = format!("one listener, {count} half-open requests");
        let least = Found {
            listeners: 1,
            waiting: 0,
            half_open: count.into(),
        };
        curve.push((count, look(&what, &here, &least)));
    }
    drop(room);
    curves.push(("half-open request", curve));
    let mut inhabited = Vec::new();
    let mut curve = Vec::new();
    for count in NAMESPACES {
        while inhabited.len() < count as usize {
            inhabited.push(inhabit(1));
        }
        let what = format!("{count} namespaces with a listener each");
        let least = Found {
            listeners: count.into(),
            ..Found::default()
        };
        curve.push((count, look(&what, &[], &least)));
    }
    curves.push(("namespace", curve));
    for (each, curve) in curves {
        // The kernel has one table of listeners for all namespaces, and walks all of it for each.
        judge(each, &curve, each == "namespace");
    }
}

/// Sends SYNs until so many requests are half-open: `lo` loses some where a CPU is behind, as the
/// answers of those before are sent again and again. The number of the next client.
fn fill(room: &Room, mut next: u32, count: u32) -> u32 {
    loop {
        let there = room.netns.run(|| half_open(room.address)).unwrap() as u32;
        let until = next + count.saturating_sub(there);
        if next == until {
            return next;
        }
        while next < until {
            let some = Flood {
                first: next,
                ..Flood::of((until - next).min(500))
            };
            let send = || {
                flood(room.address, &some)?;
                Wire::open(room.family)?.settle()
            };
            room.netns.run(send).unwrap();
            next += some.count;
        }
    }
}

/// What a look found.
#[derive(Debug, Default)]
struct Found {
    listeners: u64,
    /// Connections in their accept queues.
    waiting: u64,
    /// Requests in their SYN queues.
    half_open: u64,
}

impl Found {
    fn of(lines: &[u8]) -> Self {
        let mut found = Self::default();
        for line in lines.split(|byte| *byte == b'\n') {
            let Ok(line) = serde_json::from_slice::<Value>(line) else {
                continue;
            };
            if line["type"] == "listener" {
                let depth = |queue: &str| line[queue]["depth"].as_u64().unwrap_or(0);
                found.listeners += 1;
                found.waiting += depth("accept_queue");
                found.half_open += depth("syn_queue");
            }
        }
        found
    }

    fn has(&self, least: &Self) -> bool {
        self.listeners >= least.listeners
            && self.waiting >= least.waiting
            && self.half_open >= least.half_open
    }
}

/// Says what one more of them takes, and panics if that grows with their number: ten times as many
/// take ten times as long, or a hundred times where the kernel compares each with each, or less.
/// Twice that is left to chance.
fn judge(each: &str, curve: &[(u32, Duration)], by_pairs: bool) {
    let (Some(&(few, base)), Some(&(many, most))) = (curve.first(), curve.last()) else {
        return;
    };
    let one = most.saturating_sub(base) / (many - few);
    println!(
        "one more {each} takes {:.1} us of CPU, all else {:.2} s",
        one.as_secs_f64() * 1e6,
        base.as_secs_f64()
    );
    let tenth = curve.iter().find(|(count, _)| *count == many / 10);
    let (_, tenth) = tenth.expect("a row with a tenth of the last one's");
    // Some ticks of the clock are noise.
    let tenth = tenth.saturating_sub(base).max(Duration::from_millis(50));
    assert!(
        most.saturating_sub(base) <= if by_pairs { 200 } else { 20 } * tenth,
        "a look takes more for each {each} the more there are: {curve:?}"
    );
}

/// As many open files as this process may have.
pub fn allow_files() {
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// A listener in whose accept queue two connections wait. Their clients have left, as not every
/// machine lets a process have so many files open.
fn crowded(netns: &Netns, port: u16) -> TcpListener {
    let address = SocketAddr::new(Family::V4.loopback(), port);
    let make = || {
        let listener = Listen::default().on(address)?;
        for _ in 0..2 {
            drop(TcpStream::connect(address)?);
        }
        Ok(listener)
    };
    netns.run(make).unwrap()
}

/// A namespace with so many listeners, in which a thread lives until the value is dropped.
pub fn inhabit(listeners: u16) -> (Netns, Vec<TcpListener>, mpsc::Sender<()>) {
    let netns = Netns::new().unwrap();
    let all = (0..listeners).map(|one| SocketAddr::new(Family::V4.loopback(), 8080 + one));
    let listeners = netns
        .run(|| all.map(|address| Listen::default().on(address)).collect())
        .unwrap();
    let (stay, leave) = mpsc::channel::<()>();
    let path = netns.path();
    thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(move || {
            let namespace = fs::File::open(path).unwrap();
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind)
                .unwrap();
            // Ends with the sender.
            let _ = leave.recv();
        })
        .unwrap();
    (netns, listeners, stay)
}

/// Prints a row. The CPU time of a look, which found at least that.
fn row(what: &str, program: &Path, attach: &str, which: &[&str], least: &Found) -> Duration {
    let before = cpu::of_children();
    let began = Instant::now();
    let mut look = Command::new(program);
    look.args(["listeners", "--json"]).args(which);
    let output = look.output().unwrap();
    let (wall, taken) = (began.elapsed(), cpu::of_children().saturating_sub(before));
    assert!(output.status.success());
    let found = Found::of(&output.stdout);
    assert!(found.has(least), "{what}: a look found {found:?}");

    let began = Instant::now();
    let launch = Launch::of(
        program,
        ["--attach", attach, "--all", "--json", "-o", "/dev/null"],
    );
    let tracer = launch.args(which).start();
    let attached = began.elapsed();
    // In the middle of its work.
    thread::sleep(Duration::from_millis(1500));
    let asked = Instant::now();
    tracer.signal(Signal::TERM);
    let finished = tracer.wait();
    let end = asked.elapsed();
    assert!(finished.status.success(), "{}", finished.stderr);
    println!(
        "| {what} | {:.2} | {:.2} | {:.2} | {:.2} |",
        taken.as_secs_f64(),
        wall.as_secs_f64(),
        attached.as_secs_f64(),
        end.as_secs_f64()
    );
    taken
}
