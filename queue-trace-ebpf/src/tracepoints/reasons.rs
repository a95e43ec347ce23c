//! SYNs that never reach a listener's queues, by the kernel's own reason for freeing them
//! (`kfree_skb`, since 5.17). A SYN that the queues refuse is consumed, so none of these is seen
//! twice.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use queue_trace_common::{outcome, reason};

use super::turn::{REASON, Turn, was_taken};
use crate::{
    read::packet,
    state::config,
    steps::{front, nobody},
};

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn packet_refused(ctx: RawTracePointContext) -> i32 {
    refused(&ctx, Turn::First);
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn packet_refused_again(ctx: RawTracePointContext) -> i32 {
    refused(&ctx, Turn::Second);
    0
}

/// `kfree_skb(skb, location, reason, sk)`; the last one since 6.11.
#[inline(always)]
fn refused(ctx: &RawTracePointContext, turn: Turn) {
    let why: u64 = ctx.arg(2);
    if !config::asks(why) {
        return;
    }
    let skb: u64 = ctx.arg(0);
    // Other protocols give some of these reasons, too, and most of TCP's packets that are freed for
    // one are no SYNs.
    if was_taken(turn, REASON, skb) || !packet::is_tcp(skb) || !packet::is_syn(skb) {
        return;
    }
    let Some(reason) = config::reason(why) else {
        return;
    };
    let outcome = reason::TELLS[reason];
    if outcome == outcome::SYN_REFUSED_NO_LISTENER {
        return nobody::no_listener(skb);
    }
    let sk = if config::kfree_has_sk() {
        ctx.arg(3)
    } else {
        0
    };
    front::dropped(skb, sk, outcome);
}
