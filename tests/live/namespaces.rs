//! Namespaces that come and go while the tracer watches all there are.

use std::{
    collections::HashMap,
    mem,
    net::SocketAddr,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use live_tests::{
    Counters, Inhabitant, Launch, Ledger, Recording, Room, Scratch, Shown, expected,
    in_private_mounts, kernel, listener_beside,
};
use queue_trace::lab::{
    Family, Netns,
    raw::{Flood, Wire, flood},
};
use queue_trace_common::outcome;

use crate::bench::{inode, totals};

const ALWAYS: [(&str, u32); 1] = [("net.ipv4.tcp_syncookies", 2)];
const SENT: u8 = outcome::COOKIE_SENT_ALWAYS;

/// The ledger of a namespace that may be gone.
fn ledger(recording: &Recording, netns: u32) -> &Ledger {
    let mut of_it = recording.ledgers().filter(|ledger| ledger.netns == netns);
    let ledger = of_it.next().expect("there is no ledger of the namespace");
    assert!(of_it.next().is_none(), "a namespace has two ledgers");
    ledger
}

/// A namespace and its listener.
type Place = (u32, u64);

fn place(room: &Room) -> Place {
    (room.netns.id(), inode(&room.listener))
}

/// Makes a recording in which the places have their namespaces' numbers to themselves. Those of
/// other tests come and go, and the next one has their numbers.
fn undisturbed<T>(
    make: impl Fn() -> (Recording, T),
    places: impl Fn(&T) -> [Place; 2],
) -> (Recording, T) {
    const TRIES: usize = 10;
    let alone = |recording: &Recording, (netns, inode): Place| {
        let mut told = recording.totals().filter(|total| total.netns == netns);
        let of_it = recording.ledgers().filter(|ledger| ledger.netns == netns);
        told.all(|total| total.listener.inode.is_none_or(|other| other == inode))
            && of_it.count() < 2
    };
    for _ in 0..TRIES {
        let (recording, made) = make();
        if places(&made)
            .into_iter()
            .all(|place| alone(&recording, place))
        {
            return (recording, made);
        }
    }
    panic!("other namespaces had their numbers, {TRIES} times");
}

/// Made while the tracer is attached, each is told apart, and its ledger begins at zero.
#[test]
fn made_while_attached() {
    let make = || {
        let tracer = Launch::live().start();
        let rooms = Room::of_each_family(10, &ALWAYS);
        let inhabitants = rooms.each_ref().map(|room| Inhabitant::of(&room.netns));
        for (room, syns) in rooms.iter().zip([31, 47]) {
            room.flood(syns);
        }
        (tracer.stop(), (rooms, inhabitants))
    };
    let (recording, (rooms, _inhabitants)) =
        undisturbed(make, |(rooms, _)| rooms.each_ref().map(place));
    for (room, syns) in rooms.iter().zip([31, 47]) {
        let sums = expected(&[(SENT, syns)], Shown::Refusals);
        recording.assert_exact(&room.netns, &room.before, &sums);
    }
}

/// Two overflow at the same time, on the same port.
#[test]
fn two_at_once() {
    let rooms = [(); 2].map(|()| Room::new(Family::V4, 10, &ALWAYS));
    let _inhabitants = rooms.each_ref().map(|room| Inhabitant::of(&room.netns));
    let tracer = Launch::live().start();
    thread::scope(|scope| {
        for (room, syns) in rooms.iter().zip([1500, 1100]) {
            scope.spawn(move || room.flood(syns));
        }
    });
    let recording = tracer.stop();
    for (room, syns) in rooms.iter().zip([1500, 1100]) {
        let sums = expected(&[(SENT, syns)], Shown::Refusals);
        recording.assert_exact(&room.netns, &room.before, &sums);
    }
}

/// What was told of a namespace stays when it is gone, and its ledger says that the
/// kernel's side is gone with it.
#[test]
fn gone_while_attached() {
    let make = || {
        let before = Room::new(Family::V4, 10, &ALWAYS);
        let known = Inhabitant::of(&before.netns);
        let tracer = Launch::live().start();
        let after = Room::new(Family::V6, 10, &ALWAYS);
        let also_known = Inhabitant::of(&after.netns);
        let rooms = [(before, known, 23), (after, also_known, 29)];
        let told = rooms.map(|(room, inhabitant, syns)| {
            room.flood(syns);
            drop(inhabitant);
            (place(&room), syns)
        });
        (tracer.stop(), told)
    };
    let (recording, told) = undisturbed(make, |told| told.map(|(place, _)| place));
    for ((netns, _), syns) in told {
        let sums = expected(&[(SENT, syns.into())], Shown::Refusals);
        assert_eq!(totals(&recording, netns), sums);
        let ledger = ledger(&recording, netns);
        let sides = ledger.counters["SyncookiesSent"];
        assert_eq!(
            (sides.kernel, sides.seen),
            (None, syns.into()),
            "{ledger:?}"
        );
        assert_eq!(ledger.unexplained, None, "{ledger:?}");
        let note = ledger.note.as_deref().unwrap_or_default();
        assert!(note.contains("gone"), "{ledger:?}");
    }
}

/// Makes one after the other until it is as wanted. A namespace has many numbers, one of its
/// own and one for each of its files in /proc, and the kernel gives each of them the lowest one
/// that is free. So the next one is numbered alike only if the last one is gone altogether,
/// which takes a busy kernel seconds: the pauses grow. And only if none of other tests goes
/// meanwhile: those whose connections wait for a peer that is not there any more go minutes later.
fn until<T>(
    patience: Duration,
    mut make: impl FnMut() -> T,
    mut is_wanted: impl FnMut(&T) -> bool,
) -> Option<T> {
    const LONGEST: Duration = Duration::from_secs(2);
    let mut pause = Duration::from_millis(20);
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        let made = make();
        if is_wanted(&made) {
            return Some(made);
        }
        drop(made);
        thread::sleep(pause);
        pause = pause.mul_f64(1.5).min(LONGEST);
    }
    None
}

