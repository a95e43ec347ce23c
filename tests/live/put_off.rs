//! Handshakes that the kernel puts off, or lets go the long way: TCP_DEFER_ACCEPT, and a full
//! fast-open queue. What is told is exactly what the kernel's own counters of it say.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use live_tests::{Counters, FrontSides, Launch, Recording, Room, Shown, expected};
use queue_trace::lab::{
    Family, Listen,
    raw::{RawPeer, Wire},
};
use queue_trace_common::outcome;

use crate::diagnose::diagnosed;

const PATIENCE: Duration = Duration::from_secs(10);
const DEFERRED: &str = "ack_deferred";
const FAST_OPEN: &str = "fast_open_refused";

/// A listener on another port of the room.
fn beside(room: &Room, port: u16, listen: &Listen) -> (SocketAddr, TcpListener) {
    let at = SocketAddr::new(room.family.loopback(), port);
    (at, room.netns.run(|| listen.on(at)).unwrap())
}

fn deferring(room: &Room, port: u16) -> (SocketAddr, TcpListener) {
    let listen = Listen {
        defer_accept: Some(30),
        ..Listen::default()
    };
    beside(room, port, &listen)
}

/// So many clients say SYN, hear the answer, and confirm it without data.
fn confirm(room: &Room, at: SocketAddr, clients: usize) -> Vec<SocketAddr> {
    let play = || {
        let mut wire = Wire::open(room.family)?;
        let mut addresses = Vec::new();
        for _ in 0..clients {
            let mut peer = RawPeer::new(&mut wire, at)?;
            peer.syn(&wire)?;
            peer.syn_ack(&mut wire, PATIENCE)?;
            peer.ack(&wire)?;
            addresses.push(peer.address());
        }
        wire.settle()?;
        Ok(addresses)
    };
    room.netns.run(play).unwrap()
}

/// Who sent what was told so, of a listener.
fn clients_of(recording: &Recording, verdict: &str, at: SocketAddr) -> BTreeSet<SocketAddr> {
    let events = recording.events().filter(|event| event.verdict == verdict);
    let of_it = events.filter(|event| event.listener.port == at.port());
    of_it
        .map(|event| {
            let client = event.client.as_ref().unwrap();
            SocketAddr::new(client.addr, client.port)
        })
        .collect()
}

/// Final ACKs without data are told of at the listener that put them off; one that takes them is
/// beside it.
#[test]
fn acks_that_are_deferred() {
    for family in Family::ALL {
        let room = Room::new(family, 64, &[]);
        let (first, _listener) = deferring(&room, 8081);
        let (second, _other) = deferring(&room, 8082);
        let tracer = Launch::showing(Shown::All).on(&room.netns).start();
        let of_first = confirm(&room, first, 7);
        let of_second = confirm(&room, second, 3);
        confirm(&room, room.address, 4);
        let recording = tracer.stop();
        let outcomes = [
            (outcome::QUEUED, 14),
            (outcome::ACK_DEFERRED, 10),
            (outcome::ESTABLISHED_HANDSHAKE, 4),
        ];
        let sums = expected(&outcomes, Shown::All);
        recording.assert_exact(&room.netns, &room.before, &sums);
        let moved = Counters::of(&room.netns).since(&room.before, "TCPDeferAcceptDrop");
        assert_eq!(moved, 10);
        for (at, clients) in [(first, of_first), (second, of_second)] {
            assert_eq!(
                clients_of(&recording, DEFERRED, at),
                clients.into_iter().collect()
            );
        }
        for event in recording.events().filter(|event| event.verdict == DEFERRED) {
            assert_eq!(event.step, "ack");
            assert!(event.listener.inode.is_some(), "{event:?}");
        }
    }
}

/// Nothing is refused by it, so nothing is shown of it unless it is asked for. The ledger has what
/// the kernel counted.
#[test]
fn deferred_acks_are_no_refusals() {
    let room = Room::new(Family::V4, 64, &[]);
    let (at, _listener) = deferring(&room, 8081);
    let quiet = Launch::showing(Shown::Refusals).on(&room.netns).start();
    let asked = Launch::live()
        .args(["--event", DEFERRED])
        .on(&room.netns)
        .start();
    confirm(&room, at, 5);
    let recording = quiet.stop();
    let sums = expected(&[], Shown::Refusals);
    recording.assert_exact(&room.netns, &room.before, &sums);
    let sides = |recording: &Recording| recording.ledger(&room.netns).in_front[DEFERRED];
    let counted = FrontSides {
        kernel: Some(5),
        seen: None,
    };
    assert_eq!(sides(&recording), counted);
    let recording = asked.stop();
    let sums = expected(&[(outcome::ACK_DEFERRED, 5)], Shown::All);
    recording.assert_exact(&room.netns, &room.before, &sums);
    let both = FrontSides {
        kernel: Some(5),
        seen: Some(5),
    };
    assert_eq!(sides(&recording), both);
}

