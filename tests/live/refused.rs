//! SYNs that never reach a queue: what is told of them is what was sent and what the kernel answered.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use live_tests::{ALL, Counters, Launch, Recording, Room, Row, Scratch, Shown, expected, unproven};
use queue_trace::lab::{
    Family, Netns,
    raw::{Flags, PeerAnswer, RawPeer, Segment, Wire},
};
use queue_trace_common::outcome;
use rustix::process::Pid;

use crate::servers::{AT, Server, nginx_in};

const NO_LISTENER: &str = "syn_refused:no_listener";
const PATIENCE: Duration = Duration::from_secs(10);

/// A counter of the section `Tcp` of `/proc/net/snmp`.
fn tcp_counter(netns: &Netns, name: &str) -> u64 {
    let text = netns.run(|| Ok(fs::read_to_string("/proc/thread-self/net/snmp")?));
    let text = text.unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|other| other == name).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// Each of so many clients sends a SYN, and is reset.
fn refused(netns: &Netns, to: SocketAddr, clients: usize) -> BTreeSet<SocketAddr> {
    let play = || {
        let mut wire = Wire::open(Family::of(to))?;
        let mut addresses = BTreeSet::new();
        for _ in 0..clients {
            let mut peer = RawPeer::new(&mut wire, to)?;
            peer.syn(&wire)?;
            assert_eq!(peer.answer(&mut wire, PATIENCE)?, Some(PeerAnswer::Reset));
            addresses.insert(peer.address());
        }
        wire.settle()?;
        Ok(addresses)
    };
    netns.run(play).unwrap()
}

/// The room's namespace and where it listened, and nobody listens any more.
fn leave(room: &mut Room) -> Netns {
    let netns = mem::replace(&mut room.netns, Netns::new().unwrap());
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    drop(mem::replace(&mut room.listener, silent));
    netns
}

/// The clients of the events.
fn clients_of(recording: &Recording, netns: &Netns) -> BTreeSet<SocketAddr> {
    let events = recording.events();
    let events = events.filter(|event| event.netns == netns.id() && event.name() == NO_LISTENER);
    events
        .map(|event| {
            let client = event.client.unwrap();
            SocketAddr::new(client.addr, client.port)
        })
        .collect()
}

/// A port whose listener was closed is told of; one on which nobody ever listened is not.
#[test]
fn a_port_that_was_left() {
    if unproven("refused::a_port_that_was_left", ALL) {
        return;
    }
    for family in Family::ALL {
        let mut room = Room::new(family, 8, &[]);
        let tracer = Launch::showing(Shown::Refusals).on(&room.netns).start();
        let (before, at) = (room.before.clone(), room.address);
        let netns = leave(&mut room);
        let resets = tcp_counter(&netns, "OutRsts");
        let clients = refused(&netns, at, 20);
        let other = SocketAddr::new(at.ip(), at.port() + 1);
        refused(&netns, other, 5);
        let recording = tracer.stop();
        let sums = expected(&[(outcome::SYN_REFUSED_NO_LISTENER, 20)], Shown::Refusals);
        recording.assert_exact(&netns, &before, &sums);
        assert_eq!(clients_of(&recording, &netns), clients);
        assert_eq!(tcp_counter(&netns, "OutRsts") - resets, 25);
        for event in recording.events() {
            assert_eq!(event.listener.port, at.port(), "{event:?}");
            assert_eq!(event.step, "syn");
        }
        let row = recording.rows().find(|row| row.closed).unwrap();
        assert_eq!(row.listener.port, at.port());
    }
}

