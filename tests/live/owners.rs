//! Whose listener it was: the socket that the kernel asked, where address and port alone would
//! say another one. A wrong owner is worse than none, so every event names the right socket or,
//! where it cannot be told, none.

#![expect(unsafe_code, reason = "a socket option")]

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    process::Command,
    time::Duration,
};

use live_tests::{Counters, Launch, Mounts, Recording, Room, Shown, in_private_mounts};
use queue_trace::lab::{Connect, Family, Listen, Netns, Pace, connect_each};
use socket2::{Domain, Socket, Type};

/// Clients that are not let in give up before they try again.
const SHORT: Duration = Duration::from_millis(600);

fn on_any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

fn inode(listener: &TcpListener) -> u64 {
    let socket = OwnedFd::from(listener.try_clone().unwrap());
    std::fs::File::from(socket).metadata().unwrap().ino()
}

/// Runs a command in a namespace.
fn command(netns: &Netns, line: &str) {
    let run = || {
        let (program, args) = line.split_once(' ').unwrap();
        Ok(Command::new(program).args(args.split(' ')).output()?)
    };
    let output = netns.run(run).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
}

fn clients(netns: &Netns, address: SocketAddr, count: usize) -> Vec<Connect> {
    let connect = || connect_each(address, count, Pace::AllAtOnce, SHORT, None);
    netns.run(connect).unwrap()
}

/// A listener whose socket was prepared.
fn listener(
    netns: &Netns,
    address: SocketAddr,
    backlog: i32,
    prepare: impl FnOnce(&Socket) -> io::Result<()> + Send,
) -> TcpListener {
    let make = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        prepare(&socket)?;
        socket.bind(&address.into())?;
        socket.listen(backlog)?;
        Ok(TcpListener::from(socket))
    };
    netns.run(make).unwrap()
}

/// Every refusal for a full accept queue is of this listener, and shows it full. How many.
fn refusals_of(recording: &Recording, netns: &Netns, inode: u64) -> u64 {
    let mut count = 0;
    for event in recording.events().filter(|event| event.netns == netns.id()) {
        if event.cause.as_deref() != Some("accept_queue_full") {
            continue;
        }
        assert_eq!(event.listener.inode, Some(inode), "{event:?}");
        let queue = event.accept_queue.unwrap();
        assert!(queue.depth > queue.limit, "{event:?}");
        count += event.count;
    }
    count
}

fn established_at(recording: &Recording, netns: &Netns, inode: u64) -> u64 {
    recording
        .events()
        .filter(|event| event.netns == netns.id() && event.verdict == "established")
        .filter(|event| event.listener.inode == Some(inode))
        .map(|event| event.count)
        .sum()
}

/// What is sent to port 80 is taken by a transparent listener on another port, while a healthy
/// one listens on port 80 as well.
#[test]
fn a_redirected_port() {
    let netns = Netns::new().unwrap();
    let healthy = listener(&netns, on_any(80), 64, |_| Ok(()));
    let proxy = listener(&netns, loopback(15001), 3, |socket| {
        socket.set_ip_transparent_v4(true)
    });
    for line in [
        "nft add table ip owners",
        "nft add chain ip owners before { type filter hook prerouting priority -150 ; }",
        "nft add rule ip owners before ip daddr 127.0.0.9 tcp dport 80 tproxy to 127.0.0.1:15001",
    ] {
        command(&netns, line);
    }
    let before = Counters::of(&netns);
    let tracer = Launch::showing(Shown::All).on(&netns).start();
    let _clients = clients(&netns, "127.0.0.9:80".parse().unwrap(), 12);
    netns.silence().unwrap();
    let recording = tracer.stop();
    recording.assert_reconciled(&netns, &before);
    assert!(refusals_of(&recording, &netns, inode(&proxy)) >= 8);
    assert_eq!(established_at(&recording, &netns, inode(&proxy)), 4);
    let healthy = inode(&healthy);
    let of_healthy = |event: &&live_tests::Event| event.listener.inode == Some(healthy);
    assert_eq!(recording.events().filter(of_healthy).count(), 0);
    assert!(recording.events().all(|event| event.listener.port == 15001));
}

