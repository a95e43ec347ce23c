//! What a record says of the listener: identity, gauges, the sysctls in force.

use core::mem::MaybeUninit;

use queue_trace_common::{
    field,
    record::{self, Record},
    settings::{Address, typed},
};

use super::{
    memory::{self, Plain, Pointer, Status, Typed},
    packet::{self, Peer},
};

/// AF_INET6 (include/linux/socket.h), part of the system call interface.
const AF_INET6: u16 = 10;

/// Whether the socket is an IPv6 one (which may serve IPv4 clients as well).
#[inline(always)]
pub fn is_v6(sk: impl Pointer) -> bool {
    sk.load::<u16, { field::SK_FAMILY }>() == AF_INET6
}

/// The address a socket is bound to.
#[inline(always)]
pub fn fetch_bound_addr(place: &mut Address, sk: u64) -> Status {
    fetch_addr(place, sk, field::SK_ADDR4, field::SK_ADDR6)
}

/// The address of a socket's peer.
#[inline(always)]
pub fn fetch_peer_addr(place: &mut Address, sk: u64) -> Status {
    fetch_addr(place, sk, field::SK_PEER_ADDR4, field::SK_PEER_ADDR6)
}

#[inline(always)]
fn fetch_addr(place: &mut Address, sk: u64, v4: usize, v6: usize) -> Status {
    if is_v6(Plain(sk)) {
        return memory::fetch_field(place, sk, v6);
    }
    let mut address = 0u32;
    let status = memory::fetch_field(&mut address, sk, v4);
    *place = packet::mapped(address);
    status
}

/// The two ends of a connection, from its socket or its request: both begin with a
/// `struct sock_common`.
#[inline(always)]
pub fn peer_of(sk: u64) -> Option<Peer> {
    let (mut local, mut client) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let local = packet::bytes(memory::zeroed(&mut local));
    let client = packet::bytes(memory::zeroed(&mut client));
    let mut port = 0;
    let status = fetch_bound_addr(local, sk)
        | fetch_peer_addr(client, sk)
        | memory::fetch_field(&mut port, sk, field::SK_PEER_PORT);
    status.ok().then_some(Peer {
        local: *local,
        client: *client,
        client_port: u16::from_be(port),
    })
}

/// The inode number of a socket, as `ss -e` shows it; 0 if it has none (any more).
#[inline(always)]
pub fn inode<P: Pointer>(sk: P) -> u64 {
    // A listener being closed has no struct socket; then all that follows gives zero.
    let socket = sk.follow::<{ field::SK_SOCKET }>();
    // The file system's inode encloses the `struct socket` (`struct socket_alloc`,
    // include/net/sock.h).
    if P::LOADS {
        if let Some(enclosing) = Typed::cast::<{ typed::SOCKET }>(socket.address()) {
            return enclosing.load::<_, { field::SOCKET_INODE }>();
        }
        let file = socket.follow::<{ field::SOCKET_FILE }>();
        let inode = file
            .follow::<{ field::FILE_INODE }>()
            .load::<_, { field::INODE_NUMBER }>();
        if inode != 0 {
            return inode;
        }
        // Sockets of the kernel's own have no file.
    }
    memory::value(socket.address(), field::SOCKET_INODE)
}

/// What tells a listener from all others, for the key of its counts.
#[derive(Clone, Copy, Default)]
pub struct Identity {
    /// Its inode number.
    pub inode: u64,
    /// What tells its namespace from an earlier one of its number.
    pub netns_cookie: u64,
    /// Inode number of its namespace.
    pub netns: u32,
    /// The port.
    pub port: u16,
}

impl Identity {
    /// Of a listener in a namespace. To be asked before a verdict is decided on, while the
    /// verifier has one way to follow.
    #[inline(always)]
    pub fn of(sk: impl Pointer, net: impl Pointer) -> Self {
        Self {
            inode: inode(sk),
            ..Self::at_port(net, sk.load::<_, { field::SK_PORT }>())
        }
    }

    /// Of a listener that could not be told: its namespace and its port.
    #[inline(always)]
    pub fn at_port(net: impl Pointer, port: u16) -> Self {
        Self {
            inode: 0,
            netns_cookie: net.load::<_, { field::NET_COOKIE }>(),
            netns: net.load::<_, { field::NET_ID }>(),
            port,
        }
    }
}

/// Identity and gauges.
#[inline(always)]
pub fn describe(out: &mut Record, sk: u64) {
    out.sk = sk;
    if let Some(listener) = Typed::cast::<{ typed::LISTENER }>(sk) {
        identify(out, listener);
        if is_v6(listener) {
            fetch_listener_addr(out, sk);
        } else {
            out.listener_addr = packet::mapped(listener.load::<_, { field::SK_ADDR4 }>());
            out.present |= record::LISTENER;
        }
        out.accept_depth = listener.load::<_, { field::SK_DEPTH }>();
        out.accept_limit = listener.load::<_, { field::SK_LIMIT }>();
        out.syn_depth = listener.load::<_, { field::SYN_DEPTH }>();
        out.syn_young = listener.load::<_, { field::SYN_YOUNG }>();
        out.present |= record::QUEUES;
    } else {
        identify(out, Plain(sk));
        fetch_listener_addr(out, sk);
        let gauges = memory::fetch_field(&mut out.accept_depth, sk, field::SK_DEPTH)
            | memory::fetch_field(&mut out.accept_limit, sk, field::SK_LIMIT)
            | memory::fetch_field(&mut out.syn_depth, sk, field::SYN_DEPTH)
            | memory::fetch_field(&mut out.syn_young, sk, field::SYN_YOUNG);
        if gauges.ok() {
            out.present |= record::QUEUES;
        }
    }
}

#[inline(always)]
fn identify(out: &mut Record, listener: impl Pointer) {
    out.device = listener.load::<_, { field::SK_DEVICE }>();
    // Zero until somebody asks for it.
    out.cookie = listener.load::<_, { field::SK_COOKIE }>();
    if out.cookie != 0 {
        out.present |= record::COOKIE;
    }
}

#[inline(always)]
fn fetch_listener_addr(out: &mut Record, sk: u64) {
    if fetch_bound_addr(&mut out.listener_addr, sk).ok() {
        out.present |= record::LISTENER;
    }
}

/// The sysctls of the namespace.
#[inline(always)]
pub fn sysctls(out: &mut Record, net: u64) {
    let all = [
        field::NET_SYNCOOKIES,
        field::NET_ABORT,
        field::NET_MAX_SYN,
        field::NET_SOMAXCONN,
    ];
    if net == 0 || !all.into_iter().all(memory::has) {
        return;
    }
    if let Some(net) = Typed::cast::<{ typed::NAMESPACE }>(net) {
        out.syncookies = net.load_uint::<{ field::NET_SYNCOOKIES }>();
        out.abort_on_overflow = net.load_uint::<{ field::NET_ABORT }>();
        out.max_syn_backlog = net.load_uint::<{ field::NET_MAX_SYN }>();
        out.somaxconn = net.load_uint::<{ field::NET_SOMAXCONN }>();
        out.present |= record::SYSCTLS;
        return;
    }
    let sysctls = memory::fetch_uint(&mut out.syncookies, net, field::NET_SYNCOOKIES)
        | memory::fetch_uint(&mut out.abort_on_overflow, net, field::NET_ABORT)
        | memory::fetch_uint(&mut out.max_syn_backlog, net, field::NET_MAX_SYN)
        | memory::fetch_uint(&mut out.somaxconn, net, field::NET_SOMAXCONN);
    if sysctls.ok() {
        out.present |= record::SYSCTLS;
    }
}
