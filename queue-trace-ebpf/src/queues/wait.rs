//! How long connections are in an accept queue, each by itself: from right before it is
//! put in, so that an accept() on another CPU finds it noted, until accept() has taken it.
//!
//! The kernel puts connections in by `inet_csk_complete_hashdance` (the final ACK) and by
//! `inet_csk_reqsk_queue_add` (cookies, fast open). Old kernels call the second from the
//! first, which has noted the connection then. What the first gives is what `tcp_check_req`
//! returns, and is seen there. They leave by
//! `inet_csk_accept`, or by `inet_child_forget` where the listener is closed.

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, generated::bpf_get_current_task},
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use queue_trace_common::{
    field, hook,
    queue::{Entered, QueueKey, bucket},
    settings::typed,
};

use super::{gauge, kept, places};
use crate::{
    filter, frame,
    read::memory::{self, Plain, Pointer, Typed},
    state::{
        config,
        maps::{ENTERING, ENTERING_BY_TASK},
        tally,
        types::{Entering, saw},
    },
};

/// A connection is about to be put into the accept queue of a listener. How long its handshake took
/// may be known.
#[inline(always)]
fn entering(listener: QueueKey, child: u64, now: u64, took_us: u64) {
    let child = memory::plain(child);
    let entered = Entered {
        at_ns: now,
        listener,
    };
    if !places::put(child, &entered) {
        tally::lost(|loss| &mut loss.untimed);
    }
    set_entering(Entering {
        child,
        listener,
        took_us,
    });
}

/// One is about to be that is filtered out.
#[inline(always)]
fn skip() {
    if let Some(place) = in_hand() {
        // SAFETY: as in `set_entering`.
        unsafe { (*place).child = 0 };
    }
}

#[inline(always)]
fn set_entering(entering: Entering) {
    if config::softirqs_mix() {
        // The oldest makes room.
        let _ = ENTERING_BY_TASK.insert(task(), &entering, 0);
    } else if let Some(place) = ENTERING.get_ptr_mut(0) {
        // SAFETY: this CPU's copy, used with bottom halves off only.
        unsafe { *place = entering };
    }
}

/// The connection that this CPU, or this task, is putting in.
#[inline(always)]
fn in_hand() -> Option<*mut Entering> {
    if config::softirqs_mix() {
        ENTERING_BY_TASK.get_ptr_mut(task())
    } else {
        ENTERING.get_ptr_mut(0)
    }
}

#[inline(always)]
fn task() -> u64 {
    // SAFETY: a plain helper without arguments.
    unsafe { bpf_get_current_task() }
}

/// Whether the listener passes the filters. Those on addresses are of packets.
#[inline(always)]
fn passes(sk: impl Pointer) -> bool {
    filter::port(sk) && filter::netns_of(sk)
}

/// It was put in, or not (`returned` is 0). `sk` is the listener, where the program sees it.
#[inline(always)]
pub fn entered(sk: Option<Typed>, returned: u64) {
    let Some(place) = in_hand() else { return };
    // SAFETY: as in `set_entering`.
    let entering = unsafe { &mut *place };
    // A connection that joins another one (MPTCP) comes into no queue.
    if entering.child == 0 || returned != 0 && returned != entering.child {
        return;
    }
    let listener = entering.listener;
    if returned == 0 {
        places::remove(entering.child);
        gauge::completed(&listener, entering.took_us);
    } else {
        let (depth, limit) = match sk {
            Some(sk) => gauge::accept_queue(sk),
            None => gauge::accept_queue(Plain(listener.sk)),
        };
        gauge::accept_rose(&listener, depth, limit, entering.took_us);
    }
    // Where one of the two functions calls the other, once is enough.
    entering.child = 0;
}

