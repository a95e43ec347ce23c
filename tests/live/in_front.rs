//! SYNs that are dropped in front of a listener's queues: keys, hops, filters, policies, damage. What
//! is told of them is what was sent, and the ledger has what the kernel counted.

#![expect(unsafe_code, reason = "socket options that no crate has")]

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use live_tests::{
    ALL, Counters, FrontSides, Launch, Recording, Room, Shown, Sums, expected, kernel, unproven,
};
use queue_trace::{
    lab::{
        Family,
        raw::{RawPeer, Wire},
    },
    model::front::FRONT,
};
use queue_trace_common::outcome::{
    self, SYN_DROPPED_AO, SYN_DROPPED_CHECKSUM, SYN_DROPPED_MD5, SYN_DROPPED_MIN_TTL,
    SYN_DROPPED_POLICY, SYN_DROPPED_SOCKET_FILTER,
};
use socket2::{Domain, Socket, Type};

use crate::diagnose::{assert_found, diagnosed};

const SYNS: u64 = 7;
/// The part of a test that needs the kernel's reasons for freeing a packet.
const VERDICTS: &str = "the verdicts";

/// What is to be true of the listener or its namespace before the SYNs come.
type Prepare<'a> = &'a (dyn Fn(&TcpListener) -> io::Result<()> + Sync);
/// How a client sends its SYN.
type Sending<'a> = &'a (dyn Fn(&RawPeer, &Wire) -> anyhow::Result<()> + Sync);

/// SYNs are sent to a listener that was prepared so. Each is told of with this outcome, if this kernel
/// gives reasons, and the ledger has as many as were sent.
fn dropped(family: Family, prepare: Prepare, send: Sending, outcome: u8, told: bool) {
    let room = Room::new(family, 8, &[]);
    room.netns.run(|| Ok(prepare(&room.listener)?)).unwrap();
    let tracer = Launch::showing(Shown::Refusals).on(&room.netns).start();
    let mut clients = Vec::new();
    let play = || {
        let mut wire = Wire::open(family)?;
        for _ in 0..SYNS {
            let peer = RawPeer::new(&mut wire, room.address)?;
            send(&peer, &wire)?;
            clients.push(peer.address());
        }
        wire.settle()
    };
    room.netns.run(play).unwrap();
    let recording = tracer.stop();
    let sums = if told {
        expected(&[(outcome, SYNS)], Shown::Refusals)
    } else {
        Sums::new()
    };
    recording.assert_exact(&room.netns, &room.before, &sums);
    if outcome != SYN_DROPPED_SOCKET_FILTER {
        let name = live_tests::name_of(outcome);
        let sides = recording.ledger(&room.netns).in_front[&name];
        let expected = FrontSides {
            kernel: Some(SYNS),
            seen: told.then_some(SYNS),
        };
        assert_eq!(sides, expected, "{name}");
    }
    if told {
        assert_told(&recording, &room, outcome, &clients);
    }
}

/// Each event names the listener and one of these clients.
fn assert_told(recording: &Recording, room: &Room, outcome: u8, clients: &[SocketAddr]) {
    for event in recording.events() {
        assert_eq!(event.listener.port, room.address.port(), "{event:?}");
        assert_eq!(event.step, "syn");
        let client = event.client.as_ref().unwrap();
        assert!(clients.contains(&SocketAddr::new(client.addr, client.port)));
        // The kernel says which socket it was since 6.11, if it had looked for one.
        let known = kernel() >= (6, 11) && outcome != SYN_DROPPED_CHECKSUM;
        assert_eq!(event.listener.inode.is_some(), known, "{event:?}");
    }
}

/// A SYN as any client sends it.
fn plain(peer: &RawPeer, wire: &Wire) -> anyhow::Result<()> {
    peer.syn(wire)
}

