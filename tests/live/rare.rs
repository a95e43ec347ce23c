//! Outcomes that are rare outside: each is made to happen, and told exactly.
//!
//! Others are elsewhere: those that take a fault of the kernel in [`faults`], those that
//! take two CPUs in [`concurrency`], and `last_quarter` is a case of the laboratory,
//! played in [`scenarios`].
//!
//! [`faults`]: super::faults
//! [`concurrency`]: super::concurrency
//! [`scenarios`]: super::scenarios

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    process::Command,
};

use live_tests::{Counters, Launch, Room, Shown, expected};
use queue_trace::{
    lab,
    lab::{
        Family, Listen, connect_fast,
        raw::{Flags, PeerAnswer, RawPeer, Segment, Wire},
    },
};
use queue_trace_common::outcome;

use crate::bench::{self, PATIENCE, half_open, let_in, listen, totals, wait_until};

const COOKIES: &str = "net.ipv4.tcp_syncookies";
const MAX_SYN_BACKLOG: (&str, u32) = ("net.ipv4.tcp_max_syn_backlog", 4096);

type Outcomes = Vec<(u8, u64)>;

/// Plays in a room of each family with one tracer attached, and expects what the play
/// says that it imposed.
fn told(backlog: i32, sysctls: &[(&str, u32)], play: impl Fn(&Room) -> Outcomes) {
    let rooms = Room::of_each_family(backlog, sysctls);
    let tracer = Launch::showing(Shown::All).on_all(&rooms).start();
    let outcomes = rooms.each_ref().map(play);
    let recording = tracer.stop();
    for (room, outcomes) in rooms.iter().zip(&outcomes) {
        let sums = expected(outcomes, Shown::All);
        recording.assert_exact(&room.netns, &room.before, &sums);
    }
}

/// All addresses of a family, for a listener.
fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A documentation address that nothing is routed to.
fn unreachable(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, 7).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 7).into(),
    }
}

#[test]
fn a_client_to_which_no_route_leads() {
    for cookies in [0, 1, 2] {
        told(10, &[(COOKIES, cookies)], |room| {
            let play = || {
                let mut wire = Wire::open(room.family)?;
                for port in 0..20 {
                    let client = SocketAddr::new(unreachable(room.family), 61_000 + port);
                    RawPeer::at(client, room.address).syn(&wire)?;
                }
                wire.settle()
            };
            room.netns.run(play).unwrap();
            vec![(outcome::SYN_DROPPED_NO_ROUTE, 20)]
        });
    }
}

/// To a broadcast address over IPv4, to a multicast one over both.
#[test]
fn a_syn_to_many() {
    told(10, &[], |room| {
        let anywhere = SocketAddr::new(unspecified(room.family), 8081);
        let listener = listen(&room.netns, anywhere, &Listen::default());
        let multicast: IpAddr = match room.family {
            Family::V4 => Ipv4Addr::new(224, 0, 0, 1).into(),
            Family::V6 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        };
        let play = || {
            let mut wire = Wire::open(room.family)?;
            let mut syn = |to: IpAddr| {
                let to = SocketAddr::new(to, 8081);
                anyhow::Ok(Segment {
                    source: RawPeer::new(&mut wire, to)?.address(),
                    destination: to,
                    sequence: 1,
                    acknowledgment: 0,
                    flags: Flags::SYN,
                })
            };
            let injected = (0..10)
                .map(|_| syn(multicast))
                .collect::<anyhow::Result<Vec<_>>>()?;
            let sent = match room.family {
                Family::V4 => (0..10)
                    .map(|_| syn(Ipv4Addr::new(127, 255, 255, 255).into()))
                    .collect::<anyhow::Result<Vec<_>>>()?,
                Family::V6 => Vec::new(),
            };
            for segment in &injected {
                wire.inject(segment)?;
            }
            for segment in &sent {
                wire.send(segment, &[])?;
            }
            wire.settle()?;
            Ok((injected.len() + sent.len()) as u64)
        };
        let count = room.netns.run(play).unwrap();
        drop(listener);
        vec![(outcome::SYN_DROPPED_NOT_UNICAST, count)]
    });
}

/// A client that has a cookie of the listener sends data with its SYN.
#[test]
fn fast_open() {
    const FAST: u64 = 7;
    told(20, &[("net.ipv4.tcp_fastopen", 3)], |room| {
        let address = SocketAddr::new(room.family.loopback(), 8081);
        let fast = Listen {
            backlog: 20,
            fast_open: Some(20),
            ..Listen::default()
        };
        let listener = listen(&room.netns, address, &fast);
        let play = || {
            // The first gets the cookie.
            let connect = |_| connect_fast(address, b"GET / HTTP/1.0\r\n\r\n", PATIENCE);
            let clients = (0..=FAST)
                .map(connect)
                .collect::<anyhow::Result<Vec<_>>>()?;
            assert!(clients.iter().all(|c| c.ending() == lab::Ending::Connected));
            Wire::open(room.family)?.settle()?;
            Ok(clients)
        };
        let _clients = room.netns.run(play).unwrap();
        for _ in 0..=FAST {
            listener.accept().unwrap();
        }
        vec![
            (outcome::QUEUED, 1),
            (outcome::ESTABLISHED_HANDSHAKE, 1),
            (outcome::ESTABLISHED_FAST_OPEN, FAST),
            (outcome::ACCEPTED, 1 + FAST),
        ]
    });
}

