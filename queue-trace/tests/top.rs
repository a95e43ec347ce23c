//! `queue-trace top FILE` in a pseudo-terminal: what a person sees of a recording at a
//! moment of it, whatever form the file has. Needs no privileges.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod screen;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
};

use self::screen::Screen;

fn recording(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    folder.join(format!("{name}.jsonl"))
}

/// The program in a terminal of its own, with times in UTC. Signals that whoever runs the tests
/// has ignored end it all the same.
fn top(args: &[&Path], columns: u16, rows: u16) -> (Child, Screen) {
    let (screen, theirs) = Screen::open(columns, rows);
    let child = Command::new("env")
        .args(["--default-signal", env!("CARGO_BIN_EXE_queue-trace"), "top"])
        .args(args)
        .env("TERM", "xterm-256color")
        .env("TZ", "UTC")
        .env_remove("NO_COLOR")
        .stdin(theirs.try_clone().unwrap())
        .stdout(theirs.try_clone().unwrap())
        .stderr(theirs)
        .spawn()
        .unwrap();
    (child, screen)
}

fn quit(mut child: Child, mut screen: Screen) {
    screen.press("q");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    screen.assert_restored();
}

const LEFT: &str = "\x1b[D";
const RIGHT: &str = "\x1b[C";
const HOME: &str = "\x1b[H";
const END: &str = "\x1b[F";

/// Three bursts: at 12:59:56, 12:59:59 and 13:00:03 of eleven refusals each.
const BURSTS: &str = "tracepoint-bursts";

/// Waits until all of it is to be seen.
#[track_caller]
fn see(screen: &mut Screen, words: &[&str]) {
    screen.wait(&words.join(", "), |text| {
        words.iter().all(|words| text.contains(words))
    });
}

/// The pane of a listener in trouble says why nobody accepts; before there was any trouble, it says
/// nothing.
#[test]
fn why_the_application_did_not_accept_is_in_the_pane() {
    let (child, mut screen) = top(&[&recording("tracepoint-throttled")], 200, 60);
    screen.press(" ");
    screen.wait_for("PAUSED");
    screen.press(HOME);
    let text = screen.wait_for("0/8");
    assert!(!text.contains("not accepting"), "{text}");
    screen.press(END);
    see(
        &mut screen,
        &["9/8 FULL", "not accepting: its CPU quota (5.0ms in each"],
    );
    quit(child, screen);
}

#[test]
fn the_cursor_goes_forth_and_back_and_shows_what_was_known_then() {
    for (columns, rows) in [(80, 24), (200, 60)] {
        let (child, mut screen) = top(&[&recording(BURSTS)], columns, rows);
        screen.press(" ");
        screen.wait_for("PAUSED");
        screen.press(HOME);
        let at = "top 12:59:56 of 12:59:56 to 13:00:06";
        see(&mut screen, &[at, "9/8 FULL", "11  accept queue full"]);
        screen.press(END);
        let refused = "33  accept queue full";
        // The clients of refusals alone matter.
        let client = "33  100.0%  127.0.0.0/24";
        let event = "3s syn_dropped:accept_queue_full";
        see(
            &mut screen,
            &["top 13:00:06 of", "END", refused, client, event],
        );
        screen.press(&LEFT.repeat(4));
        see(&mut screen, &["top 13:00:02 of", "22  accept queue full"]);
        screen.press(RIGHT);
        see(&mut screen, &["top 13:00:03 of", refused]);
        screen.press("[");
        see(&mut screen, &["top 12:59:56 of", "11  accept queue full"]);
        screen.press("]");
        see(&mut screen, &["top 13:00:06 of", refused]);
        quit(child, screen);
    }
}

#[test]
fn it_plays_second_by_second_until_the_end() {
    let (child, mut screen) = top(&[&recording(BURSTS)], 100, 30);
    for second in ["12:59:56", "12:59:57", "12:59:58"] {
        let text = screen.wait_for(&format!("top {second} of"));
        assert!(!text.contains("PAUSED"), "{text}");
    }
    screen.press(&RIGHT.repeat(7));
    screen.wait_for("END");
    quit(child, screen);
}

