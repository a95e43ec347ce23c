//! The tracer's audit of itself: the self-test at start leaves nothing behind, and two
//! tracers do not disturb each other.

use std::{collections::BTreeSet, fs, net::SocketAddr};

use live_tests::{Inhabitant, Launch, Room, Shown, expected, make_cookies};
use queue_trace::lab::Family;
use queue_trace_common::outcome;

const ALWAYS: [(&str, u32); 1] = [("net.ipv4.tcp_syncookies", 2)];

/// The namespaces in which a process lives.
fn inhabited() -> BTreeSet<u32> {
    let number = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path().join("ns/net")).ok()?;
        let number = link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?;
        number.parse().ok()
    };
    let processes = fs::read_dir("/proc").unwrap();
    processes.filter_map(|entry| number(entry.ok()?)).collect()
}

/// Without the self-test all is told as with it.
#[test]
fn without_the_self_test() {
    for room in Room::of_each_family(10, &ALWAYS) {
        let launch = Launch::showing(Shown::All).arg("--no-canary");
        let tracer = launch.on(&room.netns).start();
        room.flood(60);
        let sums = expected(&[(outcome::COOKIE_SENT_ALWAYS, 60)], Shown::All);
        tracer.stop().assert_exact(&room.netns, &room.before, &sums);
    }
}

/// The handshakes of the self-test are in a namespace of their own, in which nobody
/// lives; nothing is told of it. (It takes a machine on which nobody else makes such.)
#[test]
fn the_self_test_leaves_nothing_behind() {
    let known = inhabited();
    let recording = Launch::showing(Shown::All).start().stop();
    assert_eq!(recording.lost(), Default::default());
    let events = recording.events().map(|event| event.netns);
    let totals = recording.totals().map(|total| total.netns);
    let ledgers = recording.ledgers().map(|ledger| ledger.netns);
    let told: BTreeSet<_> = events.chain(totals).chain(ledgers).collect();
    assert!(told.is_subset(&known), "{told:?} of {known:?}");
}

/// Two at once, one of which began and self-tested while the other was at work.
#[test]
fn two_tracers_at_once() {
    let rooms = Room::of_each_family(10, &ALWAYS);
    let launch = || Launch::showing(Shown::All).on_all(&rooms);
    let first = launch().start();
    rooms[0].flood(40);
    let second = launch().start();
    rooms[0].flood(50);
    rooms[1].flood(70);
    let second = second.stop();
    rooms[1].flood(30);
    let first = first.stop();
    let sums = |count| expected(&[(outcome::COOKIE_SENT_ALWAYS, count)], Shown::All);
    for (room, count) in rooms.iter().zip([90, 100]) {
        first.assert_exact(&room.netns, &room.before, &sums(count));
    }
    for (room, count) in rooms.iter().zip([50, 70]) {
        assert_eq!(second.verdicts(&room.netns), sums(count));
        assert_eq!(second.counted(&room.netns), sums(count));
        assert_eq!(second.lost(), Default::default());
        let ledger = second.ledger(&room.netns);
        assert_eq!(ledger.unexplained, Some(0), "{ledger:?}");
        let sides = ledger.counters["SyncookiesSent"];
        assert_eq!((sides.kernel, sides.seen), (Some(count), count));
    }
}

/// A tracer that watches all namespaces sees another one's self-test as what it is,
/// handshakes in a namespace that is gone by the end. No ledger has a difference.
#[test]
fn one_tracer_watches_another_begin() {
    let room = Room::new(Family::V4, 10, &ALWAYS);
    let inhabitant = Inhabitant::of(&room.netns);
    let first = Launch::showing(Shown::All).start();
    let second = Launch::live().on(&room.netns).start();
    room.flood(20);
    let second = second.stop();
    let first = first.stop();
    drop(inhabitant);
    assert_eq!(first.lost(), Default::default());
    for ledger in first.ledgers() {
        assert!(matches!(ledger.unexplained, None | Some(0)), "{ledger:?}");
    }
    let refusals = expected(&[(outcome::COOKIE_SENT_ALWAYS, 20)], Shown::Refusals);
    second.assert_exact(&room.netns, &room.before, &refusals);
    first.assert_exact(&room.netns, &room.before, &refusals);
}

/// A counter moves without any packet that reaches a listener. The ledger does not hide it,
/// and names what does so.
#[test]
fn a_counter_that_something_else_moves() {
    const MADE: u64 = 17;
    const SYNS: u32 = 20;
    let room = Room::new(Family::V4, 10, &ALWAYS);
    let tracer = Launch::showing(Shown::All).on(&room.netns).start();
    let SocketAddr::V4(listener) = room.address else {
        panic!("an IPv4 room has the address {}", room.address);
    };
    room.flood(SYNS);
    room.netns
        .run(|| make_cookies(listener, MADE as u32))
        .unwrap();
    let recording = tracer.stop();
    let sums = expected(&[(outcome::COOKIE_SENT_ALWAYS, SYNS.into())], Shown::All);
    assert_eq!(recording.verdicts(&room.netns), sums);
    let ledger = recording.ledger(&room.netns);
    for (name, sides) in &ledger.counters {
        let past = if name == "TCPReqQFullDoCookies" {
            MADE
        } else {
            0
        };
        assert_eq!(sides.kernel, Some(sides.seen + past), "{name}");
    }
    assert_eq!(ledger.unexplained, Some(MADE), "{ledger:?}");
    let note = ledger.note.as_deref().unwrap_or_default();
    assert!(note.contains("bpf_tcp_gen_syncookie"), "{ledger:?}");
}

/// What happens where another queue-trace tests itself is nobody's incident: no event, no count,
/// no ledger. It is told by the mark of its namespace.
#[test]
fn the_self_test_of_another_one() {
    let mark = queue_trace_common::settings::SELF_TESTS.start;
    for family in Family::ALL {
        let sysctls = [("net.core.somaxconn", mark), ("net.ipv4.tcp_syncookies", 0)];
        let room = Room::new(family, 3, &sysctls);
        let neighbour = Room::new(family, 3, &sysctls[1..]);
        let launch = Launch::showing(Shown::All).on(&room.netns);
        let tracer = launch.on(&neighbour.netns).start();
        for room in [&room, &neighbour] {
            // They fill the accept queue, and the SYNs are dropped.
            let clients = room.connect(4);
            room.flood(10);
            drop(clients);
        }
        let recording = tracer.stop();
        let of_it = |netns: u32| netns == room.netns.id();
        assert_eq!(recording.events().filter(|e| of_it(e.netns)).count(), 0);
        assert_eq!(recording.totals().filter(|t| of_it(t.netns)).count(), 0);
        assert!(!recording.ledgers().any(|ledger| of_it(ledger.netns)));
        // Without the mark there is something to see.
        assert!(recording.events().any(|e| e.netns == neighbour.netns.id()));
        recording.assert_ledger(&neighbour.netns, &neighbour.before);
        assert_eq!(recording.lost(), std::collections::BTreeMap::new());
    }
}
