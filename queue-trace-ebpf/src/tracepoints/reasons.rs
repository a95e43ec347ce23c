//! SYNs that never reach a listener's queues, by the kernel's own reason for freeing them
//! (`kfree_skb`, since 5.17). A SYN that the queues refuse is consumed, so none of these is seen
//! twice.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, macros::raw_tracepoint, programs::RawTracePointContext};
use queue_trace_common::{outcome, reason};

use super::turn::{REASON, Turn, was_taken};
use crate::{
    read::packet,
    state::config,
    steps::{front, nobody},
};

// `kfree_skb(skb, location, reason, sk)`; the last one since 6.11. Every packet that is freed comes
// here, and hardly one for a reason that is asked for: what is done with that is a function of its
// own, so that the others do not pay for the registers that it uses.

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn packet_refused(ctx: RawTracePointContext) -> i32 {
    if config::is_asked(ctx.arg(2)) {
        refused_first(ctx.as_ptr());
    }
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn packet_refused_again(ctx: RawTracePointContext) -> i32 {
    if config::is_asked(ctx.arg(2)) {
        refused_second(ctx.as_ptr());
    }
    0
}

#[inline(never)]
fn refused_first(ctx: *mut c_void) {
    refused(&RawTracePointContext::new(ctx), Turn::First);
}

#[inline(never)]
fn refused_second(ctx: *mut c_void) {
    refused(&RawTracePointContext::new(ctx), Turn::Second);
}

#[inline(always)]
fn refused(ctx: &RawTracePointContext, turn: Turn) {
    let Some(reason) = config::reason(ctx.arg(2)) else {
        return;
    };
    let outcome = reason::TELLS[reason];
    let skb: u64 = ctx.arg(0);
    // Other protocols give some of these reasons, too.
    if was_taken(turn, REASON, skb) || !packet::is_tcp(skb) {
        return;
    }
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
