//! Listeners and namespaces that come and go, and many of them at once: no table fills for
//! good, no sum is lost, and nobody waits for a look.

use std::{
    collections::HashSet,
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use live_tests::{Counters, Launch, Recording, Room, Shown, expected};
use queue_trace::lab::{Family, Listen, Netns, raw::Flood};
use queue_trace_common::outcome;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::bench::{inode, listen, totals_of};

/// More than the kernel side's table of counts has places for: three outcomes each.
const LISTENERS: u64 = 4000;

/// Short-lived listeners, each of which takes one connection.
fn come_and_go(room: &Room, count: u64) {
    let churn = || {
        for _ in 0..count {
            let listener = Listen::default().on(SocketAddr::new(room.family.loopback(), 0))?;
            let client = TcpStream::connect(listener.local_addr()?)?;
            drop(listener.accept()?);
            drop(client);
        }
        Ok(())
    };
    room.netns.run(churn).unwrap();
    room.settle();
}

/// After many listeners that are gone one overflows: all of it is in the totals, by listener
/// where it matters, and nothing is unexplained.
#[test]
fn thousands_of_short_lived_listeners_and_then_an_overflow() {
    // Without connections in TIME_WAIT, as there are not that many ports.
    let settings = [
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.tcp_max_tw_buckets", 0),
    ];
    let room = Room::new(Family::V4, 4, &settings);
    let before = Counters::of(&room.netns);
    let launch = Launch::text().args(["--all", "--json", "--rate", "50"]);
    let tracer = launch.on(&room.netns).start();
    come_and_go(&room, LISTENERS);
    let clients = room.connect(5);
    room.flood(92);
    // The listeners are over, and the tracer has noticed.
    thread::sleep(Duration::from_secs(3));
    let flooded = room.flood(8);
    assert_eq!(flooded, 0);
    let recording = tracer.stop();
    drop(clients);
    let sums = expected(
        &[
            (outcome::QUEUED, LISTENERS + 5),
            (outcome::ESTABLISHED_HANDSHAKE, LISTENERS + 5),
            (outcome::ACCEPTED, LISTENERS),
            (outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL, 100),
        ],
        Shown::All,
    );
    assert_eq!(recording.counted(&room.netns), sums);
    assert_eq!(recording.verdicts(&room.netns), sums);
    recording.assert_ledger(&room.netns, &before);
    let at_it = totals_of(&recording, inode(&room.listener));
    assert_eq!(at_it["syn_dropped:accept_queue_full"], 100);
    let lost = recording.lost();
    assert_eq!(lost.get("uncounted"), None, "{lost:?}");
}

/// Namespaces that are gone leave nothing behind that is in the way of later ones.
#[test]
fn hundreds_of_namespaces_come_and_go() {
    const NAMESPACES: u32 = 300;
    const SYNS: u32 = 3;
    let tracer = Launch::text().args(["--json", "--rate", "50"]).start();
    let mut sent = 0;
    let mut inodes = HashSet::new();
    for _ in 0..NAMESPACES {
        let room = Room::new(Family::V4, 4, &[("net.ipv4.tcp_syncookies", 2)]);
        room.flood_as(&Flood::of(SYNS));
        sent += u64::from(SYNS);
        inodes.insert(inode(&room.listener));
    }
    let recording = tracer.stop();
    // Their numbers are used again; those of their listeners are not.
    let is_mine = |inode: Option<u64>| inode.is_some_and(|inode| inodes.contains(&inode));
    let mine = recording
        .totals()
        .filter(|total| is_mine(total.listener.inode));
    let cookies = mine.filter(|total| total.verdict == "cookie_sent");
    assert_eq!(cookies.map(|total| total.count).sum::<u64>(), sent);
    assert_eq!(recording.lost().get("uncounted"), None);
}

/// Listeners in whose accept queues connections wait.
fn crowd(netns: &Netns, count: u16) -> Vec<(TcpListener, [TcpStream; 2])> {
    let one = |number: u16| {
        let address = SocketAddr::new(Family::V4.loopback(), 2000 + number);
        let listener = listen(netns, address, &Listen::default());
        let connect = || Ok([TcpStream::connect(address)?, TcpStream::connect(address)?]);
        (listener, netns.run(connect).unwrap())
    };
    (0..count).map(one).collect()
}

/// Many listeners with connections waiting: they are listed, and a signal ends a run soon.
#[test]
fn a_crowd_of_listeners_keeps_nobody_waiting() {
    const MANY: u16 = 400;
    // A crowd and its clients are more open files than a process may have at first.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    let netns = Netns::new().unwrap();
    let crowd = crowd(&netns, MANY);
    let launch = || Launch::text().args(["--all", "--json"]).on(&netns);
    let rows = |recording: &Recording| {
        let here = recording.rows().filter(|row| row.netns == netns.id());
        here.count()
    };
    // One that ends by itself takes the time for a last look. Where connections have waited long
    // enough the listeners are told of once more in between, as nobody accepts.
    let twice = 2 * usize::from(MANY);
    let recording = launch().args(["--duration", "1s"]).finish().recording();
    assert!(rows(&recording) >= twice, "{} rows", rows(&recording));
    for (listener, _) in &crowd {
        let row = recording.row(inode(listener));
        assert_eq!(row.accept_queue.depth, 2);
        assert!(row.oldest_waiting_us.is_some(), "{row:?}");
    }
    let tracer = launch().start();
    let finished = tracer.end_soon();
    assert!(finished.status.success(), "{}", finished.stderr);
    let rows = rows(&Recording::parse(&finished.stdout));
    // On a slow machine the last look is cut short, and said to be.
    let is_said = finished.stderr.contains("look at the listeners");
    assert!(
        rows >= twice || rows >= usize::from(MANY) && is_said,
        "{rows} rows: {}",
        finished.stderr
    );
}

/// Nobody reads what it prints, and a flood goes on: a signal ends it all the same.
#[test]
fn a_signal_ends_it_though_nobody_reads() {
    let room = Room::new(Family::V4, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    let mut tracer = Launch::live().on(&room.netns).unread().start();
    let unread = tracer.take_stdout();
    room.flood(20_000);
    // It is in a write that nobody takes by now.
    thread::sleep(Duration::from_secs(2));
    let finished = tracer.end_soon();
    finished.assert_failed(1, &["cannot write to standard output", "does not read"]);
    drop(unread);
}

/// Every SYN of a flood is a line, and there is no end of them: a signal ends it.
#[test]
fn a_signal_ends_it_in_a_flood_without_a_limit() {
    let room = Room::new(Family::V4, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    let tracer = Launch::live().on(&room.netns).start();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    thread::scope(|scope| {
        let room = &room;
        scope.spawn(move || {
            let began = Instant::now();
            while stopped.try_recv().is_err() && began.elapsed() < Duration::from_secs(60) {
                room.flood(2000);
            }
        });
        thread::sleep(Duration::from_secs(1));
        let finished = tracer.end_soon();
        stop.send(()).unwrap();
        finished.assert_well();
        assert!(finished.stdout.contains("\"type\":\"end\""));
    });
}
