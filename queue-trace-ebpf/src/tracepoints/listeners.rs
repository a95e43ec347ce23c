//! Tracepoint mode without delivery: the table of listeners, as a packet does not tell the
//! socket that it reached. Filled by an iterator at start, and as sockets begin and end
//! listening. Where several share an address and a port, or one is bound to a device, the table
//! does not tell which one a packet reached.

use queue_trace_common::{field, settings::Address};

use crate::{
    filter,
    iterators::if_it_listens,
    read::{
        memory::{self, Plain},
        packet::Packet,
        socket,
    },
    state::{
        maps::{IF_MISSING, LISTENERS, LISTENING},
        tally,
        types::{ListenerKey, Sharing},
    },
};

const ANY_V4: Address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
const ANY_V6: Address = [0; 16];

/// No listener yet.
static NOBODY: Sharing = Sharing {
    sockets: 0,
    count: 0,
    on_devices: 0,
};

/// Who listens where a packet went to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nobody that is known.
    Nobody,
    /// One of several, or of those on one device.
    Somebody,
    /// This socket.
    Listener(u64),
}

impl Found {
    /// The socket; 0: not known.
    #[inline(always)]
    pub fn sk(self) -> u64 {
        match self {
            Self::Listener(sk) => sk,
            Self::Nobody | Self::Somebody => 0,
        }
    }
}

/// The listener that a packet is for: bound to its address, or to any; an IPv6 one
/// serves IPv4 clients too.
#[inline(always)]
pub fn find(net: u64, packet: &Packet) -> Found {
    match search(net, packet) {
        0 => Found::Nobody,
        SEVERAL => Found::Somebody,
        sk => Found::Listener(sk),
    }
}

/// What a search gives for [`Found::Somebody`]: no socket's address.
const SEVERAL: u64 = 1;

/// A function of its own, for the stack's sake.
#[inline(never)]
fn search(net: u64, packet: &Packet) -> u64 {
    let mut key = ListenerKey {
        addr: packet.local,
        net,
        port: packet.local_port,
        _pad: [0; 3],
    };
    let found = at(&key);
    if found != 0 {
        return found;
    }
    if packet.local[..12] == ANY_V4[..12] {
        key.addr = ANY_V4;
        let found = at(&key);
        if found != 0 {
            return found;
        }
    }
    key.addr = ANY_V6;
    at(&key)
}

#[inline(always)]
fn at(key: &ListenerKey) -> u64 {
    // SAFETY: the words are copied out at once, and each is written whole.
    let Some(Sharing {
        sockets,
        count,
        on_devices,
    }) = (unsafe { LISTENERS.get(key) }).copied()
    else {
        return 0;
    };
    match (count, on_devices) {
        (0, _) => 0,
        // Of one the sum is the one.
        (1, 0) => sockets,
        _ => SEVERAL,
    }
}

/// A socket begins to listen, or is found listening. Of namespaces that nobody asks about nothing is
/// kept, so that no room is used up for them, and none missed.
#[inline(always)]
pub fn remember(sk: u64, net: u64) {
    if !filter::netns(Plain(net)) {
        return;
    }
    let mut key = ListenerKey {
        addr: ANY_V6,
        net,
        port: 0,
        _pad: [0; 3],
    };
    let status = socket::fetch_bound_addr(&mut key.addr, sk)
        | memory::fetch_field(&mut key.port, sk, field::SK_PORT);
    if !status.ok() {
        return;
    }
    let has_room = match LISTENING.insert(sk, &key, IF_MISSING) {
        Ok(()) => share(&key, sk, true),
        // The iterator and the tracepoint may both find it.
        // SAFETY: only whether it is there is asked.
        Err(_) => unsafe { LISTENING.get(sk) }.is_some(),
    };
    if !has_room {
        tally::lost(|loss| &mut loss.unknown_listeners);
    }
}

/// A socket ends listening. Its port may be given back already, so it is not asked.
#[inline(always)]
pub fn forget(sk: u64) {
    // SAFETY: copied out at once; nobody else writes the entry of this socket.
    let Some(key) = (unsafe { LISTENING.get(sk) }).copied() else {
        return;
    };
    // It is there, and nobody else takes it.
    let _ = LISTENING.remove(sk);
    share(&key, sk, false);
}

/// Adds a socket to those that share an address and a port, or takes it away.
#[inline(never)]
fn share(key: &ListenerKey, sk: u64, joins: bool) -> bool {
    let mut place = LISTENERS.get_ptr_mut(key);
    if place.is_none() {
        // If there is no room, nothing is found below.
        let _ = LISTENERS.insert(key, &NOBODY, IF_MISSING);
        place = LISTENERS.get_ptr_mut(key);
    }
    let Some(place) = place else { return false };
    let on_device = memory::value::<u32>(sk, field::SK_DEVICE) != 0;
    let by = |amount: u64| if joins { amount } else { amount.wrapping_neg() };
    // SAFETY: aligned words of a map's value. Each is added to at once, as listen() and close() run
    // on all CPUs.
    unsafe {
        add(&raw mut (*place).sockets, by(sk));
        add(&raw mut (*place).on_devices, by(u64::from(on_device)));
        add(&raw mut (*place).count, by(1));
    }
    true
}

/// Adds to a word that other CPUs may add to at the same time. The standard library has no atomic
/// types for BPF, as old kernels give no result of such an addition; none is asked for here.
///
/// # Safety
/// The place is aligned and can be written.
#[inline(always)]
unsafe fn add(place: *mut u64, by: u64) {
    // SAFETY: as the caller promises.
    tally::add(unsafe { &mut *place }, by);
}

/// Run once over the sockets that exist at start (`iter/tcp`): remembers listeners.
#[unsafe(link_section = "iter/tcp")]
#[unsafe(no_mangle)]
fn listeners_at_start(ctx: *const [u64; 2]) -> i32 {
    // SAFETY: the context of this program type begins with these two pointers
    // (`struct bpf_iter__tcp`, net/ipv4/tcp_ipv4.c).
    let sk = unsafe { (*ctx)[1] };
    let sk = memory::plain(sk);
    if_it_listens(sk, || {
        if let Some(net) = memory::get::<u64>(sk, field::SK_NET) {
            remember(sk, net);
        }
    })
}
