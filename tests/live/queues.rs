//! The queues themselves: whose they are, how full they got, and how long connections
//! waited, held against what the test imposed and against `ss`.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    process::{self, Command},
    thread,
    time::{Duration, Instant},
};

use live_tests::{Attach, Launch, Room, Row, Shown, attach, listener_beside};
use queue_trace::lab::{Connect, Family, Listen, Netns, connect_fast};

/// For how long the application is frozen.
const FROZEN: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);

fn inode(listener: &TcpListener) -> u64 {
    let path = format!("/proc/self/fd/{}", listener.as_raw_fd());
    fs::metadata(path).unwrap().ino()
}

/// Whether the way to attach tells when connections leave a queue.
fn tells_waits() -> bool {
    attach() != Attach::Tracepoint
}

/// Clients that connect, wait while the application is frozen, and are then accepted. How
/// long that was, at least and at most.
struct Frozen {
    _clients: Vec<Connect>,
    _accepted: Vec<TcpStream>,
    least: Duration,
    most: Duration,
}

fn frozen(room: &Room, clients: usize) -> Frozen {
    let before = Instant::now();
    let connected = room.connect(clients);
    let all_in = Instant::now();
    thread::sleep(FROZEN);
    let least = all_in.elapsed();
    let accepted = (0..clients).map(|_| room.listener.accept().unwrap().0);
    let accepted = accepted.collect();
    Frozen {
        _clients: connected,
        _accepted: accepted,
        least,
        most: before.elapsed(),
    }
}

#[track_caller]
fn assert_between(us: u64, frozen: &Frozen) {
    // Microseconds are cut off, and the kernel's two clocks are read one after the other.
    let (least, most) = (frozen.least.as_micros(), frozen.most.as_micros());
    let us = u128::from(us) + 1;
    assert!(
        (least..=most + 1).contains(&us),
        "{least} <= {us} <= {most}"
    );
}

/// Both queues at their deepest, and how long each connection waited.
#[test]
fn high_water_and_waits_are_those_imposed() {
    let rooms = Room::of_each_family(7, &[("net.ipv4.tcp_syncookies", 0)]);
    let launch = Launch::showing(Shown::All);
    let tracer = rooms
        .iter()
        .fold(launch, |launch, room| launch.on(&room.netns))
        .start();
    let frozen = rooms.each_ref().map(|room| {
        let half_open = room.flood(3);
        assert_eq!(half_open, 3);
        frozen(room, 5)
    });
    let recording = tracer.stop();
    for (room, frozen) in rooms.iter().zip(&frozen) {
        let row = recording.row(inode(&room.listener));
        assert_eq!(row.accept_queue.depth, 0);
        assert_eq!(row.accept_queue.limit, 7);
        assert_eq!(row.accept_queue.high_water, Some(5), "{row:?}");
        let syn = row.syn_queue.as_ref().unwrap();
        assert_eq!(syn.depth, 3, "{syn:?}");
        // A client's request is there beside the three until its final ACK.
        assert_eq!(syn.high_water, Some(4), "{syn:?}");
        let waits: Vec<_> = recording
            .events()
            .filter(|event| event.netns == room.netns.id() && event.verdict == "accepted")
            .map(|event| event.waited_us.unwrap())
            .collect();
        if !tells_waits() {
            assert_eq!((row.accept_latency_us, waits.len()), (None, 0));
            continue;
        }
        assert_eq!(waits.len(), 5);
        for us in &waits {
            assert_between(*us, frozen);
        }
        let spread = row.accept_latency_us.unwrap();
        assert_eq!(spread.count, 5);
        assert_eq!(Some(&spread.max), waits.iter().max());
        for told in [spread.p50, spread.p99] {
            assert!(u128::from(told) >= FROZEN.as_micros() && told <= spread.max);
        }
        assert_eq!(row.handshake_us.unwrap().count, 5);
        assert_eq!(row.accept_queue.full_times, Some(0));
        assert_eq!(row.oldest_waiting_us, None);
    }
}