/// Asked for by name, or with --all, every port is told of.
#[test]
fn a_port_on_which_nobody_ever_listened() {
    if unproven("refused::a_port_on_which_nobody_ever_listened", ALL) {
        return;
    }
    for asked in [&["--all"][..], &["--event", "syn_refused"]] {
        let room = Room::new(Family::V4, 8, &[]);
        let tracer = Launch::live().on(&room.netns).args(asked).start();
        let other = SocketAddr::new(room.address.ip(), 9);
        let clients = refused(&room.netns, other, 12);
        let recording = tracer.stop();
        let sums = expected(&[(outcome::SYN_REFUSED_NO_LISTENER, 12)], Shown::All);
        recording.assert_exact(&room.netns, &room.before, &sums);
        assert_eq!(clients_of(&recording, &room.netns), clients);
        let totals: Vec<_> = recording.totals().map(|t| t.listener.port).collect();
        assert_eq!(totals, [9]);
    }
}

/// The kernel answers no SYN that was sent to a group of hosts, so none is called refused.
#[test]
fn a_syn_to_a_group_is_not_answered() {
    if unproven("refused::a_syn_to_a_group_is_not_answered", ALL) {
        return;
    }
    const NOBODY: u16 = 9;
    for family in Family::ALL {
        let room = Room::new(family, 8, &[]);
        let asked = ["--event", NO_LISTENER];
        let tracer = Launch::live().on(&room.netns).args(asked).start();
        let resets = tcp_counter(&room.netns, "OutRsts");
        let group: IpAddr = match family {
            Family::V4 => Ipv4Addr::new(224, 0, 0, 1).into(),
            Family::V6 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        };
        let play = || {
            let mut wire = Wire::open(family)?;
            let destination = SocketAddr::new(group, NOBODY);
            for _ in 0..5 {
                let source = RawPeer::new(&mut wire, destination)?.address();
                wire.inject(&Segment {
                    source,
                    destination,
                    sequence: 1,
                    acknowledgment: 0,
                    flags: Flags::SYN,
                })?;
            }
            Ok(())
        };
        room.netns.run(play).unwrap();
        refused(&room.netns, SocketAddr::new(room.address.ip(), NOBODY), 3);
        let recording = tracer.stop();
        assert_eq!(tcp_counter(&room.netns, "OutRsts") - resets, 3);
        let sums = expected(&[(outcome::SYN_REFUSED_NO_LISTENER, 3)], Shown::All);
        recording.assert_exact(&room.netns, &room.before, &sums);
    }
}

/// Who scans all ports does not use up the places of the counts: each SYN is counted once.
#[test]
fn a_scan_of_many_ports() {
    if unproven("refused::a_scan_of_many_ports", ALL) {
        return;
    }
    const FIRST: u16 = 10_000;
    const PORTS: u16 = 1500;
    let room = Room::new(Family::V4, 8, &[]);
    let tracer = Launch::live()
        .on(&room.netns)
        .args(["--event", NO_LISTENER])
        .start();
    let scan = || {
        for port in FIRST..FIRST + PORTS {
            let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
            assert!(refused.is_err());
        }
        Ok(())
    };
    room.netns.run(scan).unwrap();
    let recording = tracer.stop();
    let sums = expected(
        &[(outcome::SYN_REFUSED_NO_LISTENER, u64::from(PORTS))],
        Shown::All,
    );
    recording.assert_exact(&room.netns, &room.before, &sums);
    let ports: BTreeSet<_> = recording.events().map(|e| e.listener.port).collect();
    assert_eq!(ports.len(), usize::from(PORTS));
    // Those that found no place are counted together.
    assert!(recording.totals().count() <= 1025);
    let together = recording.totals().find(|total| total.listener.port == 0);
    assert!(together.unwrap().count >= u64::from(PORTS) - 1024);
}

/// An ACK that no socket is found for is reset as well; it is no SYN.
#[test]
fn a_stray_ack_is_no_syn() {
    let room = Room::new(Family::V4, 8, &[]);
    let tracer = Launch::showing(Shown::All).on(&room.netns).start();
    let other = SocketAddr::new(room.address.ip(), 9);
    let resets = tcp_counter(&room.netns, "OutRsts");
    let play = || {
        let mut wire = Wire::open(Family::V4)?;
        let mut peer = RawPeer::new(&mut wire, room.address)?;
        peer.syn(&wire)?;
        peer.syn_ack(&mut wire, PATIENCE)?;
        let stray = RawPeer::at(peer.address(), other);
        stray.bogus_ack(&wire)?;
        peer.rst(&wire)?;
        wire.settle()
    };
    room.netns.run(play).unwrap();
    let recording = tracer.stop();
    let sums = expected(&[(outcome::QUEUED, 1)], Shown::All);
    recording.assert_exact(&room.netns, &room.before, &sums);
    assert_eq!(tcp_counter(&room.netns, "OutRsts") - resets, 1);
}

