//! How long connections are in an accept queue, each by itself: from right before it is
//! put in, so that an accept() on another CPU finds it noted, until accept() has taken it.
//!
//! The kernel puts connections in by `inet_csk_complete_hashdance` (the final ACK) and by
//! `inet_csk_reqsk_queue_add` (cookies, fast open). Old kernels call the second from the
//! first; then a connection is noted twice, which does no harm. They leave by
//! `inet_csk_accept`, or by `inet_child_forget` where the listener is closed.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use queue_trace_common::{
    field, hook,
    queue::{Entered, QueueKey, bucket},
};

use crate::{
    emit, filter, gauge,
    globals::{ENTERING, WAITING},
    memory::{self, Plain},
};

/// The connection that is entering a queue on this CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entering {
    /// Its `struct sock`; 0: filtered out.
    pub child: u64,
    /// The listener.
    pub listener: QueueKey,
}

/// A connection is about to be put into the accept queue.
#[inline(always)]
fn entering(sk: u64, child: u64) {
    let Some(place) = ENTERING.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's copy, used in softirq only.
    let entering = unsafe { &mut *place };
    entering.child = 0;
    if child == 0 || !passes(sk) {
        return;
    }
    entering.child = child;
    entering.listener = gauge::key_of(sk);
    let entered = Entered {
        // SAFETY: a plain helper without arguments.
        at_ns: unsafe { bpf_ktime_get_ns() },
        listener: entering.listener,
    };
    if WAITING.insert(child, entered, 0).is_err() {
        emit::lost(|loss| &mut loss.untimed);
    }
}

/// Whether the listener passes the filters. Those on addresses are of packets.
#[inline(always)]
fn passes(sk: u64) -> bool {
    let net: u64 = memory::value(sk, field::SK_NET);
    filter::port(Plain(sk)) && filter::netns(Plain(net))
}

/// It was put in, or not (`returned` is 0).
#[inline(always)]
pub fn entered(returned: u64) {
    let Some(place) = ENTERING.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: as in `entering`.
    let entering = unsafe { &mut *place };
    if entering.child == 0 {
        return;
    }
    if returned == 0 {
        forget(entering.child);
    } else {
        let listener = entering.listener;
        gauge::accept_rose(&listener);
    }
    // Where one of the two functions calls the other, once is enough.
    entering.child = 0;
}

/// It is not in a queue any more.
#[inline(always)]
fn forget(child: u64) {
    // It may be gone already, or have found no room.
    let _ = WAITING.remove(child);
}

/// accept() took a connection. How long it was in the queue, nanoseconds; 0 if it was in
/// there before we attached.
#[inline(always)]
pub fn left(child: u64) -> u64 {
    // SAFETY: copied out at once; nobody else writes the entry of a connection that left.
    let Some(entered) = (unsafe { WAITING.get(child) }).copied() else {
        return 0;
    };
    forget(child);
    // SAFETY: a plain helper without arguments.
    let waited = unsafe { bpf_ktime_get_ns() } - entered.at_ns;
    note_wait(&entered.listener, waited);
    waited
}

/// A function of its own, for the verifier's sake.
#[inline(never)]
fn note_wait(listener: &QueueKey, waited_ns: u64) {
    let Some(marks) = gauge::marks(listener) else {
        return emit::lost(|loss| &mut loss.unlisted);
    };
    marks.waited[bucket(waited_ns / 1000)] += 1;
    if waited_ns > marks.waited_max_ns {
        marks.waited_max_ns = waited_ns;
    }
}

/// How long the handshake took: since the first SYN-ACK, of which the kernel keeps the
/// moment in microseconds (`tcp_request_sock.snt_synack`).
#[inline(never)]
fn note_handshake(sk: u64, request: u64) {
    let sent: u64 = memory::value(request, field::REQ_SYNACK_US);
    if sent == 0 || !passes(sk) {
        return;
    }
    let key = gauge::key_of(sk);
    let Some(marks) = gauge::marks(&key) else {
        return emit::lost(|loss| &mut loss.unlisted);
    };
    // SAFETY: a plain helper without arguments.
    let took = (unsafe { bpf_ktime_get_ns() } / 1000).saturating_sub(sent);
    marks.handshakes[bucket(took)] += 1;
    if took > marks.handshake_max_us {
        marks.handshake_max_us = took;
    }
}

// The final ACK: (sk, child, request, own_req). Its exit is in `ack`. That this CPU does
// not own the request means that another one completed it.

#[fentry]
fn hashdance_enter(ctx: FEntryContext) -> i32 {
    let sk = memory::plain(ctx.arg(0));
    if ctx.arg::<u64>(3) as u8 != 0 {
        note_handshake(sk, memory::plain(ctx.arg(2)));
    }
    entering(sk, memory::plain(ctx.arg(1)));
    0
}

#[kprobe]
fn hashdance_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(child), Some(request), Some(owned)) =
        (ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg::<u64>(3))
    {
        if owned as u8 != 0 {
            note_handshake(sk, request);
        }
        entering(sk, child);
    }
    0
}

// Cookies and fast open: (sk, request, child).

#[fentry]
fn queue_add_enter(ctx: FEntryContext) -> i32 {
    entering(memory::plain(ctx.arg(0)), memory::plain(ctx.arg(2)));
    0
}

#[fexit]
fn queue_add_exit(ctx: FExitContext) -> i32 {
    entered(memory::return_value(&ctx, hook::QUEUE_ADD));
    0
}

#[kprobe]
fn queue_add_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(child)) = (ctx.arg(0), ctx.arg(2)) {
        entering(sk, child);
    }
    0
}

#[kretprobe]
fn queue_add_exit_kprobe(ctx: RetProbeContext) -> u32 {
    entered(ctx.ret());
    0
}

// A listener that is closed: (sk, request, child).

#[fentry]
fn forget_enter(ctx: FEntryContext) -> i32 {
    forget(memory::plain(ctx.arg(2)));
    0
}

#[kprobe]
fn forget_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(child) = ctx.arg(2) {
        forget(child);
    }
    0
}
