//! The filters that the kernel side applies before it pays for anything else.

use aya_ebpf::maps::{LpmTrie, lpm_trie::Key};
use queue_trace_common::{
    field,
    settings::{Address, MAX_NETNS, SELF_TESTS},
};

use crate::{
    read::{
        memory::{self, Pointer},
        packet::Packet,
        socket,
    },
    state::{
        config,
        maps::{ADDRS, CLIENTS},
    },
};

/// Whether this listener's port is wanted.
#[inline(always)]
pub fn port(sk: impl Pointer) -> bool {
    !config::filters_ports() || config::port_wanted(sk.load::<_, { field::SK_PORT }>())
}

/// Whether this listener's namespace is wanted. Reads it only if asked to.
#[inline(always)]
pub fn netns_of(sk: impl Pointer) -> bool {
    config::netns_count() == 0 || netns(sk.follow::<{ field::SK_NET }>())
}

/// Whether this namespace is wanted.
#[inline(always)]
pub fn netns(net: impl Pointer) -> bool {
    let count = config::netns_count();
    if count == 0 {
        return true;
    }
    let id: u32 = net.load::<_, { field::NET_ID }>();
    let mut index = 0;
    while index < MAX_NETNS {
        if (index as u64) < count && config::netns_filter(index) == id {
            return true;
        }
        index += 1;
    }
    false
}

/// Whether this namespace is the one in which another queue-trace tests itself. Asked when
/// something is counted or kept for the first time: what is not is asked of again.
#[inline(never)]
pub fn is_foreign_self_test(net: u64) -> bool {
    let mut somaxconn = 0;
    if net == 0 || !memory::fetch_uint(&mut somaxconn, net, field::NET_SOMAXCONN).ok() {
        return false;
    }
    SELF_TESTS.contains(&somaxconn) && somaxconn != config::self_test()
}

/// Whether the packet's addresses are wanted. Reads the packet only if asked to.
#[inline(always)]
pub fn addresses(skb: u64) -> bool {
    let (addrs, clients) = config::filters_addresses();
    if !addrs && !clients {
        return true;
    }
    Packet::of(skb).is_some_and(|packet| pair(&packet.local, &packet.client))
}

/// Whether the addresses of a connection are wanted. Reads them only if asked to.
#[inline(always)]
pub fn ends(sk: u64) -> bool {
    let (addrs, clients) = config::filters_addresses();
    if !addrs && !clients {
        return true;
    }
    socket::peer_of(sk).is_some_and(|peer| pair(&peer.local, &peer.client))
}

/// Whether a pair of addresses, ours and the client's, is wanted.
#[inline(always)]
pub fn pair(local: &Address, client: &Address) -> bool {
    let (addrs, clients) = config::filters_addresses();
    (!addrs || holds(&ADDRS, local)) && (!clients || holds(&CLIENTS, client))
}

#[inline(always)]
fn holds(trie: &LpmTrie<Address, u8>, address: &Address) -> bool {
    trie.get(Key::new(128, *address)).is_some()
}
