//! However a run ends: by a signal, by itself, or because nobody reads it any more. It
//! closes its books where it can, exits with 0, and nothing of it stays.

use std::{
    io::{BufRead, BufReader},
    time::{Duration, Instant},
};

use live_tests::{Launch, Room, Shown, expected};
use queue_trace::lab::Family;
use queue_trace_common::outcome;
use rustix::process::Signal;

const ALWAYS: [(&str, u32); 1] = [("net.ipv4.tcp_syncookies", 2)];

fn room() -> Room {
    Room::new(Family::V4, 4, &ALWAYS)
}

#[test]
fn by_every_signal_that_asks_it_to() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let room = room();
        let tracer = Launch::live().on(&room.netns).start();
        room.flood(10);
        tracer.signal(signal);
        let recording = tracer.wait().recording();
        let sums = expected(&[(outcome::COOKIE_SENT_ALWAYS, 10)], Shown::Refusals);
        recording.assert_exact(&room.netns, &room.before, &sums);
    }
}

/// After as many events as were asked for, and no more of them; the books are about
/// all that happened.
#[test]
fn after_a_number_of_events() {
    let room = room();
    let tracer = Launch::live()
        .on(&room.netns)
        .args(["--count", "3"])
        .start();
    room.flood(10);
    let recording = tracer.wait().recording();
    assert_eq!(recording.events().count(), 3);
    let total: u64 = recording.counted(&room.netns).values().sum();
    assert!((3..=10).contains(&total), "{total}");
    assert_eq!(recording.ledger(&room.netns).unexplained, Some(0));
}

#[test]
fn after_a_time() {
    let room = room();
    let tracer = Launch::live()
        .on(&room.netns)
        .args(["--duration", "1s"])
        .start();
    let ready = Instant::now();
    room.flood(10);
    let recording = tracer.wait().recording();
    // Its clock began a moment before we heard that it was ready.
    assert!(
        ready.elapsed() > Duration::from_millis(500),
        "{:?}",
        ready.elapsed()
    );
    let sums = expected(&[(outcome::COOKIE_SENT_ALWAYS, 10)], Shown::Refusals);
    recording.assert_exact(&room.netns, &room.before, &sums);
}

/// The reader goes away, as `head` does. It ends at its next line, or, where nothing
/// happens, soon; quietly in both cases.
#[test]
fn when_nobody_reads_any_more() {
    for syns in [0, 2000] {
        let room = room();
        let mut tracer = Launch::live().on(&room.netns).unread().start();
        let mut header = String::new();
        let mut reader = BufReader::new(tracer.take_stdout());
        reader.read_line(&mut header).unwrap();
        assert!(header.contains(r#""type":"header""#), "{header}");
        drop(reader);
        if syns > 0 {
            room.flood(syns);
        }
        tracer.wait().assert_well();
    }
}