/// An ACK of what was never sent: to a listener that has sent cookies it is a cookie
/// that does not validate, to another it is nothing (but for the two minutes in which the
/// kernel takes the stamp of a listener that never sent one for recent: jiffies wrap five
/// minutes after boot).
#[test]
fn a_forged_cookie() {
    told(10, &[(COOKIES, 2)], |room| {
        let failed = || Counters::of(&room.netns).since(&room.before, "SyncookiesFailed");
        let play = || {
            let mut wire = Wire::open(room.family)?;
            let forge = |wire: &mut Wire| {
                let mut peer = RawPeer::new(wire, room.address)?;
                peer.bogus_ack(wire)?;
                assert_eq!(peer.answer(wire, PATIENCE)?, Some(PeerAnswer::Reset));
                anyhow::Ok(())
            };
            for _ in 0..3 {
                forge(&mut wire)?;
            }
            let taken_for_cookies = failed();
            half_open(&mut wire, room.address, 1)?;
            for _ in 0..12 {
                forge(&mut wire)?;
            }
            wire.settle()?;
            Ok(taken_for_cookies)
        };
        let taken_for_cookies = room.netns.run(play).unwrap();
        assert!(taken_for_cookies <= 3);
        vec![
            (outcome::COOKIE_SENT_ALWAYS, 1),
            (outcome::COOKIE_FAILED_INVALID, 12 + taken_for_cookies),
        ]
    });
}

/// A cookie is valid, but the options that its client took over with it are not allowed
/// (any more).
#[test]
fn a_cookie_for_options_that_are_off() {
    // The timestamp holds the options as they are, and says "selective acknowledgment".
    const SACK: u32 = 1 << 4;
    let sysctls = [
        (COOKIES, 2),
        ("net.ipv4.tcp_timestamps", 2),
        ("net.ipv4.tcp_sack", 0),
    ];
    told(10, &sysctls, |room| {
        let play = || {
            let mut wire = Wire::open(room.family)?;
            for mut peer in half_open(&mut wire, room.address, 4)? {
                peer.ack_with_timestamp(&wire, SACK)?;
                assert_eq!(peer.answer(&mut wire, PATIENCE)?, Some(PeerAnswer::Reset));
            }
            wire.settle()
        };
        room.netns.run(play).unwrap();
        vec![
            (outcome::COOKIE_SENT_ALWAYS, 4),
            (outcome::COOKIE_FAILED_OPTIONS, 4),
        ]
    });
}

/// Half-open requests whose clients stay silent are asked again as often as
/// `tcp_synack_retries` says, and then given up; those of a listener that was closed are
/// given up when their timer fires. Nothing of a packet received tells of a timer.
#[test]
fn silent_clients() {
    const SILENT: u64 = 5;
    let retries = [0, 1];
    let rooms = retries.map(|retries| {
        let sysctls = [(COOKIES, 0), ("net.ipv4.tcp_synack_retries", retries)];
        Room::of_each_family(64, &sysctls)
    });
    let tracer = Launch::showing(Shown::All)
        .on_all(rooms.iter().flatten())
        .start();
    let closed = SocketAddr::new(Family::V4.loopback(), 8081).port();
    for room in rooms.iter().flatten() {
        let play = || {
            let mut wire = Wire::open(room.family)?;
            half_open(&mut wire, room.address, SILENT as usize)?;
            let_in(&mut wire, room.address, 2)?;
            let closed = SocketAddr::new(room.address.ip(), closed);
            let listener = Listen::default().on(closed)?;
            half_open(&mut wire, closed, SILENT as usize)?;
            drop(listener);
            Ok(())
        };
        room.netns.run(play).unwrap();
    }
    for room in rooms.iter().flatten() {
        for port in [room.address.port(), closed] {
            let address = SocketAddr::new(room.address.ip(), port);
            wait_until("half-open requests to expire", || {
                room.netns.run(|| lab::half_open(address)).unwrap() == 0
            });
        }
        room.settle();
    }
    let recording = tracer.stop();
    for (rooms, retries) in rooms.iter().zip(retries) {
        for room in rooms {
            recording.assert_reconciled(&room.netns, &room.before);
            let outcomes = [
                (outcome::QUEUED, 2 * SILENT + 2),
                (outcome::ESTABLISHED_HANDSHAKE, 2),
                (outcome::SYNACK_RETRANSMITTED, SILENT * u64::from(retries)),
                (outcome::REQUEST_EXPIRED, 2 * SILENT),
            ];
            let sums = expected(&outcomes, Shown::All);
            assert_eq!(totals(&recording, room.netns.id()), sums);
        }
    }
}

