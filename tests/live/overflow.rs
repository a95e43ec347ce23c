//! The accept queue fills between a client's SYN and its final ACK, with each setting
//! of `tcp_abort_on_overflow`.

use std::time::Duration;

use live_tests::{Launch, Room, Shown, expected};
use queue_trace::lab::raw::{PeerAnswer, RawPeer, Wire};
use queue_trace_common::outcome;

const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn the_final_ack_is_dropped_and_the_client_not_told() {
    overflow(0, outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL);
}

#[test]
fn or_the_client_is_reset() {
    overflow(1, outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET);
}

/// Five clients get into a queue with room for six. Five more are let into the SYN
/// queue for the last place: one gets it, the final ACKs of four are refused.
fn overflow(abort: u32, refusal: u8) {
    let sysctls = [
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.tcp_abort_on_overflow", abort),
    ];
    let rooms = Room::of_each_family(5, &sysctls);
    let tracer = Launch::showing(Shown::All).on_all(&rooms).start();
    for room in &rooms {
        let play = || {
            let mut wire = Wire::open(room.family)?;
            for peer in half_open(&mut wire, room, 5) {
                peer.ack(&wire)?;
            }
            wire.settle()?;
            let mut late = half_open(&mut wire, room, 5);
            for peer in &late {
                peer.ack(&wire)?;
            }
            wire.settle()?;
            if abort == 1 {
                for peer in &mut late[1..] {
                    assert_eq!(peer.answer(&mut wire, PATIENCE)?, Some(PeerAnswer::Reset));
                }
            }
            Ok(())
        };
        room.netns.run(play).unwrap();
    }
    let recording = tracer.stop();
    let outcomes = [
        (outcome::QUEUED, 10),
        (outcome::ESTABLISHED_HANDSHAKE, 6),
        (refusal, 4),
    ];
    for room in &rooms {
        let sums = expected(&outcomes, Shown::All);
        recording.assert_exact(&room.netns, &room.before, &sums);
    }
}

/// Clients that have sent their SYN and heard its answer.
fn half_open(wire: &mut Wire, room: &Room, count: usize) -> Vec<RawPeer> {
    let mut begin = || {
        let mut peer = RawPeer::new(wire, room.address).unwrap();
        peer.syn(wire).unwrap();
        assert!(peer.syn_ack(wire, PATIENCE).unwrap().is_some());
        peer
    };
    (0..count).map(|_| begin()).collect()
}
