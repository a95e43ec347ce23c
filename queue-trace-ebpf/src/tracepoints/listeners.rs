//! Tracepoint mode: the table of listeners, as a packet does not tell the socket that it
//! reached. Filled by an iterator at start, and as sockets begin and end listening.

use queue_trace_common::{field, settings::Address};

use crate::{
    read::{memory, packet::Packet, socket},
    state::{config, maps::LISTENERS, tally, types::ListenerKey},
};

const ANY_V4: Address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
const ANY_V6: Address = [0; 16];

/// The listener that a packet is for: bound to its address, or to any; an IPv6 one
/// serves IPv4 clients too. A function of its own, for the stack's sake.
#[inline(never)]
pub fn find(net: u64, packet: &Packet) -> u64 {
    let mut key = ListenerKey {
        addr: packet.local,
        net,
        port: packet.local_port,
        _pad: [0; 3],
    };
    // SAFETY: the value is copied out at once.
    if let Some(&sk) = unsafe { LISTENERS.get(key) } {
        return sk;
    }
    if packet.local[..12] == ANY_V4[..12] {
        key.addr = ANY_V4;
        // SAFETY: as above.
        if let Some(&sk) = unsafe { LISTENERS.get(key) } {
            return sk;
        }
    }
    key.addr = ANY_V6;
    // SAFETY: as above.
    unsafe { LISTENERS.get(key) }.copied().unwrap_or(0)
}

#[inline(always)]
fn key_of(sk: u64, net: u64) -> Option<ListenerKey> {
    let mut key = ListenerKey {
        addr: ANY_V6,
        net,
        port: 0,
        _pad: [0; 3],
    };
    let status = socket::fetch_bound_addr(&mut key.addr, sk)
        | memory::fetch_field(&mut key.port, sk, field::SK_PORT);
    status.ok().then_some(key)
}

/// A socket begins to listen.
#[inline(always)]
pub fn remember(sk: u64, net: u64) {
    if let Some(key) = key_of(sk, net)
        && LISTENERS.insert(key, sk, 0).is_err()
    {
        tally::lost(|loss| &mut loss.unknown_listeners);
    }
}

/// A socket ends listening.
#[inline(always)]
pub fn forget(sk: u64, net: u64) {
    if let Some(key) = key_of(sk, net)
        // SAFETY: the value is compared at once.
        && unsafe { LISTENERS.get(key) }.copied().unwrap_or(0) == sk
    {
        // It may be gone already, which is as well.
        let _ = LISTENERS.remove(key);
    }
}

/// Run once over the sockets that exist at start (`iter/tcp`): remembers listeners.
#[unsafe(link_section = "iter/tcp")]
#[unsafe(no_mangle)]
fn listeners_at_start(ctx: *const [u64; 2]) -> i32 {
    // SAFETY: the context of this program type begins with these two pointers
    // (`struct bpf_iter__tcp`, net/ipv4/tcp_ipv4.c).
    let sk = unsafe { (*ctx)[1] };
    let (_, _, listen) = config::tcp_states();
    if sk != 0
        && memory::value::<u8>(sk, field::SK_STATE) == listen
        && let Some(net) = memory::get::<u64>(sk, field::SK_NET)
    {
        remember(sk, net);
    }
    0
}
