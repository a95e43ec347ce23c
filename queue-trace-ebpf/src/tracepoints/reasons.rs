//! SYNs that never reach a listener's queues, by the kernel's own reason for freeing them
//! (`kfree_skb`, since 5.17). A SYN that the queues refuse is consumed, so none of these is seen
//! twice.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use queue_trace_common::{outcome, reason};

use super::turn::{REASON, Turn, was_taken};
use crate::{
    read::packet,
    state::{config, maps::REFUSED_REST, tally::Here},
    steps::{front, nobody, refused},
};

// `kfree_skb(skb, location, reason, sk)`; the last one since 6.11. Every packet that is freed comes
// here, and hardly one for a reason that is asked for: what is done with that is a program of its
// own, which the verifier follows once.

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn packet_refused(ctx: RawTracePointContext) -> i32 {
    begin(&ctx, Turn::First);
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn packet_refused_again(ctx: RawTracePointContext) -> i32 {
    begin(&ctx, Turn::Second);
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn refused_rest(ctx: RawTracePointContext) -> i32 {
    on(&ctx);
    0
}

#[inline(always)]
fn begin(ctx: &RawTracePointContext, turn: Turn) {
    if !config::asks(ctx.arg(2)) {
        return;
    }
    let skb: u64 = ctx.arg(0);
    // Most of TCP's packets that are freed for one of these reasons are no SYNs, and other protocols
    // give some of them, too.
    if packet::is_syn(skb) && !was_taken(turn, REASON, skb) && packet::is_tcp(skb) {
        // SAFETY: nothing is left here that would have to be dropped.
        unsafe { REFUSED_REST.tail_call(ctx, 0) };
    }
}

#[inline(always)]
fn on(ctx: &RawTracePointContext) {
    let Some(reason) = config::reason(ctx.arg(2)) else {
        return;
    };
    let Some(outcome) = forget(reason::TELLS[reason]) else {
        return;
    };
    let skb: u64 = ctx.arg(0);
    let sk = if config::kfree_has_sk() {
        ctx.arg(3)
    } else {
        0
    };
    let refused = if outcome == outcome::SYN_REFUSED_NO_LISTENER {
        nobody::no_listener(skb)
    } else {
        front::dropped(skb, sk, outcome)
    };
    if let Some(refused) = refused {
        refused::tell(refused);
    }
}

/// Passes an outcome through the memory of this CPU: the verifier would follow all that comes after
/// once for each. Where softirqs mix it does, as another one may come in between.
#[inline(always)]
fn forget(outcome: u8) -> Option<u8> {
    if config::softirqs_mix() {
        return Some(outcome);
    }
    let own = Here::find()?.own();
    // SAFETY: this CPU's copy, of a plain word that nothing else uses.
    unsafe {
        let place = &raw mut (*own).refused;
        place.write_volatile(outcome.into());
        Some(place.read_volatile() as u8)
    }
}