/// The process that owns a listener is killed, with connections in its queue.
#[test]
fn the_server_is_killed() {
    told(10, &[], |room| {
        let address = SocketAddr::new(room.family.loopback(), 8081);
        let listener = listen(&room.netns, address, &Listen::default());
        let mut server = Command::new("sleep")
            .arg("600")
            .stdin(OwnedFd::from(listener))
            .spawn()
            .unwrap();
        let play = || {
            let mut wire = Wire::open(room.family)?;
            let mut peers = let_in(&mut wire, address, 4)?;
            server.kill()?;
            server.wait()?;
            for peer in &mut peers {
                assert_eq!(peer.answer(&mut wire, PATIENCE)?, Some(PeerAnswer::Reset));
            }
            Ok(())
        };
        room.netns.run(play).unwrap();
        vec![
            (outcome::QUEUED, 4),
            (outcome::ESTABLISHED_HANDSHAKE, 4),
            (outcome::QUEUE_DISCARDED, 4),
        ]
    });
}

/// The client's host says that it cannot be reached. Tracepoints tell of it, though not
/// of whom.
#[test]
fn an_icmp_error_aborts_a_request() {
    // Where no record goes with it, it is counted in another way.
    for shown in [Shown::All, Shown::Refusals] {
        const ABORTED: u64 = 6;
        let rooms = Room::of_each_family(20, &[(COOKIES, 0)]);
        let tracer = Launch::showing(shown).on_all(&rooms).start();
        for room in &rooms {
            let play = || {
                let mut wire = Wire::open(room.family)?;
                let peers = half_open(&mut wire, room.address, 10)?;
                for peer in &peers[..ABORTED as usize] {
                    peer.unreachable(&wire)?;
                    // The request is gone: this is about nothing.
                    peer.unreachable(&wire)?;
                }
                wire.settle()?;
                for peer in &peers[ABORTED as usize..] {
                    peer.ack(&wire)?;
                }
                wire.settle()?;
                assert_eq!(lab::half_open(room.address)?, 0);
                Ok(())
            };
            room.netns.run(play).unwrap();
        }
        let recording = tracer.stop();
        let mut sums = expected(
            &[
                (outcome::QUEUED, 10),
                (outcome::ESTABLISHED_HANDSHAKE, 10 - ABORTED),
            ],
            shown,
        );
        sums.insert("request_aborted:icmp_error".into(), ABORTED);
        for room in &rooms {
            if matches!(shown, Shown::All) {
                recording.assert_exact(&room.netns, &room.before, &sums);
            } else {
                recording.assert_ledger(&room.netns, &room.before);
            }
        }
    }
}

/// What happens on the way to a handshake and decides nothing: SYNs sent again, data after an ACK
/// that TCP_DEFER_ACCEPT dropped, resets of half-open requests, stray ACKs.
#[test]
fn what_decides_nothing_is_no_verdict() {
    told(50, &[(COOKIES, 0), MAX_SYN_BACKLOG], |room| {
        let address = SocketAddr::new(room.family.loopback(), 8081);
        let deferring = Listen {
            defer_accept: Some(30),
            ..Listen::default()
        };
        let listener = listen(&room.netns, address, &deferring);
        let play = || {
            let mut wire = Wire::open(room.family)?;
            let deferred = half_open(&mut wire, address, 8)?;
            for peer in &deferred {
                peer.ack(&wire)?;
            }
            wire.settle()?;
            for peer in &deferred[..3] {
                peer.ack_with_data(&wire, b"here it is")?;
            }
            let mut again = half_open(&mut wire, room.address, 8)?;
            for peer in &mut again {
                peer.syn(&wire)?;
                let answer = peer.answer(&mut wire, PATIENCE)?;
                assert!(matches!(answer, Some(PeerAnswer::SynAck(_))), "{answer:?}");
            }
            for peer in half_open(&mut wire, room.address, 8)? {
                peer.rst(&wire)?;
            }
            for _ in 0..8 {
                let mut stray = RawPeer::new(&mut wire, room.address)?;
                stray.bogus_ack(&wire)?;
                assert_eq!(stray.answer(&mut wire, PATIENCE)?, Some(PeerAnswer::Reset));
            }
            wire.settle()
        };
        room.netns.run(play).unwrap();
        bench::accept_all(&listener, 3);
        vec![
            (outcome::QUEUED, 24),
            (outcome::ACK_DEFERRED, 8),
            (outcome::ESTABLISHED_HANDSHAKE, 3),
            (outcome::ACCEPTED, 3),
        ]
    });
}
