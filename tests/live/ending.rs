//! However a run ends: by a signal, by itself, or because nobody reads it any more. It
//! closes its books where it can, exits with 0, and nothing of it stays.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    thread,
    time::{Duration, Instant},
};

use live_tests::{Launch, Recording, Room, Scratch, Shown, expected, signals};
use queue_trace::lab::Family;
use queue_trace_common::outcome;
use rustix::process::Signal;

use crate::bench::wait_until;

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

/// A signal that was ignored at the start stays ignored, as nohup and shells want for what runs in
/// the background.
#[test]
fn not_by_signals_that_were_ignored_at_the_start() {
    let room = room();
    let tracer = Launch::live().on(&room.netns).with(signals::ignore).start();
    for signal in [Signal::INT, Signal::HUP, Signal::QUIT] {
        tracer.signal(signal);
    }
    room.flood(10);
    let recording = tracer.stop();
    let sums = expected(&[(outcome::COOKIE_SENT_ALWAYS, 10)], Shown::Refusals);
    recording.assert_exact(&room.netns, &room.before, &sums);
}

/// Nobody can read what it says beside the data: it records all the same.
#[test]
fn not_by_an_unwritable_standard_error() {
    let scratch = Scratch::new("stderr");
    for unwritable in ["/dev/full", "closed"] {
        let file = scratch.file("x.jsonl");
        let room = room();
        let launch = Launch::live().on(&room.netns).args(["--duration", "4s"]);
        let launch = launch.arg("-o").arg(&file).with(|command| {
            let file = if unwritable == "closed" {
                // Open for reading only.
                File::open("/dev/null").unwrap()
            } else {
                OpenOptions::new().write(true).open(unwritable).unwrap()
            };
            command.stderr(file);
        });
        let tracer = launch.spawn();
        wait_until("a recording", || {
            fs::metadata(&file).is_ok_and(|about| about.len() > 0)
        });
        room.flood(10);
        let finished = tracer.wait();
        assert_eq!(finished.status.code(), Some(0), "{finished:?}");
        let recording = Recording::parse(&fs::read_to_string(&file).unwrap());
        assert_eq!(recording.events().count(), 10);
        fs::remove_file(&file).unwrap();
    }
}

/// Signals while programs are verified: it is no refusal of the kernel's.
#[test]
fn not_by_signals_while_it_attaches() {
    let room = room();
    let tracer = Launch::live().on(&room.netns).spawn();
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        tracer.signal(Signal::STOP);
        tracer.signal(Signal::CONT);
        thread::sleep(Duration::from_millis(3));
    }
    // On an emulated machine it has not attached yet.
    let tracer = tracer.ready();
    tracer.signal(Signal::TERM);
    tracer.wait().assert_well();
}

/// A signal while programs are verified ends it before the rest of them: it says that nothing was
/// watched, or is attached already and closes its books.
#[test]
fn by_a_signal_while_it_attaches() {
    let room = room();
    for after in [0, 20, 50, 100, 200, 500, 1000, 2000].map(Duration::from_millis) {
        let tracer = Launch::live().on(&room.netns).spawn();
        thread::sleep(after);
        let finished = tracer.end_soon();
        match finished.status.code() {
            // It had not come to handling signals.
            None => assert_eq!(finished.status.signal(), Some(Signal::TERM.as_raw())),
            Some(1) => finished.assert_failed(1, &["ended by a signal before it was attached"]),
            _ => {
                finished.assert_well();
                assert!(finished.stdout.contains("\"type\":\"end\""), "{finished:?}");
            }
        }
    }
}
