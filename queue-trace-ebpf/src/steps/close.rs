//! Step close: `inet_csk_listen_stop`, which throws away the connections that
//! nobody accepted. At its entry the socket has left LISTEN, so the queue can only
//! be what it will discard (or migrate).

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use queue_trace_common::{field, outcome};

use super::nobody;
use crate::{
    emit::{self, Verdict},
    filter,
    queues::owner,
    read::{
        memory::{self, Plain},
        socket::Identity,
    },
    state::{config, listening},
};

/// A socket ends listening.
#[inline(always)]
pub fn closed(sk: u64) {
    listening::changes();
    // A port that the kernel chose is given back before; it is still written here.
    let port = u16::from_be(memory::value(sk, field::SK_BOUND_PORT));
    owner::closed(sk, port);
    let (ports, _, _) = config::filters();
    if ports && !config::port_wanted(port) || !filter::netns_of(Plain(sk)) {
        return;
    }
    let waiting: u32 = memory::value(sk, field::SK_DEPTH);
    let net = memory::value(sk, field::SK_NET);
    nobody::left(port, net);
    if waiting == 0 {
        return;
    }
    emit::verdict(
        &Verdict {
            outcome: outcome::QUEUE_DISCARDED,
            moved: 0,
            count: waiting,
            sk,
            net,
            listener: Identity {
                port,
                ..Identity::of(Plain(sk), Plain(net))
            },
            by_softirq: false,
            retransmits: 0,
        },
        || None,
    );
}

#[fentry]
fn stop_enter(ctx: FEntryContext) -> i32 {
    closed(memory::plain(ctx.arg(0)));
    0
}

#[kprobe]
fn stop_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(sk) = ctx.arg(0) {
        closed(sk);
    }
    0
}