/// A namespace with the number of one that is gone, and how many SYNs were answered with cookies
/// there. If the number does not come again soon, another test's namespace has it, or left a lower
/// one: then all begins again.
fn numbered_alike() -> (Netns, u64) {
    const PATIENCE: Duration = Duration::from_secs(300);
    const SOON: Duration = Duration::from_secs(15);
    const SYNS: u32 = 40;
    let deadline = Instant::now() + PATIENCE;
    let mut flooded = HashMap::new();
    while Instant::now() < deadline {
        // Made when all before it are gone, so that the next one finds the same numbers free.
        let mut last = 0;
        let first = until(
            SOON,
            || Room::new(Family::V4, 10, &ALWAYS),
            |room| mem::replace(&mut last, room.netns.id()) == room.netns.id(),
        );
        let Some(first) = first else { continue };
        first.flood(SYNS);
        let number = first.netns.id();
        *flooded.entry(number).or_default() += u64::from(SYNS);
        drop(first);
        let second = until(
            SOON,
            || Netns::new().unwrap(),
            |namespace| namespace.id() == number,
        );
        if let Some(second) = second {
            return (second, flooded[&number]);
        }
    }
    panic!("no number came again");
}

/// The kernel gives the number of a namespace that is gone to the next one. What was
/// counted in the first is not the second's.
#[test]
fn a_number_used_again() {
    let tracer = Launch::live().start();
    let (second, in_others) = numbered_alike();
    let number = second.id();
    second.set_sysctl(ALWAYS[0].0, ALWAYS[0].1).unwrap();
    let address = SocketAddr::new(Family::V4.loopback(), 8080);
    let _listener = listener_beside(&second, address, 10);
    let _inhabitant = Inhabitant::of(&second);
    let send = || {
        flood(address, &Flood::of(15))?;
        Wire::open(Family::V4)?.settle()
    };
    second.run(send).unwrap();
    let recording = tracer.stop();
    let ledgers: Vec<_> = recording
        .ledgers()
        .filter(|ledger| ledger.netns == number)
        .collect();
    println!("{ledgers:?}");
    let present: Vec<_> = ledgers
        .iter()
        .filter(|ledger| ledger.counters["SyncookiesSent"].kernel.is_some())
        .collect();
    assert_eq!(present.len(), 1, "{ledgers:?}");
    let sides = present[0].counters["SyncookiesSent"];
    if kernel() >= (5, 14) {
        assert_eq!((sides.kernel, sides.seen), (Some(15), 15), "{ledgers:?}");
        assert_eq!(present[0].unexplained, Some(0), "{ledgers:?}");
    } else {
        // This kernel tells namespaces by their numbers only, and the ledger says so.
        let all = 15 + in_others;
        assert_eq!((sides.kernel, sides.seen), (Some(15), all), "{ledgers:?}");
        assert_eq!(present[0].unexplained, None, "{ledgers:?}");
        let note = present[0].note.as_deref().unwrap_or_default();
        assert!(note.contains("before 5.14"), "{ledgers:?}");
    }
}

