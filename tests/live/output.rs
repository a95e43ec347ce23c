//! What it writes where: text for people, files, colours.

use std::{
    fs::{self, File},
    io::Read,
};

use live_tests::{Launch, Recording, Room, Scratch, Shown, expected, terminal};
use queue_trace::lab::Family;
use queue_trace_common::outcome;
use rustix::process::Signal;

const ALWAYS: [(&str, u32); 1] = [("net.ipv4.tcp_syncookies", 2)];

#[test]
fn text_is_aligned_and_plain_in_a_pipe() {
    for room in Room::of_each_family(4, &ALWAYS) {
        let tracer = Launch::text().on(&room.netns).start();
        room.flood(10);
        tracer.signal(Signal::TERM);
        let finished = tracer.wait();
        finished.assert_well();
        let text = finished.stdout;
        assert!(!text.contains('\x1b'), "{text}");

        let mut lines = text.lines();
        let title = lines.find(|line| line.starts_with("TIME")).unwrap();
        let columns = ["VERDICT", "CAUSE", "LISTENER", "CLIENT", "QUEUES"];
        let starts = columns.map(|column| title.find(column).unwrap());
        let events: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        assert_eq!(events.len(), 10, "{text}");
        for event in &events {
            assert!(event.contains("cookie sent"), "{event}");
            assert!(event.contains("accept 0/4"), "{event}");
            assert!(event.contains(&room.address.to_string()), "{event}");
            for start in starts {
                let (before, after) = event.split_at(start);
                assert!(before.ends_with("  "), "{title}\n{event}");
                assert!(!after.starts_with(' '), "{title}\n{event}");
            }
        }
        let summary: Vec<_> = lines.collect();
        let has = |words: &[&str]| {
            summary
                .iter()
                .any(|line| words.iter().all(|word| line.contains(word)))
        };
        assert!(has(&["10  cookie sent", "always"]), "{text}");
        assert!(
            has(&["ledger of netns", "unexplained 0", "0 records lost"]),
            "{text}"
        );
        assert!(has(&["10  SyncookiesSent", "seen 10"]), "{text}");
    }
}

#[test]
fn a_quiet_run_says_that_nothing_was_refused() {
    let room = Room::new(Family::V4, 4, &[]);
    let tracer = Launch::text().on(&room.netns).start();
    tracer.signal(Signal::INT);
    let finished = tracer.wait();
    finished.assert_well();
    assert!(
        finished.stdout.contains("was seen while attached"),
        "{finished:?}"
    );
}

#[test]
fn colour_is_for_terminals_and_not_with_no_color() {
    for (no_color, colourful) in [("", true), ("1", false)] {
        let room = Room::new(Family::V4, 4, &ALWAYS);
        let (terminal, program_side) = terminal();
        let tracer = Launch::text()
            .on(&room.netns)
            .env("TERM", "xterm")
            .env("NO_COLOR", no_color)
            .stdout_to(program_side)
            .start();
        room.flood(1);
        tracer.signal(Signal::TERM);
        tracer.wait().assert_well();
        let text = all_of(terminal);
        assert!(text.contains("cookie sent"), "{text}");
        assert_eq!(text.contains('\x1b'), colourful, "{text}");
    }
}

/// What was written to a terminal that nobody has open any more.
fn all_of(mut terminal: File) -> String {
    let mut text = Vec::new();
    // Ends with an error of input and output, after all was read.
    let _ = terminal.read_to_end(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn a_file_gets_all_of_it_and_standard_output_nothing() {
    let scratch = Scratch::new("output");
    let file = scratch.file("incident.jsonl");
    let room = Room::new(Family::V4, 4, &ALWAYS);
    let tracer = Launch::live().on(&room.netns).arg("-o").arg(&file).start();
    room.flood(10);
    tracer.signal(Signal::TERM);
    let finished = tracer.wait();
    finished.assert_well();
    assert_eq!(finished.stdout, "");
    let recording = Recording::parse(&fs::read_to_string(file).unwrap());
    let sums = expected(&[(outcome::COOKIE_SENT_ALWAYS, 10)], Shown::Refusals);
    recording.assert_exact(&room.netns, &room.before, &sums);
}
