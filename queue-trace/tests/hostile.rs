//! Recordings made to do harm: words that a terminal would obey, and little files that unpack to
//! much.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "other tests use all of it")]
mod screen;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use queue_trace::model::printable::is_printable;
use serde_json::Value;

use self::screen::Screen;

/// Clears the screen, sets the title, goes up a line, writes over it, turns what follows around, and
/// hides in a name.
const HOSTILE: &str =
    "a\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}1A\r\n\tready: b\u{202e}c\u{2066}\u{200b}\u{7f}d";

fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings")
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("queue-trace-hostile-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a line cannot do without: its other words may be any.
const NEEDED: [&str; 13] = [
    "type",
    "step",
    "verdict",
    "cause",
    "time",
    "addr",
    "local",
    "network",
    "high_water_time",
    "counters",
    "outcomes",
    "counts",
    "drops",
];

fn poison(name: &str, value: &mut Value) {
    match value {
        Value::String(word) if !NEEDED.contains(&name) => *word = HOSTILE.to_owned(),
        Value::Array(values) if !NEEDED.contains(&name) => {
            for value in values {
                poison(name, value);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                poison(name, value);
            }
            // Names of counters, of outcomes and of what threads do.
            if ["counters", "threads", "drops"].contains(&name) {
                let first = fields.values().next().cloned();
                fields.extend(first.map(|value| (HOSTILE.to_owned(), value)));
            }
        }
        _ => {}
    }
}

/// A recording of which every word that may be any is hostile, and its name as well.
fn poisoned(scratch: &Scratch, name: &str) -> PathBuf {
    let text = fs::read_to_string(recordings().join(format!("{name}.jsonl"))).unwrap();
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut line: Value = serde_json::from_str(line).unwrap();
        poison("", &mut line);
        if line["type"] == "listener" {
            for field in ["unit", "container", "pod", "cgroup", "default_of"] {
                line[field] = HOSTILE.into();
            }
            line["stall"] = serde_json::json!({
                "cause": HOSTILE,
                "over_us": u64::MAX,
                "doing": vec![serde_json::json!({
                    "count": u32::MAX, "pid": 1, "tid": 1, "comm": HOSTILE, "state": HOSTILE, "call": HOSTILE,
                    "on": HOSTILE, "role": HOSTILE, "kernel": vec![HOSTILE; 99],
                    "run_us": u64::MAX, "delay_us": u64::MAX,
                }); 99],
                "cpu": {"file": HOSTILE, "periods": u64::MAX, "throttled_periods": u64::MAX, "throttled_us": u64::MAX},
                "memory": {"file": HOSTILE, "high_times": u64::MAX, "max_times": u64::MAX},
                "frozen_by": HOSTILE,
                "unread": vec![HOSTILE; 99],
            });
            line["threads"] = serde_json::json!({ HOSTILE: 1, "S x\u{1b}[1m": 2 });
            line["processes"] = serde_json::json!([{ "pid": 1, "comm": HOSTILE }]);
            line["accept_queue"]["limit_from"] = HOSTILE.into();
        }
        if line["type"] == "ledger" {
            line["note"] = HOSTILE.into();
        }
        lines.push(line.to_string());
    }
    // What is not understood is quoted in notes.
    lines.push(serde_json::json!({ "type": HOSTILE }).to_string());
    lines.push(r#"{"type":"event","step":"x","verdict":"\u001b[2J"}"#.to_owned());
    let path = scratch.file("x\u{1b}[2J\u{202e}\n.jsonl");
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    path
}

fn run(args: &[&str], file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_queue-trace"));
    command.args(args).arg(file).output().unwrap()
}

#[track_caller]
fn assert_printable(what: &str, bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).unwrap();
    let bad: Vec<_> = text
        .chars()
        .filter(|c| !is_printable(*c) && *c != '\n')
        .collect();
    assert!(bad.is_empty(), "{what}: {bad:?} in {text}");
    // It does not look like a line of our own.
    let forged = text
        .lines()
        .any(|line| line.trim_start().starts_with("ready: b"));
    assert!(!forged, "{what}: {text}");
}

#[test]
fn no_text_makes_a_terminal_do_anything() {
    for name in [
        "accept-overflow",
        "fentry-stuck-worker",
        "tracepoint-clients-hang",
    ] {
        let scratch = Scratch::new(name);
        let path = poisoned(&scratch, name);
        let mut said = String::new();
        for args in [
            &["replay", "--all"][..],
            &["replay"],
            &["diagnose"],
            &["diagnose", "--json"],
        ] {
            let output = run(args, &path);
            assert!(output.stdout.len() > 100, "{args:?}: {output:?}");
            assert_printable(&format!("{args:?}"), &output.stdout);
            assert_printable(&format!("{args:?} on standard error"), &output.stderr);
            said.push_str(&String::from_utf8(output.stdout).unwrap());
        }
        assert!(said.contains("a\\x1b[2J"), "it is spelled out: {said}");
        let page = scratch.file("page.html");
        let output = run(&["report", "-o", page.to_str().unwrap()], &path);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_printable("report on standard error", &output.stderr);
        let page = fs::read_to_string(page).unwrap();
        // What we put into it ourselves is as it was.
        let (made, _) = page.split_once("<script>").unwrap();
        let made: String = made.chars().filter(|c| *c != '\t').collect();
        assert!(!made.contains('\u{202e}') && !made.contains('\u{1b}'));
        // Names of files in errors.
        for args in [
            &["replay"][..],
            &["diagnose"],
            &["report", "-o", "/dev/null"],
        ] {
            let output = run(args, &scratch.file("no\u{1b}[2J\u{202e}\nsuch"));
            assert_printable("an error", &output.stderr);
            assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1);
        }
    }
}