/// In a compressed file there is no way to a moment but through all before it, and in a
/// divided one it may be in another file.
#[test]
fn a_compressed_and_divided_recording_is_shown_just_so() {
    let text = fs::read_to_string(recording(BURSTS)).unwrap();
    let middle = text[..text.len() / 2].rfind('\n').unwrap() + 1;
    let folder = std::env::temp_dir().join(format!("queue-trace-top-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (first, second) = (folder.join("1.zst"), folder.join("2.gz"));
    fs::write(
        &first,
        zstd::encode_all(&text.as_bytes()[..middle], 1).unwrap(),
    )
    .unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&text.as_bytes()[middle..]).unwrap();
    fs::write(&second, gzip.finish().unwrap()).unwrap();
    let (child, mut screen) = top(&[&first, &second], 80, 24);
    screen.wait_for("12:59:56 to 13:00:06");
    screen.press(END);
    screen.wait_for("33  accept queue full");
    screen.press(&format!(" {HOME}"));
    screen.wait_for("11  accept queue full");
    // What is missing of it is told where the keys are.
    screen.press("?");
    screen.wait_for("has no end");
    quit_help(child, screen);
    fs::remove_dir_all(folder).unwrap();
}

fn quit_help(child: Child, mut screen: Screen) {
    screen.press("x");
    screen.wait("no help", |text| !text.contains("any key closes"));
    quit(child, screen);
}

#[test]
fn a_new_size_is_drawn_anew() {
    let (child, mut screen) = top(&[&recording(BURSTS)], 80, 24);
    screen.wait_for("127.0.0.1:8080");
    screen.resize(50, 10);
    screen.wait_for("too small");
    screen.resize(140, 40);
    screen.wait_for("WAIT 50% 99% max");
    quit(child, screen);
}

/// What was lost stands in the first line.
#[test]
fn a_loss_is_seen() {
    let file = std::env::temp_dir().join(format!("queue-trace-lost-{}.jsonl", std::process::id()));
    let mut text = fs::read_to_string(recording(BURSTS)).unwrap();
    text.push_str("{\"type\":\"loss\",\"time\":\"2026-08-01T00:00:00Z\",\"failed_reads\":7}\n");
    fs::write(&file, text).unwrap();
    let (child, mut screen) = top(&[&file], 100, 30);
    screen.press(END);
    screen.wait("what was lost", |text| {
        let first = text.lines().next().unwrap_or_default();
        first.contains("LOST 7 failed reads")
    });
    quit(child, screen);
    fs::remove_file(file).unwrap();
}

#[test]
fn filters_leave_listeners_out() {
    let recording = recording("fentry-stuck-worker");
    let (child, mut screen) = top(&[&recording, Path::new("-p"), Path::new("1")], 80, 24);
    screen.press(END);
    screen.wait_for("END");
    screen.wait_for("No listeners.");
    quit(child, screen);
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_queue-trace"));
    command.arg("top").args(args).output().unwrap()
}

#[test]
fn without_a_terminal_it_says_what_else_to_do() {
    let output = run(&[recording(BURSTS).to_str().unwrap()]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("needs a terminal"), "{error}");
    assert!(error.contains("queue-trace replay"), "{error}");
}

/// Whatever ends it or puts it aside, the terminal is given back.
#[test]
fn the_terminal_is_given_back_on_any_signal() {
    use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
    let file = recording(BURSTS);
    for signal in [
        Signal::INT,
        Signal::TERM,
        Signal::HUP,
        Signal::QUIT,
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
    ] {
        let (mut child, mut screen) = top(&[&file], 100, 30);
        see(&mut screen, &["LISTENER"]);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal:?}");
        screen.assert_restored();
    }
    let (child, mut screen) = top(&[&file], 100, 30);
    see(&mut screen, &["LISTENER"]);
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TSTP).unwrap();
    screen.wait_until("the screen of before", |shows| !shows.alternate_screen());
    // It stops itself after that. Going on before it has stopped would be without effect.
    let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
    assert!(status.stopped(), "{status:?}");
    kill_process(pid, Signal::CONT).unwrap();
    screen.wait_until("the listeners again", |shows| {
        shows.alternate_screen() && shows.contents().contains("LISTENER")
    });
    quit(child, screen);
}