/// Many come and go with traffic in each: every one of them is told exactly, whether
/// its number was another's before or not.
#[test]
fn many_that_come_and_go() {
    const NAMESPACES: u64 = 30;
    // Namespaces of other tests may have had their numbers, but not this port.
    let address = SocketAddr::new(Family::V4.loopback(), 8092);
    let tracer = Launch::live().start();
    for _ in 0..NAMESPACES {
        let room = Room::new(Family::V4, 10, &ALWAYS);
        let _listener = listener_beside(&room.netns, address, 10);
        room.flood_at(address, &Flood::of(10));
        assert_eq!(Counters::of(&room.netns).get("SyncookiesSent"), 10);
    }
    let recording = tracer.stop();
    let totals = recording.totals();
    let ours = totals.filter(|total| total.listener.port == address.port());
    assert_eq!(ours.map(|total| total.count).sum::<u64>(), 10 * NAMESPACES);
    assert_eq!(recording.lost(), Default::default());
}

/// What the program lists of one namespace, named by its number.
fn listed(netns: &Netns) -> String {
    let id = netns.id().to_string();
    let finished = Launch::plain(["listeners", "--json", "--netns", &id]).finish();
    finished.assert_well();
    finished.stdout
}

/// Nothing but a thread, whose process is elsewhere, leads into a namespace.
#[test]
fn one_in_which_only_a_thread_lives() {
    let room = Room::new(Family::V4, 10, &ALWAYS);
    room.netns
        .run(|| {
            let listed = listed(&room.netns);
            assert!(listed.contains("\"port\":8080"), "{listed:?}");
            Ok(())
        })
        .unwrap();
}

/// A namespace is named by a mount, and its name has a space and a backslash.
#[test]
fn one_with_an_odd_name() {
    let room = Room::new(Family::V4, 10, &ALWAYS);
    let scratch = Scratch::new("netns");
    let place = scratch.file("odd name\\ of it");
    std::fs::write(&place, "").unwrap();
    let listed = in_private_mounts(|mounts| {
        mounts.bind(&room.netns.path(), &place);
        listed(&room.netns)
    });
    assert!(listed.contains("\"port\":8080"), "{listed:?}");
}

/// The youngest process of a namespace is another one all the time. Its counters since boot
/// are not taken for those since attached.
#[test]
fn whose_youngest_process_ends_while_it_is_listed() {
    let room = Room::new(Family::V4, 10, &ALWAYS);
    let _inhabitant = Inhabitant::of(&room.netns);
    room.flood(500);
    let before = Counters::of(&room.netns);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let short = || {
                while !over.load(Ordering::Relaxed) {
                    Command::new("true").status()?;
                }
                Ok(())
            };
            room.netns.run(short).unwrap();
        });
        for _ in 0..3 {
            let recording = Launch::live().start().stop();
            let mine = recording
                .ledgers()
                .filter(|one| one.netns == room.netns.id());
            for ledger in mine {
                assert_eq!(ledger.unexplained, Some(0), "{ledger:?}");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        Counters::of(&room.netns).since(&before, "SyncookiesSent"),
        0
    );
}