/// One port on two devices, as a daemon has it that serves two routing domains: one queue is full,
/// the other is fine. Then the fine one is closed.
#[test]
fn one_port_on_two_devices() {
    for stuck_first in [true, false] {
        let (netns, peer) = (Netns::new().unwrap(), Netns::new().unwrap());
        command(&netns, "ip link add inside type veth peer name outside");
        let path = peer.path();
        command(
            &netns,
            &format!("ip link set outside netns {}", path.display()),
        );
        command(&netns, "ip addr add 10.9.0.1/24 dev inside");
        command(&netns, "ip link set inside up");
        command(&peer, "ip addr add 10.9.0.2/24 dev outside");
        command(&peer, "ip link set outside up");

        let on = |device: &'static [u8], backlog| {
            let prepare = move |socket: &Socket| socket.bind_device(Some(device));
            listener(&netns, on_any(179), backlog, prepare)
        };
        let (stuck, fine) = if stuck_first {
            let stuck = on(b"inside", 3);
            (stuck, on(b"lo", 32))
        } else {
            let fine = on(b"lo", 32);
            (on(b"inside", 3), fine)
        };
        let before = Counters::of(&netns);
        let tracer = Launch::showing(Shown::All).on(&netns).start();
        let from_outside = SocketAddr::new(Ipv4Addr::new(10, 9, 0, 1).into(), 179);
        let refused = clients(&peer, from_outside, 10);
        let _served = clients(&netns, loopback(179), 6);
        let fine_inode = inode(&fine);
        drop(fine);
        let refused_later = clients(&peer, from_outside, 4);
        // They would send their SYNs again, after the last look.
        drop((refused, refused_later));
        peer.silence().unwrap();
        netns.silence().unwrap();
        let recording = tracer.stop();
        recording.assert_reconciled(&netns, &before);
        assert!(refusals_of(&recording, &netns, inode(&stuck)) >= 10);
        assert_eq!(established_at(&recording, &netns, inode(&stuck)), 4);
        assert_eq!(established_at(&recording, &netns, fine_inode), 6);
    }
}

/// A group of listeners that share a port by `SO_REUSEPORT`: two of them older than the tracer,
/// two younger.
fn group(netns: &Netns, between: impl FnOnce()) -> Vec<TcpListener> {
    let member = || {
        let member = Listen {
            backlog: 4,
            reuse_port: true,
            ..Listen::default()
        };
        netns.run(|| member.on(loopback(8080))).unwrap()
    };
    let mut members = vec![member(), member()];
    between();
    members.extend([member(), member()]);
    members
}

/// How many connections wait in a listener's queue.
fn take_all(listener: &TcpListener) -> u64 {
    listener.set_nonblocking(true).unwrap();
    let taken = std::iter::from_fn(|| listener.accept().ok());
    taken.count() as u64
}

/// Each member of a group is told by itself: as many connections as are in its queue.
#[test]
fn each_member_of_a_group() {
    let netns = Netns::new().unwrap();
    let before = Counters::of(&netns);
    let mut tracer = None;
    let members = group(&netns, || {
        tracer = Some(Launch::showing(Shown::All).on(&netns).start());
    });
    let _clients = clients(&netns, loopback(8080), 60);
    netns.silence().unwrap();
    let recording = tracer.unwrap().stop();
    recording.assert_reconciled(&netns, &before);
    let mut full = 0;
    for member in &members {
        let inode = inode(member);
        let waiting = take_all(member);
        assert_eq!(established_at(&recording, &netns, inode), waiting);
        full += u64::from(waiting == 5);
        for event in recording.events() {
            let refused = event.cause.as_deref() == Some("accept_queue_full");
            if refused && event.listener.inode == Some(inode) {
                assert_eq!(event.accept_queue.unwrap().depth, 5, "{event:?}");
            }
        }
    }
    assert!(full > 0, "no queue was filled");
    let unknown = recording
        .events()
        .filter(|event| event.listener.inode.is_none());
    assert_eq!(unknown.count(), 0);
}

/// A program selects the member of the group, whatever the kernel's hash would say.
#[test]
fn the_member_that_a_program_selects() {
    const SELECTED: usize = 2;
    let netns = Netns::new().unwrap();
    let before = Counters::of(&netns);
    let members = group(&netns, || {});
    select(&members[0], SELECTED as u32);
    let tracer = Launch::showing(Shown::All).on(&netns).start();
    let _clients = clients(&netns, loopback(8080), 12);
    netns.silence().unwrap();
    let recording = tracer.stop();
    recording.assert_reconciled(&netns, &before);
    let selected = inode(&members[SELECTED]);
    assert!(refusals_of(&recording, &netns, selected) >= 7);
    assert_eq!(established_at(&recording, &netns, selected), 5);
}