/// Sets an option of a socket.
fn set_option<T>(socket: &impl AsRawFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `value`, which lives until the call returns and
    // is what the kernel expects for this option.
    let result = unsafe {
        let value = (&raw const *value).cast();
        libc::setsockopt(socket.as_raw_fd(), level, option, value, length)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct sockaddr_storage` of any address of a family.
#[repr(C)]
#[derive(Clone, Copy)]
struct AnyAddress {
    family: u16,
    _rest: [u8; 126],
}

impl AnyAddress {
    fn of(family: Family) -> Self {
        let family = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        Self {
            family: family as u16,
            _rest: [0; _],
        }
    }
}

const SECRET: [u8; 80] = [7; 80];
const OTHER_SECRET: [u8; 80] = [8; 80];

/// `struct tcp_md5sig` (include/uapi/linux/tcp.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Md5Key {
    address: AnyAddress,
    flags: u8,
    prefix: u8,
    length: u16,
    device: i32,
    key: [u8; 80],
}

impl Md5Key {
    /// For every peer of a family.
    fn of(family: Family, key: [u8; 80]) -> Self {
        const PREFIX: u8 = 1;
        Self {
            address: AnyAddress::of(family),
            flags: PREFIX,
            prefix: 0,
            length: 6,
            device: 0,
            key,
        }
    }

    fn set(&self, socket: &impl AsRawFd) -> io::Result<()> {
        set_option(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG_EXT, self)
    }
}

/// `struct tcp_ao_add` (include/uapi/linux/tcp.h).
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct AoKey {
    address: AnyAddress,
    algorithm: [u8; 64],
    device: i32,
    flags: u32,
    _reserved: u16,
    prefix: u8,
    send_id: u8,
    receive_id: u8,
    code_length: u8,
    key_flags: u8,
    key_length: u8,
    key: [u8; 80],
}

impl AoKey {
    /// For every peer of a family.
    fn of(family: Family, id: u8, key: [u8; 80]) -> Self {
        let name = b"hmac(sha1)";
        Self {
            address: AnyAddress::of(family),
            algorithm: std::array::from_fn(|at| *name.get(at).unwrap_or(&0)),
            device: 0,
            flags: 0,
            _reserved: 0,
            prefix: 0,
            send_id: id,
            receive_id: id,
            code_length: 12,
            key_flags: 0,
            key_length: 6,
            key,
        }
    }

    fn set(&self, socket: &impl AsRawFd) -> io::Result<()> {
        const TCP_AO_ADD_KEY: i32 = 38;
        set_option(socket, libc::IPPROTO_TCP, TCP_AO_ADD_KEY, self)
    }
}

/// Clients that sign their SYNs come to a listener. Each SYN is told of with this outcome, if this
/// kernel gives reasons, and the kernel counted each of them here and nowhere else.
fn signed(
    family: Family,
    prepare: Prepare,
    sign: &(dyn Fn(&Socket) -> io::Result<()> + Sync),
    (outcome, counter): (u8, &str),
    told: bool,
) {
    let room = Room::new(family, 8, &[]);
    room.netns.run(|| Ok(prepare(&room.listener)?)).unwrap();
    let tracer = Launch::showing(Shown::Refusals).on(&room.netns).start();
    let connect = || {
        let mut clients = Vec::new();
        for _ in 0..SYNS {
            let client = Socket::new(Domain::for_address(room.address), Type::STREAM, None)?;
            sign(&client)?;
            client.set_nonblocking(true)?;
            let begun = client.connect(&room.address.into());
            assert_eq!(begun.unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
            clients.push(client);
        }
        Wire::open(family)?.settle()?;
        let addresses = clients.iter().map(|client| Ok(client.local_addr()?));
        let addresses: anyhow::Result<Vec<_>> = addresses.collect();
        Ok(addresses?
            .iter()
            .filter_map(socket2::SockAddr::as_socket)
            .collect())
    };
    let clients: Vec<SocketAddr> = room.netns.run(connect).unwrap();
    let recording = tracer.stop();
    // On a slow machine a client sends its SYN again before it gives up.
    let after = Counters::of(&room.netns);
    let moved = after.since(&room.before, counter);
    assert!(moved >= SYNS, "{counter}: {moved}");
    let row = FRONT.iter().find(|row| row.tag == outcome).unwrap();
    let all = row.names.iter().map(|name| after.since(&room.before, name));
    assert_eq!(all.sum::<u64>(), moved, "{counter}");
    let sums = if told {
        expected(&[(outcome, moved)], Shown::Refusals)
    } else {
        Sums::new()
    };
    recording.assert_exact(&room.netns, &room.before, &sums);
    let both = FrontSides {
        kernel: Some(moved),
        seen: told.then_some(moved),
    };
    let sides = recording.ledger(&room.netns).in_front[&live_tests::name_of(outcome)];
    assert_eq!(sides, both, "{counter}");
    if told {
        assert_told(&recording, &room, outcome, &clients);
    }
}

#[test]
fn an_md5_signature_that_is_wrong_or_not_asked_for() {
    const TEST: &str = "in_front::an_md5_signature_that_is_wrong_or_not_asked_for";
    if unproven(TEST, ALL) {
        return;
    }
    let told = !unproven(TEST, VERDICTS);
    for family in Family::ALL {
        let key = Md5Key::of(family, SECRET);
        let wrong = Md5Key::of(family, OTHER_SECRET);
        let failure = (SYN_DROPPED_MD5, "TCPMD5Failure");
        signed(
            family,
            &|at| key.set(at),
            &|by| wrong.set(by),
            failure,
            told,
        );
        let unexpected = (SYN_DROPPED_MD5, "TCPMD5Unexpected");
        signed(family, &|_| Ok(()), &|by| key.set(by), unexpected, told);
    }
}

#[test]
fn an_authentication_option_that_is_wrong_or_not_asked_for() {
    if unproven(
        "in_front::an_authentication_option_that_is_wrong_or_not_asked_for",
        ALL,
    ) {
        return;
    }
    for family in Family::ALL {
        let key = AoKey::of(family, 100, SECRET);
        let wrong = AoKey::of(family, 100, OTHER_SECRET);
        let unknown = AoKey::of(family, 101, SECRET);
        let bad = (SYN_DROPPED_AO, "TCPAOBad");
        signed(family, &|at| key.set(at), &|by| wrong.set(by), bad, true);
        let not_found = (SYN_DROPPED_AO, "TCPAOKeyNotFound");
        signed(
            family,
            &|at| key.set(at),
            &|by| unknown.set(by),
            not_found,
            true,
        );
        signed(family, &|_| Ok(()), &|by| key.set(by), not_found, true);
    }
}

#[test]
fn a_syn_without_an_md5_signature() {
    if unproven("in_front::a_syn_without_an_md5_signature", ALL) {
        return;
    }
    let told = !unproven("in_front::a_syn_without_an_md5_signature", VERDICTS);
    for family in Family::ALL {
        let key = Md5Key::of(family, SECRET);
        dropped(family, &|at| key.set(at), &plain, SYN_DROPPED_MD5, told);
    }
}

#[test]
fn a_syn_without_an_authentication_option() {
    if unproven("in_front::a_syn_without_an_authentication_option", ALL) {
        return;
    }
    for family in Family::ALL {
        let key = AoKey::of(family, 100, SECRET);
        dropped(family, &|at| key.set(at), &plain, SYN_DROPPED_AO, true);
    }
}

#[test]
fn a_syn_from_too_far_away() {
    const IPV6_MINHOPCOUNT: i32 = 73;
    let told = !unproven("in_front::a_syn_from_too_far_away", VERDICTS);
    for family in Family::ALL {
        let (level, option) = match family {
            Family::V4 => (libc::IPPROTO_IP, libc::IP_MINTTL),
            Family::V6 => (libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT),
        };
        let prepare = |listener: &TcpListener| set_option(listener, level, option, &255i32);
        dropped(family, &prepare, &plain, SYN_DROPPED_MIN_TTL, told);
    }
}

/// A classic BPF program that keeps no byte of a packet.
fn filter(listener: &TcpListener) -> io::Result<()> {
    let mut nothing = [libc::sock_filter {
        // BPF_RET | BPF_K
        code: 6,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: nothing.as_mut_ptr(),
    };
    set_option(listener, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

#[test]
fn a_syn_that_a_socket_filter_drops() {
    if unproven("in_front::a_syn_that_a_socket_filter_drops", ALL) {
        return;
    }
    for family in Family::ALL {
        dropped(family, &filter, &plain, SYN_DROPPED_SOCKET_FILTER, true);
    }
}

/// The same is dropped at another listener beside one that is served: it is told of the right one.
#[test]
fn a_filter_leaves_other_listeners_alone() {
    if unproven("in_front::a_filter_leaves_other_listeners_alone", ALL) {
        return;
    }
    let room = Room::new(Family::V4, 8, &[]);
    let other = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8081);
    let beside = live_tests::listener_beside(&room.netns, other, 8);
    filter(&beside).unwrap();
    let tracer = Launch::showing(Shown::All).on(&room.netns).start();
    let play = || {
        let mut wire = Wire::open(Family::V4)?;
        for at in [room.address, other, other] {
            RawPeer::new(&mut wire, at)?.syn(&wire)?;
        }
        wire.settle()
    };
    room.netns.run(play).unwrap();
    let recording = tracer.stop();
    let outcomes = [(outcome::QUEUED, 1), (SYN_DROPPED_SOCKET_FILTER, 2)];
    let sums = expected(&outcomes, Shown::All);
    recording.assert_exact(&room.netns, &room.before, &sums);
    for event in recording.events() {
        // On a slow machine the other is asked again.
        let is_dropped = event.verdict == "syn_dropped";
        let port = if is_dropped { 8081 } else { 8080 };
        assert_eq!(event.listener.port, port, "{event:?}");
    }
}

/// The finding names the cause and how to look at it.
#[test]
fn a_filter_is_diagnosed() {
    if unproven("in_front::a_filter_is_diagnosed", ALL) {
        return;
    }
    let room = Room::new(Family::V4, 8, &[]);
    filter(&room.listener).unwrap();
    let diagnosis = diagnosed("socket-filter", &room.netns, || {
        let play = || {
            let mut wire = Wire::open(Family::V4)?;
            for _ in 0..12 {
                RawPeer::new(&mut wire, room.address)?.syn(&wire)?;
            }
            wire.settle()
        };
        room.netns.run(play).unwrap();
    });
    assert_found(&diagnosis, &["refused-otherwise"]);
    let finding = &diagnosis["findings"][0];
    assert_eq!(finding["count"], 12, "{diagnosis:#}");
    assert_eq!(finding["remedies"][0]["command"], "ss -ltnbp");
}

#[test]
fn a_syn_that_is_damaged() {
    let told = !unproven("in_front::a_syn_that_is_damaged", VERDICTS);
    for family in Family::ALL {
        let send = |peer: &RawPeer, wire: &Wire| peer.damaged_syn(wire);
        dropped(family, &|_| Ok(()), &send, SYN_DROPPED_CHECKSUM, told);
    }
}

#[test]
fn a_syn_that_a_policy_blocks() {
    if unproven("in_front::a_syn_that_a_policy_blocks", ALL) {
        return;
    }
    let told = !unproven("in_front::a_syn_that_a_policy_blocks", VERDICTS);
    let prepare = |_: &TcpListener| {
        for name in ["lo", "all"] {
            let path = format!("/proc/sys/net/ipv4/conf/{name}/disable_policy");
            std::fs::write(path, "0")?;
        }
        block_all()
    };
    dropped(Family::V4, &prepare, &plain, SYN_DROPPED_POLICY, told);
}

/// Adds an IPsec policy that blocks all of IPv4 that comes to this namespace's listeners of TCP: `ip
/// xfrm policy add dir in proto tcp dport 8080 action block`.
fn block_all() -> io::Result<()> {
    /// `struct nlmsghdr`, then `struct xfrm_userpolicy_info` (linux/xfrm.h).
    #[repr(C)]
    struct Message {
        length: u32,
        kind: u16,
        flags: u16,
        sequence: u32,
        port: u32,
        // struct xfrm_selector
        to: [u8; 16],
        from: [u8; 16],
        to_port: u16,
        to_port_mask: u16,
        from_port: u16,
        from_port_mask: u16,
        family: u16,
        to_prefix: u8,
        from_prefix: u8,
        protocol: u8,
        _pad: [u8; 3],
        device: i32,
        user: u32,
        // struct xfrm_lifetime_cfg
        limits: [u64; 8],
        // struct xfrm_lifetime_cur
        current: [u64; 4],
        priority: u32,
        index: u32,
        direction: u8,
        action: u8,
        policy_flags: u8,
        share: u8,
        _end: [u8; 4],
    }
    const NEW_POLICY: u16 = 0x13;
    const REQUEST_ACK_CREATE: u16 = 0x1 | 0x4 | 0x400;
    const BLOCK: u8 = 1;
    const FOREVER: u64 = u64::MAX;
    let message = Message {
        length: size_of::<Message>() as u32,
        kind: NEW_POLICY,
        flags: REQUEST_ACK_CREATE,
        sequence: 1,
        port: 0,
        to: [0; _],
        from: [0; _],
        to_port: 8080u16.to_be(),
        to_port_mask: u16::MAX,
        from_port: 0,
        from_port_mask: 0,
        family: libc::AF_INET as u16,
        to_prefix: 0,
        from_prefix: 0,
        protocol: libc::IPPROTO_TCP as u8,
        _pad: [0; _],
        device: 0,
        user: 0,
        limits: [FOREVER, FOREVER, FOREVER, FOREVER, 0, 0, 0, 0],
        current: [0; _],
        priority: 1,
        index: 0,
        direction: 0,
        action: BLOCK,
        policy_flags: 0,
        share: 0,
        _end: [0; _],
    };
    let mut answer = [0u8; 256];
    // SAFETY: the descriptor is checked before it is owned; pointers and lengths describe the
    // message and the room for the answer, both of which live until the calls return.
    let received = unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_XFRM);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(fd);
        let bytes = (&raw const message).cast();
        if libc::send(fd.as_raw_fd(), bytes, size_of::<Message>(), 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::recv(fd.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    if received < 20 {
        return Err(io::Error::last_os_error());
    }
    // struct nlmsgerr follows the header.
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}