/// accept() took a connection. How long it was in the queue, nanoseconds; 0 if it was in
/// there before we attached.
#[inline(always)]
pub fn left(child: u64) -> u64 {
    let Some(entered) = places::remove(child) else {
        return 0;
    };
    // SAFETY: a plain helper without arguments.
    let waited = unsafe { bpf_ktime_get_ns() } - entered.at_ns;
    note_wait(&entered.listener, waited);
    waited
}

/// A function of its own, for the verifier's sake.
#[inline(never)]
fn note_wait(listener: &QueueKey, waited_ns: u64) {
    let Some(marks) = kept::marks(listener) else {
        return;
    };
    kept::bump(&mut marks.waited[bucket(waited_ns / 1000)]);
    kept::add(&mut marks.waited_sum_ns, waited_ns);
    if waited_ns > marks.waited_max_ns {
        marks.waited_max_ns = waited_ns;
    }
}

/// How long the handshake took: since the first SYN-ACK, of which the kernel keeps the
/// moment in microseconds (`tcp_request_sock.snt_synack`).
#[inline(always)]
fn took(request: u64, now: u64) -> u64 {
    let sent = match Typed::cast::<{ typed::REQUEST }>(request) {
        Some(request) => request.load::<u64, { field::REQ_SYNACK_US }>(),
        None => memory::value(request, field::REQ_SYNACK_US),
    };
    match sent {
        0 => gauge::UNKNOWN,
        sent => (now / 1000).saturating_sub(sent),
    }
}

/// The final ACK. That this CPU does not own the request means that another one completed it.
#[inline(always)]
fn hashdance(sk: impl Pointer, child: u64, request: u64, owned: bool) {
    if !passes(sk) {
        return skip();
    }
    let listener = kept::key_of(sk);
    // SAFETY: a plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let took_us = if owned {
        took(request, now)
    } else {
        gauge::UNKNOWN
    };
    entering(listener, child, now, took_us);
    frame::note(|| saw::ADDING);
}

// (sk, child, request, own_req).

#[fentry]
fn hashdance_enter(ctx: FEntryContext) -> i32 {
    let owned = ctx.arg::<u64>(3) as u8 != 0;
    hashdance(Typed(ctx.arg(0)), ctx.arg(1), ctx.arg(2), owned);
    0
}

#[kprobe]
fn hashdance_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(child), Some(request), Some(owned)) =
        (ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg::<u64>(3))
    {
        hashdance(Plain(sk), child, request, owned as u8 != 0);
    }
    0
}

/// Cookies and fast open.
#[inline(always)]
fn queue_add(sk: impl Pointer, child: u64) {
    if !passes(sk) {
        return skip();
    }
    if let Some(outer) = in_hand()
        // SAFETY: as in `set_entering`.
        && unsafe { (*outer).child } == child
    {
        // The final ACK, which has noted it.
        return;
    }
    // SAFETY: a plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    entering(kept::key_of(sk), child, now, gauge::UNKNOWN);
}

// (sk, request, child).

#[fentry]
fn queue_add_enter(ctx: FEntryContext) -> i32 {
    queue_add(Typed(ctx.arg(0)), ctx.arg(2));
    0
}

#[fexit]
fn queue_add_exit(ctx: FExitContext) -> i32 {
    let returned = memory::returned::<{ hook::QUEUE_ADD }>(&ctx);
    entered(Some(Typed(ctx.arg(0))), returned);
    0
}

#[kprobe]
fn queue_add_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(child)) = (ctx.arg(0), ctx.arg(2)) {
        queue_add(Plain(sk), child);
    }
    0
}

#[kretprobe]
fn queue_add_exit_kprobe(ctx: RetProbeContext) -> u32 {
    entered(None, ctx.ret());
    0
}

// A listener that is closed: (sk, request, child).

#[fentry]
fn forget_enter(ctx: FEntryContext) -> i32 {
    places::remove(memory::plain(ctx.arg(2)));
    0
}

#[kprobe]
fn forget_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(child) = ctx.arg(2) {
        places::remove(child);
    }
    0
}
