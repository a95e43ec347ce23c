//! More records than anybody wants, or than the reader takes: what is not told one by
//! one is told as counts, and said to be lost where it was; no count is wrong.

use std::{mem::offset_of, net::SocketAddr, thread, time::Duration};

use aya::maps::{Array, Map};
use live_tests::{
    Attach, Launch, Mounts, Room, Shown, Tracer, attach, expected, in_private_mounts,
    listener_beside,
};
use queue_trace::lab::{Family, raw::Flood};
use queue_trace_common::{
    outcome,
    settings::{CountKey, SLOTS, Slot, Tally},
};
use rustix::process::Signal;

use crate::bench::inode;

/// More than the ring holds: 4 MiB of records of some 140 bytes.
const SYNS: u32 = 45_000;

/// Beyond `--rate` records are held back, and come as counts: nothing is lost.
#[test]
fn beyond_the_rate() {
    let room = Room::new(Family::V4, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    let launch = Launch::text().args(["--json", "--rate", "50"]);
    let tracer = launch.on(&room.netns).start();
    room.flood(3000);
    let recording = tracer.stop();
    let sums = expected(&[(outcome::COOKIE_SENT_ALWAYS, 3000)], Shown::Refusals);
    recording.assert_exact(&room.netns, &room.before, &sums);
    let (told, held): (Vec<_>, Vec<_>) = recording.events().partition(|e| e.client.is_some());
    // A second's worth may come at once, less what the self-test right before it used up.
    assert!(
        told.len() >= 25 && !held.is_empty(),
        "{}, {held:?}",
        told.len()
    );
    assert!(
        held.iter().all(|event| event.listener.port == 8080),
        "{held:?}"
    );
}

#[test]
fn while_the_tracer_stands_still() {
    let room = Room::new(Family::V4, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    let tracer = Launch::live().on(&room.netns).start();
    tracer.signal(Signal::STOP);
    room.flood(SYNS);
    tracer.signal(Signal::CONT);
    assert_counted(tracer, &room);
}

#[test]
fn while_nobody_reads_what_it_prints() {
    let room = Room::new(Family::V6, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    let mut tracer = Launch::live().on(&room.netns).unread().start();
    room.flood(SYNS);
    tracer.read_after_all();
    assert_counted(tracer, &room);
}

/// A table that is full: what finds no room is counted with less detail, or said to be lost, by
/// the counter of that table and no other.
#[test]
fn without_room_for_counts_by_listener() {
    const SYNS: u32 = 30;
    for (tables, lost, at_it) in [
        (&["COUNTS"][..], "by_port", u64::from(SYNS)),
        // By namespace, so the sums are exact all the same.
        (&["COUNTS", "UNLISTED"], "by_port", u64::from(SYNS)),
        (&["COUNTS", "UNLISTED", "BY_NETNS"], "uncounted", 0),
    ] {
        let room = Room::new(Family::V4, 16, &[("net.ipv4.tcp_syncookies", 2)]);
        let tracer = Launch::live().on(&room.netns).start();
        for table in tables {
            assert!(tracer.fill(table) >= 1000);
        }
        take_slots(&tracer);
        room.flood(SYNS);
        let recording = tracer.stop();
        assert_eq!(recording.lost(), [(lost.to_owned(), SYNS.into())].into());
        let seen: u64 = recording.counted(&room.netns).values().sum();
        assert_eq!(seen, at_it);
        assert!(
            recording
                .totals()
                .all(|total| total.listener.inode.is_none())
        );
        let ledger = recording.ledger(&room.netns);
        // A cookie moves two counters.
        let missing = 2 * (u64::from(SYNS) - at_it);
        assert_eq!(ledger.unexplained, Some(missing), "{ledger:?}");
        let says = "some counts found no room";
        let noted = ledger
            .note
            .as_deref()
            .is_some_and(|note| note.contains(says));
        assert_eq!(noted, at_it == 0, "{ledger:?}");
    }
}

/// Who only watches the listeners sees as well that something was lost.
#[test]
fn beside_the_listeners() {
    let room = Room::new(Family::V4, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    for (format, says) in [
        ("--json", "\"uncounted\":30"),
        ("", "LOST since attached: 30 counts"),
    ] {
        let args = [
            "listeners",
            "--watch",
            "200ms",
            "--attach",
            attach().name(),
            format,
        ];
        let args = args.into_iter().filter(|arg| !arg.is_empty());
        let tracer = Launch::plain(args).on(&room.netns).start();
        for table in ["COUNTS", "UNLISTED", "BY_NETNS"] {
            assert!(tracer.fill(table) > 1000);
        }
        take_slots(&tracer);
        room.flood(30);
        thread::sleep(Duration::from_secs(2));
        tracer.signal(Signal::TERM);
        let finished = tracer.wait();
        finished.assert_well();
        assert!(finished.stdout.contains(says), "{}", finished.stdout);
    }
}

/// Takes the places for counts that are found without a search, for nobody.
fn take_slots(tracer: &Tracer) {
    const WORDS: usize = size_of::<Tally>() / size_of::<u64>();
    const SLOT: usize = size_of::<Slot>() / size_of::<u64>();
    const OWNER: usize = (offset_of!(Slot, key) + offset_of!(CountKey, netns)) / size_of::<u64>();
    let tallies = Map::from_map_data(tracer.map("TALLIES")).unwrap();
    let mut tallies = Array::<_, [u64; WORDS]>::try_from(tallies).unwrap();
    for cpu in 0..tallies.len() {
        let mut tally = tallies.get(&cpu, 0).unwrap();
        for slot in tally[..SLOTS * SLOT].chunks_exact_mut(SLOT) {
            slot[OWNER] = slot[OWNER].max(1);
        }
        tallies.set(cpu, tally, 0).unwrap();
    }
}

/// Listeners of which nothing can be kept, and connections whose wait cannot.
#[test]
fn without_room_for_queues() {
    const CLIENTS: usize = 10;
    let room = Room::new(Family::V4, 16, &[]);
    let tracer = Launch::showing(Shown::All).on(&room.netns).start();
    assert!(tracer.fill("QUEUES") > 1000 && tracer.fill("MARKS") > 1000);
    let tells_waits = attach() != Attach::Tracepoint;
    if tells_waits {
        assert!(tracer.fill("PLACES") > 1000 && tracer.fill("WAITING") > 1000);
    }
    let clients = room.connect(CLIENTS);
    for _ in 0..CLIENTS {
        room.listener.accept().unwrap();
    }
    let recording = tracer.stop();
    drop(clients);
    let lost = recording.lost();
    assert!(lost["unlisted"] >= CLIENTS as u64, "{lost:?}");
    let untimed = tells_waits.then_some(CLIENTS as u64);
    assert_eq!(lost.get("untimed").copied(), untimed, "{lost:?}");
    assert_eq!(lost.len(), 1 + usize::from(tells_waits), "{lost:?}");
    // What is counted is so all the same.
    recording.assert_ledger(&room.netns, &room.before);
    let counted = recording.counted(&room.netns);
    assert_eq!(counted["queued"], CLIENTS as u64);
    let row = recording.row(inode(&room.listener));
    assert_eq!(row.accept_queue.high_water, None, "{row:?}");
}

/// Where packets are seen at their end only: one more namespace, whose counters found no room, and
/// one more listener. What is not known of them is said to be lost.
#[test]
fn without_room_by_tracepoints() {
    in_private_mounts(|mounts| {
        no_room_for_a_baseline(mounts);
        no_room_for_a_listener(mounts);
    });
}

/// A tracer that sees packets at their end only.
fn at_their_end(mounts: &Mounts, room: &Room) -> Tracer {
    let by_tracepoints = [
        "--attach",
        "tracepoint",
        "--no-canary",
        "--json",
        "--rate",
        "0",
    ];
    let launch = Launch::plain(by_tracepoints).on(&room.netns);
    mounts.without_delivery(launch).start()
}

fn no_room_for_a_baseline(mounts: &Mounts) {
    const SYNS: u32 = 30;
    let room = Room::new(Family::V4, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    let tracer = at_their_end(mounts, &room);
    assert!(tracer.fill("BASELINES") > 100);
    room.flood(SYNS);
    let recording = tracer.stop();
    assert_eq!(recording.counted(&room.netns), Default::default());
    let lost = recording.lost();
    // Their SYN-ACKs come to nobody and are answered, so that there are more packets than SYNs.
    assert!(lost["no_baseline"] >= SYNS.into(), "{lost:?}");
    assert_eq!(lost.len(), 1, "{lost:?}");
    let ledger = recording.ledger(&room.netns);
    let sides = ledger.counters["SyncookiesSent"];
    assert_eq!((sides.kernel, sides.seen), (Some(SYNS.into()), 0));
    // A cookie moves two counters.
    assert_eq!(ledger.unexplained, Some(u64::from(2 * SYNS)), "{ledger:?}");
}

fn no_room_for_a_listener(mounts: &Mounts) {
    const SYNS: u32 = 30;
    let room = Room::new(Family::V4, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    let tracer = at_their_end(mounts, &room);
    assert!(tracer.fill("LISTENING") > 1000);
    let address = SocketAddr::new(Family::V4.loopback(), 8081);
    let _listener = listener_beside(&room.netns, address, 16);
    room.flood_at(address, &Flood::of(SYNS));
    let recording = tracer.stop();
    assert_eq!(
        recording.lost(),
        [("unknown_listeners".to_owned(), 1)].into()
    );
    let sums = expected(
        &[(outcome::COOKIE_SENT_ALWAYS, SYNS.into())],
        Shown::Refusals,
    );
    assert_eq!(recording.counted(&room.netns), sums);
    assert!(
        recording
            .totals()
            .all(|total| total.listener.inode.is_none())
    );
    recording.assert_ledger(&room.netns, &room.before);
}

/// Every SYN is in the totals and in the ledger. It was told by itself, or it is among
/// the records lost and was told as part of a count.
fn assert_counted(tracer: Tracer, room: &Room) {
    let recording = tracer.stop();
    let sums = expected(
        &[(outcome::COOKIE_SENT_ALWAYS, SYNS.into())],
        Shown::Refusals,
    );
    assert_eq!(recording.counted(&room.netns), sums);
    assert_eq!(recording.verdicts(&room.netns), sums);
    recording.assert_ledger(&room.netns, &room.before);

    let lost = recording.lost();
    let records = lost.get("records").copied().unwrap_or_default();
    assert!(
        records > 0,
        "nothing was lost: the ring holds more than {SYNS} records"
    );
    assert_eq!(
        lost.len(),
        1,
        "records were lost, and something else: {lost:?}"
    );
    assert_eq!(recording.ledger(&room.netns).lost, records);
    let by_itself = recording
        .events()
        .filter(|event| event.client.is_some())
        .count() as u64;
    assert_eq!(by_itself + records, u64::from(SYNS));
}