/// Connections made by cookies and by fast open wait like any other.
#[test]
fn cookies_and_fast_open_wait_too() {
    if !tells_waits() {
        return assert_not_told();
    }
    let cookies = Room::new(Family::V4, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    let fast = Room::new(Family::V4, 16, &[("net.ipv4.tcp_fastopen", 3)]);
    let at = SocketAddr::new(fast.family.loopback(), 8081);
    let listen = Listen {
        fast_open: Some(16),
        ..Listen::default()
    };
    let listener = fast.netns.run(|| listen.on(at)).unwrap();
    let tracer = Launch::showing(Shown::All)
        .on(&cookies.netns)
        .on(&fast.netns)
        .start();
    let imposed = frozen(&cookies, 4);
    // The first gets the cookie by an ordinary handshake, the others use it.
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let connect = || connect_fast(at, b"hello", PATIENCE);
            fast.netns.run(connect).unwrap()
        })
        .collect();
    for _ in &clients {
        listener.accept().unwrap();
    }
    let recording = tracer.stop();
    let counts = |row: &Row, name: &str| row.counts.as_ref().unwrap().get(name).copied();
    let row = recording.row(inode(&cookies.listener));
    assert_eq!(counts(row, "established:cookie"), Some(4), "{row:?}");
    assert_eq!(row.accept_latency_us.unwrap().count, 4);
    assert_between(row.accept_latency_us.unwrap().max, &imposed);
    assert_eq!(row.handshake_us, None, "a cookie keeps no time");
    let row = recording.row(inode(&listener));
    assert_eq!(counts(row, "established:fast_open"), Some(3), "{row:?}");
    assert_eq!(row.accept_latency_us.unwrap().count, 4);
}

/// What cannot be told is said, and absent.
fn assert_not_told() {
    let room = Room::new(Family::V4, 4, &[]);
    let tracer = Launch::showing(Shown::All).on(&room.netns).start();
    let _frozen = frozen(&room, 2);
    let finished = {
        tracer.signal(rustix::process::Signal::TERM);
        tracer.wait()
    };
    assert!(finished.stderr.contains("how long connections wait"));
    let recording = finished.recording();
    assert_eq!(recording.row(inode(&room.listener)).accept_latency_us, None);
}

/// An accept queue is full from the connection that filled it until one is taken.
#[test]
fn time_spent_full() {
    let room = Room::new(Family::V4, 3, &[]);
    let tracer = Launch::showing(Shown::All).on(&room.netns).start();
    let before = Instant::now();
    let mut most = Duration::ZERO;
    let mut least = Duration::ZERO;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.extend(room.connect(3 + usize::from(clients.is_empty())));
        let full = Instant::now();
        thread::sleep(FROZEN);
        least += full.elapsed();
        for _ in 0..3 {
            room.listener.accept().unwrap();
        }
    }
    most += before.elapsed();
    let recording = tracer.stop();
    let queue = &recording.row(inode(&room.listener)).accept_queue;
    assert_eq!(queue.high_water, Some(4));
    if tells_waits() {
        assert_eq!(queue.full_times, Some(2), "{queue:?}");
        let full = Duration::from_micros(queue.full_us.unwrap() + 1);
        assert!(full >= least && full <= most, "{least:?} {full:?} {most:?}");
    } else {
        assert_eq!((queue.full_times, queue.full_us), (None, None));
    }
}

/// The oldest connection that nobody accepted: those that entered before the tracer
/// attached count as well.
#[test]
fn the_oldest_that_waits() {
    let room = Room::new(Family::V4, 8, &[]);
    let before = Instant::now();
    let _first = room.connect(2);
    let all_in = Instant::now();
    thread::sleep(FROZEN);
    let tracer = Launch::live().on(&room.netns).start();
    let _later = room.connect(2);
    room.listener.accept().unwrap();
    let at_least = all_in.elapsed();
    let recording = tracer.stop();
    let oldest = recording.row(inode(&room.listener)).oldest_waiting_us;
    let oldest = Duration::from_micros(oldest.unwrap());
    // What was there before is told by the kernel's clock of coarse ticks.
    const TICK: Duration = Duration::from_millis(20);
    assert!(oldest + TICK >= at_least, "{oldest:?} {at_least:?}");
    assert!(oldest <= before.elapsed() + TICK, "{oldest:?}");
}

/// A listener made and closed meanwhile: whose it was, and what became of its queue. The
/// connections in it are not taken for those of its successor.
#[test]
fn a_listener_made_and_closed_meanwhile() {
    let room = Room::new(Family::V4, 4, &[]);
    let tracer = Launch::showing(Shown::All).on(&room.netns).start();
    let at = SocketAddr::new(room.family.loopback(), 8090);
    room.netns.set_sysctl("net.core.somaxconn", 6).unwrap();
    let made = listener_beside(&room.netns, at, 500);
    let number = inode(&made);
    let connect = || {
        let connect = || Ok(TcpStream::connect(at)?);
        room.netns.run(connect).unwrap()
    };
    let _clients: Vec<_> = (0..5).map(|_| connect()).collect();
    room.settle();
    drop(made);
    let recording = tracer.stop();
    let row = recording.row(number);
    assert!(row.closed, "{row:?}");
    assert_eq!(
        (row.listener.addr, row.listener.port),
        (Some(at.ip()), 8090)
    );
    assert_eq!(row.accept_queue.high_water, Some(5));
    // Tracepoints do not see the call.
    assert_eq!(row.accept_queue.asked, tells_waits().then_some(500));
    assert_eq!(row.netns, room.netns.id());
    assert_eq!(row.processes[0].pid, process::id());
    assert_eq!((row.accept_queue.depth, row.accept_queue.limit), (5, 6));
    let drops = row.drops.as_ref().unwrap();
    assert_eq!(drops.get("queue_discarded"), Some(&5));
}

