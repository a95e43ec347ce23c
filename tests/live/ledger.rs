//! The ledger closes over the time attached, neither before nor after it, and at
//! whatever moment it is stopped.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use live_tests::{Counters, Launch, Room, Shown, expected};
use queue_trace::lab::{
    Family,
    raw::{Flood, flood},
};
use queue_trace_common::outcome;

const ALWAYS: [(&str, u32); 1] = [("net.ipv4.tcp_syncookies", 2)];

/// Counters that moved before attaching are nobody's concern.
#[test]
fn what_moved_before_is_not_counted() {
    let room = Room::new(Family::V4, 4, &ALWAYS);
    room.flood(77);
    let before = Counters::of(&room.netns);
    assert_eq!(before.get("SyncookiesSent"), 77);
    let tracer = Launch::live().on(&room.netns).start();
    room.flood(23);
    let sums = expected(&[(outcome::COOKIE_SENT_ALWAYS, 23)], Shown::Refusals);
    tracer.stop().assert_exact(&room.netns, &before, &sums);
}

/// Nothing happened: the ledger is there and says so.
#[test]
fn nothing_is_told_of_nothing() {
    for room in Room::of_each_family(4, &[]) {
        let recording = Launch::showing(Shown::All).on(&room.netns).start().stop();
        recording.assert_exact(&room.netns, &room.before, &expected(&[], Shown::All));
    }
}

/// The tracer is stopped while packets keep coming. The counters go on, so they
/// cannot be compared with anything read later; but the tracer's own sides must
/// agree, and events and totals be about the same packets.
#[test]
fn it_closes_in_the_middle_of_a_flood() {
    for room in Room::of_each_family(16, &ALWAYS) {
        let tracer = Launch::live().on(&room.netns).start();
        let over = AtomicBool::new(false);
        let recording = thread::scope(|scope| {
            scope.spawn(|| {
                room.netns.run(|| {
                    let mut first = 0;
                    while !over.load(Ordering::Relaxed) {
                        // In bursts, each from new clients.
                        let burst = Flood {
                            first,
                            per_second: Some(5000),
                            ..Flood::of(100)
                        };
                        flood(room.address, &burst)?;
                        first += burst.count;
                    }
                    Ok(())
                })
            });
            // Some of it has been seen by now.
            while Counters::of(&room.netns).get("SyncookiesSent") < 500 {
                thread::yield_now();
            }
            let recording = tracer.stop();
            over.store(true, Ordering::Relaxed);
            recording
        });
        let ledger = recording.ledger(&room.netns);
        assert_eq!(ledger.unexplained, Some(0), "{ledger:?}");
        let sides = ledger.counters["SyncookiesSent"];
        assert_eq!(sides.kernel, Some(sides.seen), "{ledger:?}");
        assert!(sides.seen >= 500, "{ledger:?}");
        let (events, totals) = (
            recording.verdicts(&room.netns),
            recording.counted(&room.netns),
        );
        assert_eq!(recording.lost().get("records"), None);
        assert_eq!(events, totals, "events and totals");
    }
}
