//! `queue-trace top`, driven in a pseudo-terminal: what a person sees on the screen.

use std::net::SocketAddr;

use live_tests::{Launch, Room, Screen, Tracer, attach, listener_beside};
use queue_trace::lab::Family;
use rustix::{process::Signal, termios::tcgetattr};

/// The program in a terminal of its own.
fn top(room: &Room, columns: u16, rows: u16, no_color: &str) -> (Tracer, Screen) {
    let (screen, theirs) = Screen::open(columns, rows);
    let tracer = Launch::plain(["top", "--attach", attach().name()])
        .on(&room.netns)
        .env("TERM", "xterm-256color")
        .env("NO_COLOR", no_color)
        .terminal(theirs)
        .spawn();
    (tracer, screen)
}

/// Waits until it has ended, with the terminal as it was before.
fn assert_ends(tracer: Tracer, screen: Screen) {
    let finished = tracer.wait();
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
    screen.assert_restored();
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
        let (tracer, mut screen) = top(&room, columns, rows, "");
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
        assert_ends(tracer, screen);
        drop(refused);
    }
}

#[test]
fn keys_select_sort_filter_pause_and_help() {
    let (room, _quiet) = room();
    let (tracer, mut screen) = top(&room, 100, 30, "");
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
    assert_ends(tracer, screen);
}

#[test]
fn a_new_size_is_drawn_anew() {
    let (room, _quiet) = room();
    let (tracer, mut screen) = top(&room, 80, 24, "");
    screen.wait_for("127.0.0.1:9090");
    screen.resize(50, 10);
    screen.wait_for("too small");
    screen.resize(140, 40);
    screen.wait_for("WAIT 50% 99% max");
    screen.press("q");
    assert_ends(tracer, screen);
}

#[test]
fn a_signal_restores_the_terminal_and_no_color_is_heeded() {
    let (room, _quiet) = room();
    let (tracer, mut screen) = top(&room, 80, 24, "1");
    let before = tcgetattr(&screen.keys).unwrap().local_modes;
    screen.wait_for("127.0.0.1:9090");
    let raw = tcgetattr(&screen.keys).unwrap().local_modes;
    let _in = room.connect(4);
    screen.wait_for("FULL");
    let shown = screen.shows();
    let (rows, columns) = shown.size();
    let (rows, columns) = (rows.get(), columns.get());
    for cell in
        (0..rows).flat_map(|row| (0..columns).filter_map(move |column| shown.cell(row, column)))
    {
        assert_eq!(cell.fgcolor(), vt100::Color::Default);
    }
    let terminal = screen.keys.try_clone().unwrap();
    tracer.signal(Signal::TERM);
    assert_ends(tracer, screen);
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