/// `--slow` shows the connections that waited too long, who took them, and no others.
#[test]
fn slow_ones_join_the_stream() {
    if !tells_waits() {
        return assert_not_told();
    }
    let room = Room::new(Family::V4, 8, &[]);
    let tracer = Launch::live()
        .args(["--slow", "200ms"])
        .on(&room.netns)
        .start();
    for _ in 0..3 {
        let _client = room.connect(1);
        room.listener.accept().unwrap();
    }
    let imposed = frozen(&room, 2);
    let recording = tracer.stop();
    let limit = 200_000;
    let slow: Vec<_> = recording.events().collect();
    assert!(slow.iter().all(|event| event.verdict == "accepted"));
    assert!(slow.iter().all(|event| event.waited_us >= Some(limit)));
    // The quick ones may have been slow, on a slow machine; the frozen ones were, surely.
    assert!((2..=5).contains(&slow.len()), "{slow:?}");
    for event in &slow[slow.len() - 2..] {
        assert_between(event.waited_us.unwrap(), &imposed);
        assert_eq!(event.process.as_ref().unwrap().pid, process::id());
    }
    assert_eq!(recording.counted(&room.netns)["accepted"], 5);
}

/// One socket of a group is full while the others are served.
#[test]
fn one_full_among_idle() {
    const CAPACITY: usize = 4;
    let room = Room::new(Family::V4, 4, &[]);
    let at = SocketAddr::new(room.family.loopback(), 8091);
    let shared = Listen {
        backlog: CAPACITY as i32 - 1,
        reuse_port: true,
        ..Listen::default()
    };
    let group: Vec<_> = (0..3)
        .map(|_| room.netns.run(|| shared.on(at)).unwrap())
        .collect();
    for listener in &group {
        listener.set_nonblocking(true).unwrap();
    }
    let tracer = Launch::showing(Shown::All).on(&room.netns).start();
    let mut clients = Vec::new();
    // Until the first, which nobody serves, is full and has refused one.
    let mut given = [0u64; 3];
    while given[0] <= CAPACITY as u64 {
        let connect = || {
            let socket = TcpStream::connect_timeout(&at, Duration::from_millis(300));
            Ok(socket.ok())
        };
        let client = room.netns.run(connect).unwrap();
        room.settle();
        let mut taken = false;
        for (listener, given) in group.iter().zip(&mut given).skip(1) {
            while listener.accept().is_ok() {
                *given += 1;
                taken = true;
            }
        }
        given[0] += u64::from(!taken);
        clients.extend(client);
    }
    let recording = tracer.stop();
    let rows: Vec<_> = group.iter().map(|one| recording.row(inode(one))).collect();
    for (index, row) in rows.iter().enumerate() {
        let place = row.group.unwrap();
        assert_eq!((place.index, place.size), (index as u32, 3));
        assert_eq!(place.full_among_idle, index == 0, "{row:?}");
        assert_eq!(
            row.accept_queue.depth as usize,
            if index == 0 { CAPACITY } else { 0 }
        );
        let all: u64 = given.iter().sum();
        let share = given[index] as f64 / all as f64;
        assert!(
            (place.share.unwrap() - share).abs() < 0.2,
            "{row:?} {share}"
        );
    }
    let shares: f64 = rows.iter().filter_map(|row| row.group.unwrap().share).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
}

/// What `ss -lntmpe` says of a listener.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    depth: u32,
    limit: u32,
    inode: u64,
    cookie: u64,
    pids: Vec<u32>,
}

/// By address, from the lines of `ss`.
fn ss(netns: &Netns) -> BTreeMap<SocketAddr, Said> {
    let run = || Ok(Command::new("ss").args(["-H", "-O", "-lntmpe"]).output()?);
    let output = netns.run(run).unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
        let address = words[3].replace('*', "[::]");
        let users = value("users:").unwrap_or_default();
        let mut pids: Vec<u32> = users
            .split("pid=")
            .skip(1)
            .map(|rest| rest.split(',').next().unwrap().parse().unwrap())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        let said = Said {
            depth: words[1].parse().unwrap(),
            limit: words[2].parse().unwrap(),
            inode: value("ino:").unwrap().parse().unwrap(),
            cookie: u64::from_str_radix(value("sk:").unwrap(), 16).unwrap(),
            pids,
        };
        (address.parse().unwrap(), said)
    };
    text.lines().map(line).collect()
}

