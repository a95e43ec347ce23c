//! SYNs that never reach a listener's queues, by the kernel's own reason for freeing them
//! (`kfree_skb`, since 5.17). A SYN that the queues refuse is consumed, so none of these is seen
//! twice.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use queue_trace_common::reason;

use super::turn::{REASON, Turn, was_taken};
use crate::{read::packet, state::config, steps::nobody};

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

/// `kfree_skb(skb, location, reason, ...)`.
#[inline(always)]
fn refused(ctx: &RawTracePointContext, turn: Turn) {
    let skb: u64 = ctx.arg(0);
    let why = ctx.arg::<u64>(2) as u32;
    if why != config::reason(reason::NO_SOCKET) || was_taken(turn, REASON, skb) {
        return;
    }
    // Other protocols give this reason, too.
    if packet::is_tcp(skb) {
        nobody::no_listener(skb);
    }
}
