//! Step close: `inet_csk_listen_stop`, which throws away the connections that
//! nobody accepted. At its entry the socket has left LISTEN, so the queue can only
//! be what it will discard (or migrate).

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use queue_trace_common::{field, outcome};

use crate::{
    emit::{self, Verdict},
    filter,
    queues::owner,
    read::{
        memory::{self, Plain},
        socket::Identity,
    },
};

#[inline(always)]
fn enter(sk: u64) {
    if !filter::port(Plain(sk)) {
        return;
    }
    if !filter::netns_of(Plain(sk)) {
        return;
    }
    owner::closed(sk);
    let waiting: u32 = memory::value(sk, field::SK_DEPTH);
    let net = memory::value(sk, field::SK_NET);
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
            listener: Identity::of(Plain(sk), Plain(net)),
            by_softirq: false,
            retransmits: 0,
        },
        || None,
    );
}

#[fentry]
fn stop_enter(ctx: FEntryContext) -> i32 {
    enter(memory::plain(ctx.arg(0)));
    0
}

#[kprobe]
fn stop_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(sk) = ctx.arg(0) {
        enter(sk);
    }
    0
}
