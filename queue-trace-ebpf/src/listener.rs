//! What a record says of the listener: identity, gauges, the sysctls in force.

use queue_trace_common::{
    field,
    record::{self, Record},
    settings::Address,
};

use crate::{
    memory::{self, Status},
    packet,
};

/// AF_INET6 (include/linux/socket.h), part of the system call interface.
const AF_INET6: u16 = 10;

/// Whether the socket is an IPv6 one (which may serve IPv4 clients as well).
#[inline(always)]
pub fn is_v6(sk: u64) -> bool {
    memory::value::<u16>(sk, field::SK_FAMILY) == AF_INET6
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
    if is_v6(sk) {
        return memory::fetch_field(place, sk, v6);
    }
    let mut address = 0u32;
    let status = memory::fetch_field(&mut address, sk, v4);
    *place = packet::mapped(address);
    status
}

/// The inode number of a socket, as `ss -e` shows it; 0 if it has none (any more).
/// The file system's inode encloses the `struct socket` (`struct socket_alloc`,
/// include/net/sock.h).
#[inline(always)]
pub fn inode(sk: u64) -> u64 {
    // A listener being closed has no struct socket; then the second read gives zero.
    let socket = memory::value(sk, field::SK_SOCKET);
    memory::value(socket, field::SOCKET_INODE)
}

/// Identity and gauges.
#[inline(always)]
pub fn describe(out: &mut Record, sk: u64) {
    out.sk = sk;
    if fetch_bound_addr(&mut out.listener_addr, sk).ok() {
        out.present |= record::LISTENER;
    }
    // Zero until somebody asks for it.
    out.cookie = memory::value(sk, field::SK_COOKIE);
    if out.cookie != 0 {
        out.present |= record::COOKIE;
    }
    let gauges = memory::fetch_field(&mut out.accept_depth, sk, field::SK_DEPTH)
        | memory::fetch_field(&mut out.accept_limit, sk, field::SK_LIMIT)
        | memory::fetch_field(&mut out.syn_depth, sk, field::SYN_DEPTH)
        | memory::fetch_field(&mut out.syn_young, sk, field::SYN_YOUNG);
    if gauges.ok() {
        out.present |= record::QUEUES;
    }
}

/// The sysctls of the namespace.
#[inline(always)]
pub fn sysctls(out: &mut Record, net: u64) {
    let sysctls = memory::fetch_uint(&mut out.syncookies, net, field::NET_SYNCOOKIES)
        | memory::fetch_uint(&mut out.abort_on_overflow, net, field::NET_ABORT)
        | memory::fetch_uint(&mut out.max_syn_backlog, net, field::NET_MAX_SYN)
        | memory::fetch_uint(&mut out.somaxconn, net, field::NET_SOMAXCONN);
    if sysctls.ok() {
        out.present |= record::SYSCTLS;
    }
}
