//! What a look at all listeners takes, by how many there are, and how long a signal has to
//! wait then.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use live_tests::{Launch, Room};
use queue_trace::lab::{Family, Listen, Netns, raw::Flood};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

/// Listeners of each row.
const LISTENERS: [u16; 6] = [250, 500, 1000, 2000, 5000, 10_000];
/// Half-open requests of each row.
const REQUESTS: [u32; 3] = [1000, 10_000, 100_000];
/// Namespaces of each row.
const NAMESPACES: [usize; 3] = [200, 1000, 2000];

/// Prints a table.
pub fn run(program: &Path, attach: &str) {
    allow_files();
    println!("| | a look, CPU s | a look, s | attach and look, s | end after a signal, s |");
    println!("|---|---:|---:|---:|---:|");
    let netns = Netns::new().unwrap();
    let mut crowd = Vec::new();
    for count in LISTENERS {
        while crowd.len() < usize::from(count) {
            crowd.push(crowded(&netns, 1024 + crowd.len() as u16));
        }
        let what = format!("{count} listeners with two connections waiting");
        row(
            &what,
            program,
            attach,
            &["--netns", netns.path().to_str().unwrap()],
        );
    }
    drop(crowd);
    let large = [
        ("net.ipv4.tcp_syncookies", 0),
        ("net.core.somaxconn", 200_000),
        ("net.ipv4.tcp_max_syn_backlog", 400_000),
    ];
    let room = Room::new(Family::V4, 200_000, &large);
    let mut sent = 0;
    for count in REQUESTS {
        let flood = Flood {
            first: sent,
            ..Flood::of(count - sent)
        };
        room.flood_as(&flood);
        sent = count;
        let what = format!("one listener, {count} half-open requests");
        row(
            &what,
            program,
            attach,
            &["--netns", room.netns.path().to_str().unwrap()],
        );
    }
    drop(room);
    let mut inhabited = Vec::new();
    for count in NAMESPACES {
        while inhabited.len() < count {
            inhabited.push(inhabit(1));
        }
        let what = format!("{count} namespaces with a listener each");
        row(&what, program, attach, &[]);
    }
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

fn row(what: &str, program: &Path, attach: &str, which: &[&str]) {
    let before = children();
    let began = Instant::now();
    let mut look = Command::new(program);
    look.args(["listeners", "--json"]).args(which);
    let status = look.stdout(Stdio::null()).status().unwrap();
    let (wall, cpu) = (began.elapsed(), children().saturating_sub(before));
    assert!(status.success());

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
        cpu.as_secs_f64(),
        wall.as_secs_f64(),
        attached.as_secs_f64(),
        end.as_secs_f64()
    );
}

/// The CPU time of the processes that were waited for (`cutime` and `cstime`, proc_pid_stat(5)).
pub fn children() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields = rest.split(' ').skip(13).take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
    let each = rustix::param::clock_ticks_per_second();
    Duration::from_millis(ticks * 1000 / each)
}