/// How many handshakes by fast open may be unfinished.
const UNFINISHED: usize = 2;

/// A room in which fast open takes no cookie, and a listener with such a queue.
fn fast(family: Family) -> (Room, SocketAddr, TcpListener) {
    const CLIENT_SERVER_AND_NO_COOKIE: u32 = 0x203;
    let fast_open = [("net.ipv4.tcp_fastopen", CLIENT_SERVER_AND_NO_COOKIE)];
    let room = Room::new(family, 64, &fast_open);
    let listen = Listen {
        fast_open: Some(UNFINISHED as i32),
        ..Listen::default()
    };
    let (at, listener) = beside(&room, 8081, &listen);
    (room, at, listener)
}

/// So many clients send a SYN with data and nothing more.
fn rush(room: &Room, at: SocketAddr, clients: usize) -> Vec<SocketAddr> {
    let play = || {
        let mut wire = Wire::open(room.family)?;
        let mut addresses = Vec::new();
        for _ in 0..clients {
            let mut peer = RawPeer::new(&mut wire, at)?;
            peer.syn_with_data(&wire, b"hello")?;
            peer.syn_ack(&mut wire, PATIENCE)?;
            addresses.push(peer.address());
        }
        wire.settle()?;
        Ok(addresses)
    };
    room.netns.run(play).unwrap()
}

/// Those that find the fast-open queue full are told of, and go the normal way. A listener without
/// fast open ignores the data and refuses nothing.
#[test]
fn a_full_fast_open_queue() {
    const MORE: usize = 5;
    for family in Family::ALL {
        let (room, at, _listener) = fast(family);
        let tracer = Launch::showing(Shown::All).on(&room.netns).start();
        let clients = rush(&room, at, UNFINISHED + MORE);
        rush(&room, room.address, 3);
        let recording = tracer.stop();
        let outcomes = [
            (outcome::ESTABLISHED_FAST_OPEN, UNFINISHED as u64),
            (outcome::FAST_OPEN_REFUSED, MORE as u64),
            (outcome::QUEUED, MORE as u64 + 3),
        ];
        let sums = expected(&outcomes, Shown::All);
        recording.assert_exact(&room.netns, &room.before, &sums);
        let moved = Counters::of(&room.netns).since(&room.before, "TCPFastOpenListenOverflow");
        assert_eq!(moved, MORE as u64);
        let refused = clients[UNFINISHED..].iter().copied().collect();
        assert_eq!(clients_of(&recording, FAST_OPEN, at), refused);
        let sides = FrontSides {
            kernel: Some(moved),
            seen: Some(moved),
        };
        assert_eq!(recording.ledger(&room.netns).in_front[FAST_OPEN], sides);
    }
}

/// It is shown by default, and the finding says what to raise.
#[test]
fn a_full_fast_open_queue_is_diagnosed() {
    let (room, at, _listener) = fast(Family::V4);
    let tracer = Launch::showing(Shown::Refusals).on(&room.netns).start();
    let diagnosis = diagnosed("fast-open", &room.netns, || {
        rush(&room, at, UNFINISHED + 12);
    });
    let sums = expected(&[(outcome::FAST_OPEN_REFUSED, 12)], Shown::Refusals);
    tracer.stop().assert_exact(&room.netns, &room.before, &sums);
    let all = diagnosis["findings"].as_array().unwrap();
    let of = |rule: &str| all.iter().filter(|one| one["rule"] == rule).count();
    // Its clients finish no handshake, which on a slow machine is found as well.
    assert_eq!(
        of("refused-otherwise") + of("syn-acks-unanswered"),
        all.len()
    );
    let finding = all.iter().find(|one| one["rule"] == "refused-otherwise");
    let finding = finding.unwrap_or_else(|| panic!("{diagnosis:#}"));
    assert_eq!(finding["count"], 12, "{diagnosis:#}");
    assert!(finding.to_string().contains("TCP_FASTOPEN"), "{finding:#}");
}
