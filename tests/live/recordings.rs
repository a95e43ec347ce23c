//! Recordings as they are made: compressed, divided, and cut off by a kill.

use std::{
    fs,
    path::{Path, PathBuf},
};

use live_tests::{Finished, Launch, Recording, Room, Scratch};
use queue_trace::lab::Family;
use rustix::process::Signal;

use crate::bench::wait_until;

const ALWAYS: [(&str, u32); 1] = [("net.ipv4.tcp_syncookies", 2)];

fn record(room: &Room, path: &Path) -> Launch {
    Launch::text()
        .args(["--json", "-o"])
        .arg(path)
        .on(&room.netns)
}

fn replay(path: &Path) -> Finished {
    Launch::plain(["replay", "--json"]).arg(path).finish()
}

/// It can be read while it is written, and after its recorder was killed.
#[test]
fn what_was_flushed_survives_a_kill() {
    for name in ["x.jsonl", "x.jsonl.zst", "x.jsonl.gz"] {
        let scratch = Scratch::new("killed");
        let path = scratch.file(name);
        let room = Room::new(Family::V4, 4, &ALWAYS);
        let tracer = record(&room, &path).start();
        room.flood(10);
        let events = |finished: &Finished| finished.stdout.matches("\"type\":\"event\"").count();
        wait_until("ten events in the file", || events(&replay(&path)) == 10);
        tracer.signal(Signal::KILL);
        let _ = tracer.wait();
        let left = replay(&path);
        assert_eq!(left.status.code(), Some(0), "{name}: {left:?}");
        assert_eq!(events(&left), 10, "{name}");
        assert!(left.stderr.contains("no end"), "{name}: {}", left.stderr);
        let _ = Recording::parse(&left.stdout);
    }
}

/// The last files are kept, each can be read alone, and all of them together.
#[test]
fn a_recording_in_several_files() {
    let scratch = Scratch::new("rotated");
    let path = scratch.file("x.jsonl.zst");
    let room = Room::new(Family::V4, 4, &ALWAYS);
    let tracer = record(&room, &path)
        .args(["--rotate", "1s", "--keep", "2"])
        .start();
    wait_until("a third file", || {
        scratch.file("x.000003.jsonl.zst").exists()
    });
    room.flood(10);
    tracer.signal(Signal::TERM);
    tracer.wait().assert_well();
    let mut files: Vec<PathBuf> = fs::read_dir(scratch.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 2, "{files:?}");
    for file in &files {
        let finished = replay(file);
        assert_eq!(finished.stderr, "", "{file:?}");
        let _ = Recording::parse(&finished.stdout).header();
    }
    let together = Launch::plain(["replay", "--json"]).args(&files).finish();
    assert_eq!(together.stdout.matches("\"type\":\"header\"").count(), 2);
    assert_eq!(together.stdout.matches("\"type\":\"event\"").count(), 10);
}

/// Each file has the listeners that there are, and what is not the recording's own stays.
#[test]
fn a_file_of_several_tells_its_listeners_and_leaves_others_alone() {
    let scratch = Scratch::new("rotated-listeners");
    let path = scratch.file("x.jsonl");
    let others = ["x.000001.jsonl", "x.0000009.jsonl", "x.000004.jsonl.old"];
    for name in others {
        fs::write(scratch.file(name), "a letter").unwrap();
    }
    fs::create_dir_all(scratch.file("x.000003.jsonl")).unwrap();
    let room = Room::new(Family::V4, 4, &ALWAYS);
    let tracer = record(&room, &path)
        .args(["--rotate", "1s", "--keep", "2"])
        .start();
    wait_until("a fifth file", || scratch.file("x.000005.jsonl").exists());
    tracer.signal(Signal::TERM);
    tracer.wait().assert_well();
    for name in others {
        assert_eq!(fs::read_to_string(scratch.file(name)).unwrap(), "a letter");
    }
    assert!(scratch.file("x.000003.jsonl").is_dir());
    let last = |text: String| text.lines().next_back().unwrap().to_owned();
    let mut own = 0;
    for entry in fs::read_dir(scratch.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if others.contains(&name) || path.is_dir() {
            continue;
        }
        own += 1;
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\"type\":\"header\""), "{name}: {text}");
        let port = format!("\"port\":{}", room.address.port());
        let listens = |line: &&str| line.contains("\"type\":\"listener\"") && line.contains(&port);
        assert_ne!(text.lines().filter(listens).count(), 0, "{name}: {text}");
        assert!(last(text).contains("\"type\":\"end\""), "{name}");
    }
    assert_eq!(own, 2);
}
