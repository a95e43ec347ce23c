//! What a record says of the listener: identity, gauges, the sysctls in force.

use queue_trace_common::{
    field,
    record::{self, Record},
    settings::Address,
};

use crate::{memory, packet};

/// AF_INET6 (include/linux/socket.h), part of the system call interface.
const AF_INET6: u16 = 10;

/// Whether the socket is an IPv6 one (which may serve IPv4 clients as well).
#[inline(always)]
pub fn is_v6(sk: u64) -> bool {
    memory::get::<u16>(sk, field::SK_FAMILY).unwrap_or(0) == AF_INET6
}

/// The address a socket is bound to.
#[inline(always)]
pub fn bound_addr(sk: u64) -> Option<Address> {
    if is_v6(sk) {
        memory::get(sk, field::SK_ADDR6)
    } else {
        memory::get::<u32>(sk, field::SK_ADDR4).map(packet::mapped)
    }
}

/// The address of a socket's peer.
#[inline(always)]
pub fn peer_addr(sk: u64) -> Option<Address> {
    if is_v6(sk) {
        memory::get(sk, field::SK_PEER_ADDR6)
    } else {
        memory::get::<u32>(sk, field::SK_PEER_ADDR4).map(packet::mapped)
    }
}

/// The inode number of a socket, as `ss -e` shows it; 0 if it has none (any more).
/// The file system's inode encloses the `struct socket` (`struct socket_alloc`,
/// include/net/sock.h).
#[inline(always)]
pub fn inode(sk: u64) -> u64 {
    let socket: u64 = memory::get(sk, field::SK_SOCKET).unwrap_or(0);
    if socket == 0 {
        return 0;
    }
    memory::get(socket, field::SOCKET_INODE).unwrap_or(0)
}

/// Identity and gauges.
#[inline(always)]
pub fn describe(out: &mut Record, sk: u64) {
    out.sk = sk;
    if let Some(addr) = bound_addr(sk) {
        out.listener_addr = addr;
        out.present |= record::LISTENER;
    }
    if let Some(cookie) = memory::get::<u64>(sk, field::SK_COOKIE)
        && cookie != 0
    {
        out.cookie = cookie;
        out.present |= record::COOKIE;
    }
    if let Some(depth) = memory::get(sk, field::SK_DEPTH)
        && let Some(limit) = memory::get(sk, field::SK_LIMIT)
        && let Some(syn_depth) = memory::get(sk, field::SYN_DEPTH)
        && let Some(syn_young) = memory::get(sk, field::SYN_YOUNG)
    {
        out.accept_depth = depth;
        out.accept_limit = limit;
        out.syn_depth = syn_depth;
        out.syn_young = syn_young;
        out.present |= record::QUEUES;
    }
}

/// The sysctls of the namespace.
#[inline(always)]
pub fn sysctls(out: &mut Record, net: u64) {
    if let Some(syncookies) = memory::get_uint(net, field::NET_SYNCOOKIES)
        && let Some(abort) = memory::get_uint(net, field::NET_ABORT)
        && let Some(max_syn_backlog) = memory::get_uint(net, field::NET_MAX_SYN)
        && let Some(somaxconn) = memory::get_uint(net, field::NET_SOMAXCONN)
    {
        out.syncookies = syncookies as u8;
        out.abort_on_overflow = abort as u8;
        out.max_syn_backlog = max_syn_backlog;
        out.somaxconn = somaxconn;
        out.present |= record::SYSCTLS;
    }
}