/// JSON is passed on as it stands.
#[test]
fn json_stays_exact() {
    let scratch = Scratch::new("exact");
    let path = poisoned(&scratch, "accept-overflow");
    let output = run(&["replay", "--json", "--all"], &path);
    let json = String::from_utf8(output.stdout).unwrap();
    let header: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(header["host"], HOSTILE);
    // The last line says how many lines it ends, which the file with the hostile words does not
    // say right.
    let but_the_end = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| !line.contains("\"type\":\"end\""));
        lines.map(str::to_owned).collect()
    };
    let recording = fs::read_to_string(path).unwrap();
    for (shown, recorded) in but_the_end(&json).iter().zip(but_the_end(&recording)) {
        assert_eq!(*shown, recorded);
    }
    assert_eq!(but_the_end(&json).len(), but_the_end(&recording).len());
}

#[test]
fn top_shows_no_hostile_words() {
    let scratch = Scratch::new("top");
    let path = poisoned(&scratch, "accept-overflow");
    let (mut screen, theirs) = Screen::open(150, 40);
    let mut child = Command::new(env!("CARGO_BIN_EXE_queue-trace"))
        .arg("top")
        .arg(&path)
        .env("TERM", "xterm-256color")
        .stdin(theirs.try_clone().unwrap())
        .stdout(theirs.try_clone().unwrap())
        .stderr(theirs)
        .spawn()
        .unwrap();
    screen.press("\x1b[F");
    let text = screen.wait_for("a\\x1b[2J");
    assert_printable("top", text.as_bytes());
    screen.press("q");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    screen.assert_restored();
}

/// Address space: enough for the program and its tables, not for what is unpacked.
const ROOM_KIB: u32 = 128 << 10;