/// `queue-trace listeners` and `ss` say the same where both speak.
#[test]
fn it_agrees_with_ss() {
    let netns = Netns::new().unwrap();
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let listeners: Vec<_> = [
        ("0.0.0.0:80", 5),
        ("127.0.0.1:8080", 1),
        ("[::]:443", 100),
        ("[::1]:8443", 7),
    ]
    .map(|(address, backlog)| listener_beside(&netns, at(address), backlog))
    .into();
    let connect = |address| {
        let connect = || Ok(TcpStream::connect(at(address))?);
        netns.run(connect).unwrap()
    };
    let _clients = [
        "127.0.0.1:80",
        "127.0.0.1:8080",
        "127.0.0.1:8080",
        "[::1]:8443",
    ]
    .map(connect);
    // A child that holds a copy of every one: started by a shell, with the files kept.
    let files: Vec<_> = listeners.iter().map(keep).collect();
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    drop(files);
    let finished = Launch::plain(["listeners", "--json", "--netns"])
        .arg(netns.path())
        .finish();
    let said = ss(&netns);
    child.kill().unwrap();
    child.wait().unwrap();

    let recording = finished.recording();
    let told: BTreeMap<_, _> = recording
        .rows()
        .map(|row| {
            let listener = &row.listener;
            let address = SocketAddr::new(listener.addr.unwrap(), listener.port);
            let said = Said {
                depth: row.accept_queue.depth,
                limit: row.accept_queue.limit,
                inode: listener.inode.unwrap(),
                cookie: listener.cookie.unwrap(),
                pids: row.processes.iter().map(|process| process.pid).collect(),
            };
            (address, said)
        })
        .collect();
    assert_eq!(told, said);
    assert_eq!(told.len(), 4);
    let mut pids = vec![process::id(), child.id()];
    pids.sort_unstable();
    assert!(told.values().all(|said| said.pids == pids), "{told:?}");
    assert!(recording.rows().all(|row| row.cgroup.is_some()));
}

/// A copy of a listener's file that child processes inherit.
fn keep(listener: &TcpListener) -> TcpListener {
    use rustix::io::{FdFlags, fcntl_setfd};
    let copy = listener.try_clone().unwrap();
    fcntl_setfd(&copy, FdFlags::empty()).unwrap();
    copy
}

/// A listener that is shut down and listens again is the same socket, and is there.
#[test]
fn shut_down_and_listening_again() {
    let room = Room::new(Family::V4, 7, &[]);
    let tracer = Launch::showing(Shown::All).on(&room.netns).start();
    rustix::net::shutdown(&room.listener, rustix::net::Shutdown::Read).unwrap();
    // Long enough for the tracer to have seen it closed.
    thread::sleep(Duration::from_millis(1500));
    rustix::net::listen(&room.listener, 5).unwrap();
    let _clients = room.connect(3);
    let recording = tracer.stop();
    let row = recording.row(inode(&room.listener));
    assert!(!row.closed, "{row:?}");
    assert_eq!(row.accept_queue.limit, 5, "{row:?}");
    assert_eq!(row.accept_queue.depth, 3, "{row:?}");
    assert_eq!(row.accept_queue.high_water, Some(3), "{row:?}");
}

/// Several threads accept at once from a queue that is full again and again: it was not full
/// for longer than the test took.
#[test]
fn full_and_emptied_by_several_threads() {
    if !tells_waits() {
        return assert_not_told();
    }
    const THREADS: usize = 4;
    const BURSTS: usize = 40;
    const BACKLOG: i32 = 3;
    let room = Room::new(Family::V4, BACKLOG, &[]);
    let tracer = Launch::showing(Shown::All).on(&room.netns).start();
    let begun = Instant::now();
    for _ in 0..BURSTS {
        let filled = room.connect(BACKLOG as usize + 1);
        let start = std::sync::Barrier::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    room.listener.accept().unwrap();
                });
            }
        });
        drop(filled);
    }
    let took = begun.elapsed();
    let recording = tracer.stop();
    let row = recording.row(inode(&room.listener));
    assert_eq!(row.accept_queue.full_times, Some(BURSTS as u64), "{row:?}");
    let full = Duration::from_micros(row.accept_queue.full_us.unwrap());
    assert!(
        !full.is_zero() && full <= took,
        "full for {full:?} of {took:?}"
    );
}
