//! Step SYN where nobody listens: `tcp_v4_send_reset` and `tcp_v6_send_reset`, called without a
//! socket for a packet that none was found for (`tcp_v4_rcv`, net/ipv4/tcp_ipv4.c). Packets of
//! listeners never come here. Where the kernel gives its reason for freeing such a packet (since
//! 5.18), these functions are not watched, and `tracepoints/reasons` tells the same.
//!
//! That nobody listens is the normal case for most ports of a machine on the Internet. So by
//! default only ports count whose listener was closed while attached.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use queue_trace_common::outcome;

use super::refused::{self, Refused};
use crate::{
    filter,
    read::{
        memory::{self, Plain},
        packet,
        socket::Identity,
    },
    state::{
        config,
        maps::{IF_MISSING, LEFT, RESET_REST, WITHOUT_LISTENER},
        types::Port,
    },
};

/// A listener was closed: what comes to its port now may find nobody.
#[inline(never)]
pub fn left(port: u16, net: u64) {
    let port = port_of(&Identity::at_port(Plain(net), port));
    // The one that was used longest ago makes room.
    let _ = LEFT.insert(port, 1u8, 0);
}

#[inline(always)]
fn port_of(listener: &Identity) -> Port {
    Port {
        netns_cookie: listener.netns_cookie,
        netns: listener.netns,
        port: listener.port,
        _pad: 0,
    }
}

/// A packet that no socket was found for is answered with a reset, if it is a SYN that is wanted.
#[inline(always)]
pub fn no_listener(skb: u64) -> Option<Refused> {
    let (packet, net) = packet::delivered_syn(skb)?;
    let (ports, _, _) = config::filters();
    if ports && !config::port_wanted(packet.local_port)
        || !filter::netns(net)
        || !filter::pair(&packet.local, &packet.client)
        || !packet::is_unicast(skb)
    {
        return None;
    }
    let port = packet.local_port;
    let key = port_of(&Identity::at_port(net, port));
    // SAFETY: only asked whether it is there.
    if !config::unheard() && unsafe { LEFT.get(key) }.is_none() {
        return None;
    }
    Some(Refused {
        outcome: outcome::SYN_REFUSED_NO_LISTENER,
        sk: 0,
        net: net.0,
        listener: counted_at(net, port),
        port,
        packet,
    })
}

/// Where a SYN is counted that is of no listener that is known.
#[inline(always)]
pub fn counted_at(net: Plain, port: u16) -> Identity {
    let listener = Identity::at_port(net, port);
    Identity {
        port: if has_place(&port_of(&listener)) {
            port
        } else {
            0
        },
        ..listener
    }
}

/// Whether a port is counted by itself. Who scans all ports must not use up the places of the
/// counts: what comes to the ports for which there is no room is counted together, as port 0.
#[inline(never)]
fn has_place(key: &Port) -> bool {
    // SAFETY: only asked whether it is there.
    if unsafe { WITHOUT_LISTENER.get(key) }.is_some() {
        return true;
    }
    let _ = WITHOUT_LISTENER.insert(key, 1u8, IF_MISSING);
    // SAFETY: as above.
    unsafe { WITHOUT_LISTENER.get(key) }.is_some()
}

// `tcp_v4_send_reset(sk, skb, ...)`, where sk may be NULL. Each SYN-ACK that nobody asked for comes
// here, as do scans: what is done with a SYN is elsewhere, so that the others do not pay for it.

#[inline(always)]
fn is_for_nobody(sk: u64, skb: u64) -> bool {
    sk == 0 && packet::is_syn(skb)
}

#[inline(never)]
fn reset(skb: u64) {
    if let Some(refused) = no_listener(skb) {
        refused::tell(refused);
    }
}

macro_rules! resets {
    ($enter:ident $alone:ident $enter_kprobe:ident) => {
        #[fentry]
        fn $enter(ctx: FEntryContext) -> i32 {
            if is_for_nobody(memory::plain(ctx.arg(0)), memory::plain(ctx.arg(1))) {
                // SAFETY: nothing is left here that would have to be dropped.
                unsafe { RESET_REST.tail_call(&ctx, 0) };
            }
            0
        }

        #[fentry]
        fn $alone(ctx: FEntryContext) -> i32 {
            let skb = memory::plain(ctx.arg(1));
            if is_for_nobody(memory::plain(ctx.arg(0)), skb) {
                reset(skb);
            }
            0
        }

        #[kprobe]
        fn $enter_kprobe(ctx: ProbeContext) -> u32 {
            if let (Some(sk), Some(skb)) = (ctx.arg(0), ctx.arg(1))
                && is_for_nobody(sk, skb)
            {
                // SAFETY: as above.
                unsafe { RESET_REST.tail_call(&ctx, 0) };
            }
            0
        }
    };
}

resets!(reset_v4_enter reset_v4_enter_alone reset_v4_enter_kprobe);
resets!(reset_v6_enter reset_v6_enter_alone reset_v6_enter_kprobe);

#[fentry]
fn reset_rest(ctx: FEntryContext) -> i32 {
    reset(memory::plain(ctx.arg(1)));
    0
}

#[kprobe]
fn reset_rest_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(skb) = ctx.arg(1) {
        reset(skb);
    }
    0
}