fn within_room(args: &[&str], file: &Path) -> Output {
    let shell = format!("ulimit -v {ROOM_KIB}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &shell, env!("CARGO_BIN_EXE_queue-trace")]);
    command.args(args).arg(file).output().unwrap()
}

fn packed(path: &Path, lines: impl Iterator<Item = String>) {
    let file = fs::File::create(path).unwrap();
    let mut encoder = zstd::Encoder::new(file, 3).unwrap();
    for line in lines {
        encoder.write_all(line.as_bytes()).unwrap();
        encoder.write_all(b"\n").unwrap();
    }
    encoder.finish().unwrap();
}

fn header() -> String {
    let text = fs::read_to_string(recordings().join("accept-overflow.jsonl")).unwrap();
    text.lines().next().unwrap().to_owned()
}

/// Bombs: each is some kilobytes, and unpacks to much more.
fn bombs(scratch: &Scratch) -> Vec<PathBuf> {
    let time = "2026-11-21T10:00:00Z";
    let long = "x".repeat(2000);
    let listener = |number: u32| {
        format!(
            "{{\"type\":\"listener\",\"time\":\"{time}\",\"netns\":{},\"listener\":{{\"port\":{},\"inode\":{number}}},\
             \"processes\":[{{\"pid\":1,\"comm\":\"{long}\"}}],\"unit\":\"{long}\",\"cgroup\":\"{long}\",\
             \"accept_queue\":{{\"depth\":1,\"limit\":1}},\"drops\":{{\"accept_queue_full\":1}},\"counts\":{{\"syn_dropped:accept_queue_full\":1}}}}",
            number / 100,
            number % 65535 + 1
        )
    };
    let counts = |number: u32| {
        format!(
            "{{\"type\":\"counts\",\"time\":\"{time}\",\"netns\":1,\"listener\":{{\"port\":1,\"inode\":{number}}},\
             \"outcomes\":{{\"syn_dropped:accept_queue_full\":1,\"queued\":1,\"accepted\":1}}}}"
        )
    };
    let total = |number: u32| {
        format!(
            "{{\"type\":\"total\",\"netns\":1,\"listener\":{{\"port\":1,\"inode\":{number}}},\
             \"step\":\"syn\",\"verdict\":\"syn_dropped\",\"cause\":\"accept_queue_full\",\"count\":1}}"
        )
    };
    let ledger = |number: u32| {
        format!(
            "{{\"type\":\"ledger\",\"netns\":{number},\"counters\":{{}},\"lost\":0,\"note\":\"{long}\"}}"
        )
    };
    let mut all = Vec::new();
    let mut bomb = |name: &str, lines: &dyn Fn(u32) -> String, count: u32| {
        let path = scratch.file(name);
        packed(
            &path,
            std::iter::once(header()).chain((0..count).map(lines)),
        );
        all.push(path);
    };
    bomb("listeners.zst", &listener, 20_000);
    bomb("counts.zst", &counts, 30_000);
    bomb("totals.zst", &total, 30_000);
    bomb("ledgers.zst", &ledger, 20_000);
    bomb("line.zst", &|_| " ".repeat(80 << 20), 1);
    bomb("blank.zst", &|_| "\n".repeat(1 << 20), 70);
    all
}

#[test]
fn memory_is_bounded_for_every_recording() {
    let scratch = Scratch::new("bombs");
    for path in bombs(&scratch) {
        for args in [
            &["replay", "--all"][..],
            &["diagnose"],
            &["report", "-o", "/dev/null"],
        ] {
            let output = within_room(args, &path);
            let stderr = String::from_utf8_lossy(&output.stderr);
            let name = path.file_name().unwrap().display();
            let status = output.status.code();
            assert!(
                matches!(status, Some(0..=2)) && !stderr.contains("memory"),
                "{args:?} {name}: {status:?} {stderr}"
            );
        }
    }
}

/// Lines that come second by second, so that there are moments to go back to: `top` keeps what was
/// known at some of them.
fn moments(scratch: &Scratch) -> PathBuf {
    let path = scratch.file("moments.zst");
    let long = "x".repeat(5000);
    let line = |number: u32| {
        let (minute, second) = (number / 400 / 60, number / 400 % 60);
        format!(
            "{{\"type\":\"listener\",\"time\":\"2026-11-21T10:{minute:02}:{second:02}Z\",\"netns\":1,\
             \"listener\":{{\"port\":80,\"inode\":{number}}},\"processes\":[{{\"pid\":1,\"comm\":\"{long}\"}}],\
             \"unit\":\"{long}\",\"accept_queue\":{{\"depth\":2,\"limit\":1}},\"drops\":{{\"accept_queue_full\":1}}}}"
        )
    };
    let lines = std::iter::once(header()).chain((0..24_000).map(line));
    packed(&path, lines);
    path
}

/// Address space for `top`: it keeps 64 MiB of moments, and draws.
const ROOM_OF_TOP_KIB: u32 = 256 << 10;

#[test]
fn memory_of_top_is_bounded_for_every_recording() {
    let scratch = Scratch::new("top-bombs");
    let mut files = bombs(&scratch);
    files.push(moments(&scratch));
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (mut screen, theirs) = Screen::open(150, 40);
        let shell =
            format!("ulimit -v {ROOM_OF_TOP_KIB}; exec env --default-signal \"$0\" top \"$1\"");
        let mut child = Command::new("sh")
            .args(["-c", &shell, env!("CARGO_BIN_EXE_queue-trace")])
            .arg(&path)
            .envs([("TERM", "xterm-256color"), ("TZ", "UTC")])
            .stdin(theirs.try_clone().unwrap())
            .stdout(theirs.try_clone().unwrap())
            .stderr(theirs)
            .spawn()
            .unwrap();
        let ends = ["top 1", "nothing to show", "memory", "error"];
        let text = screen.wait(name, |text| ends.iter().any(|end| text.contains(end)));
        if !text.contains("top 1") {
            // It has no moment to be shown.
            assert!(text.contains("nothing to show"), "{name}: {text}");
            assert_eq!(child.wait().unwrap().code(), Some(1), "{name}");
            continue;
        }
        let (_, span) = text.split_once(" of ").unwrap();
        let (first, _) = span.split_once(" to ").unwrap();
        for _ in 0..2 {
            screen.press("\x1b[F");
            screen.wait_for("  END");
            screen.press("\x1b[H");
            screen.wait_for(&format!("top {first} of"));
        }
        screen.press("q");
        assert_eq!(child.wait().unwrap().code(), Some(0), "{name}");
        screen.assert_restored();
    }
}

/// Where there is too little memory it says so, and does not abort.
#[test]
fn too_little_memory_is_said() {
    let path = recordings().join("accept-overflow.jsonl");
    let with = |kib: u32| {
        let shell = format!("ulimit -v {kib}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &shell, env!("CARGO_BIN_EXE_queue-trace")]);
        command.args(["report", "-o", "/dev/null"]);
        command.arg(&path).output().unwrap()
    };
    let (mut too_little, mut enough) = (1 << 10, 1 << 20);
    while enough - too_little > 16 {
        let middle = u32::midpoint(too_little, enough);
        if with(middle).status.success() {
            enough = middle;
        } else {
            too_little = middle;
        }
    }
    // Just below, where it runs and lacks something in the end.
    let mut said = 0;
    for lacks in (0..20).map(|step| step * 8) {
        let output = with(too_little - lacks);
        let stderr = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(1) if stderr.contains("memory") => said += 1,
            // The program itself cannot be loaded, or this time it was enough: addresses are
            // chosen at random.
            Some(127 | 0) => {}
            status => panic!("{lacks} KiB less than {enough}: {status:?} {stderr}"),
        }
    }
    assert!(
        said > 0,
        "only the loader lacked memory, below {enough} KiB"
    );
}
