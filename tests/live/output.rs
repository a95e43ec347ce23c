//! What it writes where: text for people, files, colours.

use std::{
    fs::{self, File, Permissions},
    io::Read,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    thread,
    time::Duration,
};

use live_tests::{Launch, Recording, Room, Scratch, Shown, expected, terminal};
use queue_trace::{lab::Family, model::printable::is_printable};
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

/// Who may read it, and what becomes of an older one: private, and replaced only once there is
/// something to write.
#[test]
fn a_recording_is_private_and_replaces_an_older_one_late() {
    let scratch = Scratch::new("private");
    let file = scratch.file("incident.jsonl");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let no_types = scratch.file("letter.txt");
    fs::write(&no_types, "Dear kernel,").unwrap();
    let failed = Launch::live().arg("-o").arg(&file);
    let failed = failed.arg("--btf").arg(&no_types).finish();
    failed.assert_failed(1, &["letter.txt"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "old");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);

    let room = Room::new(Family::V4, 4, &ALWAYS);
    let tracer = Launch::live().on(&room.netns).arg("-o").arg(&file).start();
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    room.flood(10);
    tracer.signal(Signal::TERM);
    tracer.wait().assert_well();
    let recording = Recording::parse(&fs::read_to_string(&file).unwrap());
    assert_eq!(recording.events().count(), 10);
}

/// A file goes on being written when nobody reads standard output.
#[test]
fn a_file_does_not_end_with_the_reader_of_standard_output() {
    let scratch = Scratch::new("no-reader");
    let file = scratch.file("incident.jsonl");
    let room = Room::new(Family::V4, 4, &ALWAYS);
    let launch = Launch::live().on(&room.netns).arg("-o").arg(&file);
    let mut tracer = launch.unread().start();
    drop(tracer.take_stdout());
    // Longer than it takes to notice.
    thread::sleep(Duration::from_secs(3));
    room.flood(10);
    tracer.signal(Signal::TERM);
    tracer.wait().assert_well();
    let recording = Recording::parse(&fs::read_to_string(&file).unwrap());
    let sums = expected(&[(outcome::COOKIE_SENT_ALWAYS, 10)], Shown::Refusals);
    recording.assert_exact(&room.netns, &room.before, &sums);
}

/// Two recorders on one path: the second says so, and the first goes on.
#[test]
fn two_recorders_do_not_share_a_file() {
    let scratch = Scratch::new("two");
    for (name, rotate) in [("x.jsonl", &[][..]), ("y.jsonl", &["--rotate", "1h"])] {
        let file = scratch.file(name);
        let room = Room::new(Family::V4, 4, &ALWAYS);
        let launch = || {
            let launch = Launch::live().on(&room.netns);
            launch.args(rotate).arg("-o").arg(&file)
        };
        let first = launch().start();
        let second = launch().finish();
        second.assert_failed(1, &["another queue-trace", "another name"]);
        room.flood(10);
        first.signal(Signal::TERM);
        first.wait().assert_well();
    }
    let text = fs::read_to_string(scratch.file("x.jsonl")).unwrap();
    assert_eq!(Recording::parse(&text).events().count(), 10);
    let text = fs::read_to_string(scratch.file("y.000001.jsonl")).unwrap();
    assert_eq!(Recording::parse(&text).events().count(), 10);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
}

/// The folder is removed meanwhile: there is nothing left, so it is an error that says so.
#[test]
fn a_file_that_is_removed_is_missed() {
    for rotate in [&[][..], &["--rotate", "1s"]] {
        let scratch = Scratch::new("removed");
        let folder = scratch.file("folder");
        fs::create_dir_all(&folder).unwrap();
        let room = Room::new(Family::V4, 4, &ALWAYS);
        let launch = Launch::live().on(&room.netns).args(rotate);
        let tracer = launch.arg("-o").arg(folder.join("x.jsonl")).start();
        fs::remove_dir_all(&folder).unwrap();
        room.flood(10);
        let finished = tracer.wait();
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(finished.stderr.contains("cannot write to"), "{finished:?}");
        assert!(finished.stderr.contains("x"), "{finished:?}");
    }
}

/// Any user may give his process a name that a terminal would obey.
#[test]
fn names_of_processes_are_printable() {
    const HOSTILE: &str = "a\x1b[2J\nb\u{202e}c";
    let before = fs::read_to_string("/proc/self/comm").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    fs::write("/proc/self/comm", HOSTILE).unwrap();
    let looked = Launch::plain(["listeners", "-p", &port]).finish();
    let json = Launch::plain(["listeners", "--json", "-p", &port]).finish();
    fs::write("/proc/self/comm", before.trim_end()).unwrap();
    looked.assert_well();
    let text = looked.stdout.replace('\n', "");
    assert!(text.chars().all(is_printable), "{text}");
    assert!(text.contains("a\\x1b[2J\\nb\\u{202e}c["), "{text}");
    let row: serde_json::Value = serde_json::from_str(json.stdout.trim()).unwrap();
    assert_eq!(row["processes"][0]["comm"], HOSTILE);
}
