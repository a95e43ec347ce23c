//! The normal course of handshakes, which `--all` shows: as many of each step as there
//! were connections.

use std::time::Duration;

use live_tests::{ALL, Launch, Room, Shown, expected, unproven};
use queue_trace::lab::{
    Family,
    raw::{PeerAnswer, RawPeer, Wire},
};
use queue_trace_common::outcome;

const CLIENTS: u64 = 20;

#[test]
fn a_handshake_is_queued_established_and_accepted() {
    accepting(
        0,
        &[
            (outcome::QUEUED, CLIENTS),
            (outcome::ESTABLISHED_HANDSHAKE, CLIENTS),
            (outcome::ACCEPTED, CLIENTS),
        ],
    );
}

#[test]
fn a_handshake_by_cookie_is_established_and_accepted() {
    accepting(
        2,
        &[
            (outcome::COOKIE_SENT_ALWAYS, CLIENTS),
            (outcome::ESTABLISHED_COOKIE, CLIENTS),
            (outcome::ACCEPTED, CLIENTS),
        ],
    );
}

fn accepting(cookies: u32, outcomes: &[(u8, u64)]) {
    let rooms = Room::of_each_family(64, &[("net.ipv4.tcp_syncookies", cookies)]);
    let tracer = Launch::showing(Shown::All).on_all(&rooms).start();
    for room in &rooms {
        let _clients = room.connect(CLIENTS as usize);
        for _ in 0..CLIENTS {
            room.listener.accept().unwrap();
        }
        room.settle();
    }
    let recording = tracer.stop();
    for room in &rooms {
        let sums = expected(outcomes, Shown::All);
        recording.assert_exact(&room.netns, &room.before, &sums);
    }
}

/// A listener is closed with seven connections that nobody accepted: one event that
/// stands for all of them, and a refusal.
#[test]
fn a_closed_listener_discards_its_queue() {
    let outcomes = [(outcome::QUEUE_DISCARDED, 7)];
    for family in Family::ALL {
        let room = Room::new(family, 10, &[]);
        let tracer = Launch::live().on(&room.netns).start();
        let _clients = room.connect(7);
        let Room {
            netns,
            before,
            listener,
            ..
        } = room;
        drop(listener);
        let recording = tracer.stop();
        let sums = expected(&outcomes, Shown::Refusals);
        recording.assert_exact(&netns, &before, &sums);
        assert!(recording.events().all(|event| event.count == 7));
    }
}

/// A client that goes silent after its SYN is asked again after a second.
#[test]
fn a_silent_client_is_asked_again() {
    if unproven("handshakes::a_silent_client_is_asked_again", ALL) {
        return;
    }
    for family in Family::ALL {
        let room = Room::new(family, 10, &[]);
        let tracer = Launch::showing(Shown::All).on(&room.netns).start();
        let ask = || {
            let mut wire = Wire::open(family)?;
            let mut peer = RawPeer::new(&mut wire, room.address)?;
            peer.syn(&wire)?;
            for _ in 0..2 {
                let answer = peer.answer(&mut wire, Duration::from_secs(10))?;
                assert!(matches!(answer, Some(PeerAnswer::SynAck(_))), "{answer:?}");
            }
            wire.settle()
        };
        room.netns.run(ask).unwrap();
        let recording = tracer.stop();
        let again = recording
            .events()
            .filter(|event| event.verdict == "synack_retransmitted");
        assert!(again.count() >= 1, "{recording:?}");
    }
}