/// A program of one instruction for the group of a listener: the member of that number.
fn select(listener: &TcpListener, member: u32) {
    // `BPF_RET | BPF_K` (include/uapi/linux/filter.h).
    let mut code = [libc::sock_filter {
        code: 6,
        jt: 0,
        jf: 0,
        k: member,
    }];
    let program = libc::sock_fprog {
        len: code.len() as u16,
        filter: code.as_mut_ptr(),
    };
    // SAFETY: the pointers and lengths describe values that live until the call returns.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A listener that is older than the tracer overflows, and is closed: what was known of it last is
/// told, not nothing.
#[test]
fn a_listener_that_closed_keeps_its_limit_and_its_owner() {
    let room = Room::new(Family::V4, 10, &[]);
    let tracer = Launch::showing(Shown::All).on(&room.netns).start();
    let _clients = clients(&room.netns, room.address, 14);
    let number = inode(&room.listener);
    let Room {
        netns, listener, ..
    } = room;
    drop(listener);
    netns.silence().unwrap();
    let recording = tracer.stop();
    let row = recording.row(number);
    assert!(row.closed, "{row:?}");
    assert_eq!((row.accept_queue.depth, row.accept_queue.limit), (11, 10));
    assert_eq!(row.processes[0].pid, std::process::id(), "{row:?}");
    assert!(row.listener.cookie.is_some(), "{row:?}");
    let drops = row.drops.as_ref().unwrap();
    assert_eq!(drops.get("queue_discarded"), Some(&11), "{row:?}");
}

/// In a container that sees its own cgroups alone tracepoint mode cannot have its program at their
/// root. Then it says so, and a listener that it can only guess is unknown: a group, a redirected
/// port.
#[test]
fn without_delivery_the_listener_is_right_or_unknown() {
    in_private_mounts(without_delivery);
}

fn without_delivery(mounts: &Mounts) {
    let netns = Netns::new().unwrap();
    let healthy = listener(&netns, on_any(80), 64, |_| Ok(()));
    let proxy = listener(&netns, loopback(15001), 3, |socket| {
        socket.set_ip_transparent_v4(true)
    });
    for line in [
        "nft add table ip owners",
        "nft add chain ip owners before { type filter hook prerouting priority -150 ; }",
        "nft add rule ip owners before ip daddr 127.0.0.9 tcp dport 80 tproxy to 127.0.0.1:15001",
    ] {
        command(&netns, line);
    }
    let alone = listener(&netns, loopback(9000), 2, |_| Ok(()));
    let before = Counters::of(&netns);
    let mut tracer = None;
    let members = group(&netns, || {
        let by_tracepoints = ["--attach", "tracepoint", "--json", "--rate", "0", "--all"];
        let launch = Launch::plain(by_tracepoints).arg("--no-canary").on(&netns);
        tracer = Some(mounts.without_delivery(launch).start());
    });
    let _redirected = clients(&netns, "127.0.0.9:80".parse().unwrap(), 12);
    let _grouped = clients(&netns, loopback(8080), 60);
    let _alone = clients(&netns, loopback(9000), 9);
    netns.silence().unwrap();
    let finished = tracer.unwrap();
    finished.signal(rustix::process::Signal::INT);
    let finished = finished.wait();
    let recording = finished.recording();
    recording.assert_reconciled(&netns, &before);
    assert!(
        finished
            .stderr
            .contains("concluded from its address and port"),
        "{}",
        finished.stderr
    );
    assert!(
        !recording
            .header()
            .attach
            .hooks
            .contains(&"cgroup_skb/ingress".to_owned())
    );

    let (healthy, proxy, alone) = (inode(&healthy), inode(&proxy), inode(&alone));
    let members: Vec<_> = members.iter().map(inode).collect();
    let mut of_alone = 0;
    for event in recording.events() {
        let Some(inode) = event.listener.inode else {
            continue;
        };
        if event.cause.as_deref() == Some("accept_queue_full") {
            // The tracepoint of a dropped ACK tells the socket, so these may be known.
            assert_ne!(inode, healthy, "{event:?}");
            let queue = event.accept_queue.unwrap();
            assert!(queue.depth > queue.limit, "{event:?}");
            of_alone += u64::from(inode == alone);
        } else {
            assert!(inode != proxy && !members.contains(&inode), "{event:?}");
        }
    }
    assert!(of_alone >= 6, "the only one on its port is known");
}