/// A filter on ports, or on clients, is one on these SYNs as well.
#[test]
fn filters_apply() {
    if unproven("refused::filters_apply", ALL) {
        return;
    }
    let room = Room::new(Family::V4, 8, &[]);
    let tracer = Launch::live()
        .on(&room.netns)
        .args(["--event", NO_LISTENER, "--port", "9"])
        .start();
    let at = |port| SocketAddr::new(room.address.ip(), port);
    refused(&room.netns, at(9), 3);
    refused(&room.netns, at(10), 4);
    let recording = tracer.stop();
    let sums = expected(&[(outcome::SYN_REFUSED_NO_LISTENER, 3)], Shown::All);
    assert_eq!(recording.verdicts(&room.netns), sums);
    assert_eq!(recording.counted(&room.netns), sums);
}

#[test]
fn nginx_restarts() {
    if unproven("refused::nginx_restarts", ALL) {
        return;
    }
    restarts("nginx-restarts", |scratch| nginx_in(scratch, "", 1, ""));
}

#[test]
fn haproxy_restarts() {
    if unproven("refused::haproxy_restarts", ALL) {
        return;
    }
    restarts("haproxy-restarts", |scratch| {
        let file = scratch.path().join("haproxy.cfg");
        let settings = format!(
            "defaults\n mode http\n timeout client 5s\n timeout connect 5s\n timeout server 5s\n\
             frontend all\n bind {AT}\n http-request return status 204\n"
        );
        fs::write(&file, settings).unwrap();
        let mut haproxy = Command::new("haproxy");
        haproxy.args(["-db", "-q", "-f"]).arg(file);
        haproxy
    });
}

/// A server is ended and started again while clients come: each is served or refused, and all that
/// were refused are told of.
fn restarts(name: &str, start: impl Fn(&Scratch) -> Command) {
    let mut server = Server::start(name, &start);
    let before = Counters::of(&server.netns);
    let tracer = Launch::showing(Shown::Refusals).on(&server.netns).start();
    let knock = |server: &Server, clients: usize| -> u64 {
        let refused = || {
            let one = |_: &usize| match TcpStream::connect(AT) {
                Ok(_) => false,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => true,
                Err(error) => panic!("{error}"),
            };
            Ok((0..clients).filter(one).count() as u64)
        };
        server.netns.run(refused).unwrap()
    };
    assert_eq!(knock(&server, 5), 0);
    let first = server.pid();
    server.end();
    assert_eq!(knock(&server, 40), 40);
    server.start_again(&start);
    assert_eq!(knock(&server, 5), 0);
    let second = server.pid();
    let recording = tracer.stop();
    let refused = recording.verdicts(&server.netns)[NO_LISTENER];
    assert_eq!(refused, 40);
    assert_eq!(recording.counted(&server.netns)[NO_LISTENER], 40);
    recording.assert_reconciled(&server.netns, &before);
    let rows: Vec<_> = recording.rows().collect();
    let closed = rows.iter().find(|row| row.closed);
    let closed = closed.unwrap_or_else(|| panic!("nothing was closed: {rows:#?}"));
    let pids = |row: &Row| row.processes.iter().map(|p| p.pid).collect::<Vec<_>>();
    let of = |pid: Pid| pid.as_raw_nonzero().get() as u32;
    assert!(pids(closed).contains(&of(first)), "{closed:?}");
    let made = rows.iter().rfind(|row| !row.closed);
    let made = made.unwrap_or_else(|| panic!("nothing was made: {rows:#?}"));
    assert!(pids(made).contains(&of(second)), "{made:?}");
}
