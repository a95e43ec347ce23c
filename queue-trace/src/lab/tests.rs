//! The building blocks on the running kernel. Live: `cargo test -- --ignored`.

use std::{
    fs::{self, File},
    io::Read,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use crate::lab::{
    raw::{Flood, Flooded, PeerAnswer, RawPeer, Wire, flood},
    *,
};

const SOON: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(2);

fn address(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(family.loopback(), port)
}

fn endings(clients: &[Connect]) -> Vec<Ending> {
    clients.iter().map(Connect::ending).collect()
}

/// One counter of `/proc/net/netstat`.
fn counter(netns: &Netns, name: &str) -> u32 {
    let text = netns.netstat().unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let index = lines.next().unwrap().split(' ').position(|n| n == name);
    let values = lines.next().unwrap();
    values
        .split(' ')
        .nth(index.unwrap())
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
#[ignore = "needs root"]
fn a_namespace_is_private_and_the_caller_stays_outside() {
    let inode = |path: &str| fs::metadata(path).unwrap().ino();
    let home = inode("/proc/thread-self/ns/net");
    let netns = Netns::new().unwrap();
    let inside = netns.run(|| Ok(inode("/proc/thread-self/ns/net"))).unwrap();
    assert_eq!(inside, u64::from(netns.id()));
    assert_ne!(inside, home);
    assert_eq!(inode("/proc/thread-self/ns/net"), home);
    let by_path = File::open(netns.path()).unwrap().metadata().unwrap();
    assert_eq!(by_path.ino(), inside);
    let devices = netns
        .run(|| Ok(fs::read_to_string("/proc/thread-self/net/dev")?))
        .unwrap();
    assert!(devices.contains("lo:") && !devices.contains("eth"));
}

#[test]
#[ignore = "needs root"]
fn a_sysctl_is_of_its_namespace_alone() {
    let name = "net.ipv4.tcp_syncookies";
    let (one, other) = (Netns::new().unwrap(), Netns::new().unwrap());
    one.set_sysctl(name, 2).unwrap();
    other.set_sysctl(name, 0).unwrap();
    assert_eq!(one.sysctl(name).unwrap(), "2");
    assert_eq!(other.sysctl(name).unwrap(), "0");
    let error = one.set_sysctl("net.ipv4.no_such", 1).unwrap_err();
    assert!(format!("{error:#}").contains("net.ipv4.no_such"));
}

#[test]
#[ignore = "needs root"]
fn clients_are_connected_refused_reset_or_time_out() {
    for family in Family::ALL {
        let netns = Netns::new().unwrap();
        netns.set_sysctl("net.ipv4.tcp_syncookies", 0).unwrap();
        netns
            .run(|| {
                let to = address(family, 80);
                let refused = connect_each(to, 2, Pace::AllAtOnce, PATIENCE, None)?;
                assert_eq!(endings(&refused), [Ending::Refused; 2]);

                let listener = listen(to, 1)?;
                let hello = Some(&b"hello"[..]);
                let mut clients = connect_each(to, 2, Pace::OneByOne, PATIENCE, hello)?;
                assert_eq!(endings(&clients), [Ending::Connected; 2]);
                let late = connect_each(to, 2, Pace::AllAtOnce, SOON, hello)?;
                assert_eq!(endings(&late), [Ending::TimedOut; 2]);
                assert!(late.iter().all(|client| client.took() >= SOON));

                let (mut accepted, from) = listener.accept()?;
                assert_eq!(Some(from), clients[0].local());
                let mut heard = [0; 5];
                accepted.read_exact(&mut heard)?;
                assert_eq!(&heard, b"hello");

                // Closing a listener resets whoever still waits in its queue.
                drop(listener);
                let mut wire = Wire::open(family)?;
                wire.settle()?;
                assert_eq!(clients[0].look_again()?, Ending::Connected);
                assert_eq!(clients[1].look_again()?, Ending::Reset);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn listeners_take_every_option() {
    let netns = Netns::new().unwrap();
    netns
        .run(|| {
            let plain = Listen::default();
            let shared = Listen {
                reuse_port: true,
                ..plain
            };
            let to = address(Family::V4, 80);
            let _group = [shared.on(to)?, shared.on(to)?];
            assert!(plain.on(to).is_err());

            let dual = Listen {
                only_v6: Some(false),
                ..plain
            };
            let _dual = dual.on("[::]:81".parse()?)?;
            let v4 = connect_each(address(Family::V4, 81), 1, Pace::AllAtOnce, PATIENCE, None)?;
            assert_eq!(endings(&v4), [Ending::Connected]);

            let special = Listen {
                defer_accept: Some(5),
                fast_open: Some(5),
                ..plain
            };
            special.on(address(Family::V6, 82))?;
            let mptcp = Listen {
                mptcp: true,
                ..plain
            };
            // Not every kernel is built with it.
            if let Ok(enabled) = fs::read_to_string("/proc/sys/net/mptcp/enabled") {
                assert_eq!(enabled.trim(), "1");
                let _mptcp = mptcp.on(address(Family::V4, 83))?;
                let to = address(Family::V4, 83);
                let client = connect_each(to, 1, Pace::AllAtOnce, PATIENCE, None)?;
                assert_eq!(endings(&client), [Ending::Connected]);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
#[ignore = "needs root"]
fn a_peer_owns_every_step_of_its_handshake() {
    for family in Family::ALL {
        let netns = Netns::new().unwrap();
        netns
            .run(|| {
                let to = address(family, 80);
                let listener = listen(to, 8)?;
                let mut wire = Wire::open(family)?;
                let mut peers = Vec::new();
                for _ in 0..3 {
                    let mut peer = RawPeer::new(&mut wire, to)?;
                    peer.syn(&wire)?;
                    assert!(peer.syn_ack(&mut wire, PATIENCE)?.is_some());
                    peers.push(peer);
                }
                assert_eq!(half_open(to)?, 3);

                // A SYN sent again is answered again, with the same number.
                let first = peers[0].clone();
                peers[0].syn(&wire)?;
                let again = peers[0].answer(&mut wire, PATIENCE)?;
                assert!(matches!(again, Some(PeerAnswer::SynAck(_))));
                peers[0].ack_with_data(&wire, b"hello")?;
                wire.settle()?;
                assert_eq!(half_open(to)?, 2);
                let (mut accepted, from) = listener.accept()?;
                assert_eq!(from, first.address());
                let mut heard = [0; 5];
                accepted.read_exact(&mut heard)?;
                assert_eq!(&heard, b"hello");

                peers[1].rst(&wire)?;
                wire.settle()?;
                assert_eq!(half_open(to)?, 1);

                // The third stays half-open: the listener's timer still asks for its
                // ACK after a second, which nothing has answered meanwhile.
                let asked = wire.receive(to, peers[2].address(), |f| f.syn && f.ack, PATIENCE)?;
                assert!(asked.is_some());
                assert_eq!(half_open(to)?, 1);

                let mut stranger = RawPeer::new(&mut wire, to)?;
                assert!(stranger.ack(&wire).is_err());
                stranger.bogus_ack(&wire)?;
                assert_eq!(
                    stranger.answer(&mut wire, PATIENCE)?,
                    Some(PeerAnswer::Reset)
                );
                Ok(())
            })
            .unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn a_flood_is_of_the_size_and_rate_asked_for() {
    for family in Family::ALL {
        let netns = Netns::new().unwrap();
        netns.set_sysctl("net.ipv4.tcp_syncookies", 0).unwrap();
        let to = address(family, 80);
        let _listener = netns.run(|| listen(to, 4)).unwrap();
        let send = |what: Flood| -> (Flooded, Duration) {
            let started = Instant::now();
            let result = netns.run(|| {
                let flooded = flood(to, &what)?;
                Wire::open(family)?.settle()?;
                Ok(flooded)
            });
            (result.unwrap(), started.elapsed())
        };
        let count = 10_000;
        let what = Flood {
            threads: 2,
            ..Flood::hasty(count)
        };
        let (fast, took) = send(what);
        println!("{family}: {fast:?} in {took:?}");
        assert_eq!(fast.sent, count);
        let half_open = netns.run(|| half_open(to)).unwrap() as u32;
        let dropped = counter(&netns, "TCPReqQFullDrop");
        let missing = count - dropped - half_open;
        assert!(
            u64::from(missing) <= fast.lost,
            "{missing} SYNs unaccounted for"
        );

        let (slow, took) = send(Flood {
            per_second: Some(500),
            first: count,
            ..Flood::of(101)
        });
        assert_eq!((slow.sent, slow.lost), (101, 0));
        assert!(took >= Duration::from_millis(200), "{took:?}");
        assert_eq!(counter(&netns, "TCPReqQFullDrop"), dropped + 101);
    }
}
