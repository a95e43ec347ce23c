//! Step SYN in front of the queues: SYNs that a listener, or what stands before it, dropped before
//! `tcp_conn_request` saw them. The kernel says why when it frees them.

use queue_trace_common::{field, outcome};

use super::{nobody, refused::Refused};
use crate::{
    filter,
    read::{
        memory::{self, Plain},
        packet,
        socket::Identity,
    },
    state::config,
};

/// A SYN was freed for a reason that tells its outcome. `sk`: the socket that it was for, where the
/// kernel says so (since 6.11), else 0.
#[inline(always)]
pub fn dropped(skb: u64, sk: u64, outcome: u8) -> Option<Refused> {
    if sk == 0 {
        // The checksum comes before the look for a socket.
        if config::kfree_has_sk() && outcome != outcome::SYN_DROPPED_CHECKSUM {
            return None;
        }
    } else {
        // Or the packet is one of a connection.
        let (_, _, listen) = config::tcp_states();
        if memory::value::<u8>(sk, field::SK_STATE) != listen {
            return None;
        }
    }
    let (packet, net) = packet::delivered_syn(skb)?;
    // Where it was redirected, the listener's own.
    let port = if sk == 0 {
        packet.local_port
    } else {
        memory::value(sk, field::SK_PORT)
    };
    let (ports, _, _) = config::filters();
    if ports && !config::port_wanted(port)
        || !filter::netns(net)
        || !filter::pair(&packet.local, &packet.client)
    {
        return None;
    }
    let listener = if sk == 0 {
        nobody::counted_at(net, port)
    } else {
        Identity::of(Plain(sk), net)
    };
    Some(Refused {
        outcome,
        sk,
        net: net.0,
        listener,
        port,
        packet,
    })
}
