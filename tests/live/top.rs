//! `queue-trace top`, driven in a pseudo-terminal: what a person sees on the screen.

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use live_tests::{Launch, Room, Tracer, attach, listener_beside, terminal};
use queue_trace::lab::Family;
use rustix::process::Signal;
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

/// Within it even an emulated machine attaches and draws.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program in a terminal of its own, and what the terminal shows.
struct Screen {
    tracer: Tracer,
    keys: File,
    written: Receiver<Vec<u8>>,
    shows: vt100::Parser,
}

impl Screen {
    fn open(room: &Room, columns: u16, rows: u16, no_color: &str) -> Self {
        let (ours, theirs) = terminal();
        set_size(&ours, columns, rows);
        let tracer = Launch::plain(["top", "--attach", attach().name()])
            .on(&room.netns)
            .env("TERM", "xterm-256color")
            .env("NO_COLOR", no_color)
            .terminal(theirs)
            .spawn();
        let mut reader = ours.try_clone().unwrap();
        let (sender, written) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Ends with an error once the program has closed the terminal.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            tracer,
            keys: ours,
            written,
            shows: vt100::Parser::new(some(rows), some(columns), 0),
        }
    }

    fn text(&self) -> String {
        self.shows.screen().contents()
    }

    /// Waits until the screen is as it should be, and gives it.
    #[track_caller]
    fn wait(&mut self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.text();
            if is_so(&text) {
                return text;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.written.recv_timeout(left) {
                Ok(bytes) => self.shows.process(&bytes),
                Err(error) => panic!("{error} while waiting for {what}:\n{text}"),
            }
        }
    }

    #[track_caller]
    fn wait_for(&mut self, words: &str) -> String {
        self.wait(words, |text| text.contains(words))
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until it has ended, with the terminal as it was before.
    fn assert_ends(mut self) {
        let finished = self.tracer.wait();
        assert_eq!(finished.status.code(), Some(0), "{finished:?}");
        while let Ok(bytes) = self.written.recv_timeout(PATIENCE) {
            self.shows.process(&bytes);
        }
        let text = self.shows.screen().contents();
        assert!(!self.shows.screen().alternate_screen(), "{text}");
        assert!(!self.shows.screen().hide_cursor());
    }
}

fn some(size: u16) -> NonZero<u16> {
    NonZero::new(size).unwrap()
}

fn set_size(terminal: &impl AsFd, columns: u16, rows: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

/// A listener that is full and refuses, beside one that is not.
fn room() -> (Room, std::net::TcpListener) {
    let room = Room::new(Family::V4, 3, &[("net.ipv4.tcp_syncookies", 0)]);
    let at = SocketAddr::new(room.family.loopback(), 9090);
    let quiet = listener_beside(&room.netns, at, 64);
    (room, quiet)
}

#[test]
fn what_is_in_trouble_is_seen_on_a_small_and_on_a_large_screen() {
    for (columns, rows) in [(80, 24), (200, 60)] {
        let (room, _quiet) = room();
        let mut screen = Screen::open(&room, columns, rows, "");
        screen.wait_for("127.0.0.1:9090");
        let _in = room.connect(4);
        let refused = room.rush(5, None);
        let text = screen.wait("the refusals", |text| {
            text.contains("4/3 FULL") && text.contains("5  accept queue full")
        });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), usize::from(rows), "{text}");
        // The one in trouble comes first, and is looked at closely.
        assert!(lines[1].starts_with("LISTENER"), "{text}");
        assert!(lines[2].starts_with("127.0.0.1:8080"), "{text}");
        assert!(lines[3].starts_with("127.0.0.1:9090"), "{text}");
        assert!(lines[4].contains("127.0.0.1:8080  netns"), "{text}");
        assert!(text.contains("syn_dropped:accept_queue_full"), "{text}");
        assert!(text.contains("limit from backlog"), "{text}");
        screen.press("q");
        screen.assert_ends();
        drop(refused);
    }
}

#[test]
fn keys_select_sort_filter_pause_and_help() {
    let (room, _quiet) = room();
    let mut screen = Screen::open(&room, 100, 30, "");
    screen.wait_for("127.0.0.1:9090");
    screen.press("j");
    screen.wait_for(" 127.0.0.1:9090  netns");
    screen.press("k");
    screen.wait_for(" 127.0.0.1:8080  netns");
    screen.press("/9090\r");
    screen.wait("the filter", |text| {
        text.contains("filter: 9090") && !text.contains("127.0.0.1:8080")
    });
    screen.press("\x1b");
    screen.wait_for("127.0.0.1:8080");
    screen.press("d");
    screen.wait_for("sorted by drops");
    screen.press("?");
    screen.wait_for("Keys (any key closes this)");
    screen.press("x");
    screen.wait("no help", |text| !text.contains("any key closes"));
    screen.press(" ");
    screen.wait_for("PAUSED");
    let _in = room.connect(2);
    screen.press(" ");
    screen.wait_for("2/3");
    screen.press("\x03");
    screen.assert_ends();
}

#[test]
fn a_new_size_is_drawn_anew() {
    let (room, _quiet) = room();
    let mut screen = Screen::open(&room, 80, 24, "");
    screen.wait_for("127.0.0.1:9090");
    set_size(&screen.keys, 50, 10);
    screen.shows.screen_mut().set_size(some(10), some(50));
    screen.wait_for("too small");
    set_size(&screen.keys, 140, 40);
    screen.shows.screen_mut().set_size(some(40), some(140));
    screen.wait_for("WAIT 50% 99% max");
    screen.press("q");
    screen.assert_ends();
}

#[test]
fn a_signal_restores_the_terminal_and_no_color_is_heeded() {
    let (room, _quiet) = room();
    let mut screen = Screen::open(&room, 80, 24, "1");
    let before = tcgetattr(&screen.keys).unwrap().local_modes;
    screen.wait_for("127.0.0.1:9090");
    let raw = tcgetattr(&screen.keys).unwrap().local_modes;
    let _in = room.connect(4);
    screen.wait_for("FULL");
    let shown = screen.shows.screen();
    let (rows, columns) = shown.size();
    let (rows, columns) = (rows.get(), columns.get());
    for cell in
        (0..rows).flat_map(|row| (0..columns).filter_map(move |column| shown.cell(row, column)))
    {
        assert_eq!(cell.fgcolor(), vt100::Color::Default);
    }
    let terminal = screen.keys.try_clone().unwrap();
    screen.tracer.signal(Signal::TERM);
    screen.assert_ends();
    let after = tcgetattr(&terminal).unwrap().local_modes;
    assert_ne!(raw, after);
    // If it was looked at before the program had changed it.
    assert!(before == after || before == raw);
}

#[test]
fn without_a_terminal_it_says_what_else_to_do() {
    let finished = Launch::plain(["top"]).finish();
    finished.assert_failed(1, &["needs a terminal", "--watch"]);
}
