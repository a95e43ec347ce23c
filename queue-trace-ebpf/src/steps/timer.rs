//! Step timer: `reqsk_timer_handler`, which sends the SYN-ACK again or gives the
//! half-open request up.
//!
//! When the handler returns the request may be freed, so what a record says of it
//! is copied at entry. Given up means: no longer hashed, and without the child that
//! a final ACK on another CPU would have left.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint},
    programs::{FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext},
};
use queue_trace_common::{field, hook, outcome};

use super::request;
use crate::{
    frame,
    read::memory,
    state::{
        config,
        tally::Here,
        types::{Call, saw},
    },
};

#[inline(always)]
fn enter(timer: u64) {
    let enclosing = timer - u64::from(config::field(field::REQ_TIMER).offset);
    request::open::<{ Call::Timer.counters() }>(Call::Timer, hook::TIMER, enclosing);
}

#[inline(always)]
fn exit() {
    let Some((frame, moved)) = Here::find().and_then(|here| {
        frame::close::<{ Call::Timer.counters() }, { Call::Timer.alone() }>(
            here,
            Call::Timer,
            Some(hook::TIMER),
            0,
        )
    }) else {
        return;
    };
    if frame.saw & saw::RETRANSMITTED != 0 {
        request::tell(outcome::SYNACK_RETRANSMITTED, frame, moved, 1);
    }
    let hashed = memory::get(frame.request, field::REQ_HASHED).unwrap_or(1u64) != 0;
    let completed = memory::value::<u64>(frame.request, field::REQ_CHILD) != 0;
    if !hashed && !completed {
        request::tell(outcome::REQUEST_EXPIRED, frame, moved, 0);
    }
}

#[fentry]
fn timer_enter(ctx: FEntryContext) -> i32 {
    enter(ctx.arg(0));
    0
}

#[fexit]
fn timer_exit(_: FExitContext) -> i32 {
    exit();
    0
}

#[kprobe]
fn timer_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(timer) = ctx.arg(0) {
        enter(timer);
    }
    0
}

#[kretprobe]
fn timer_exit_kprobe(_: RetProbeContext) -> u32 {
    exit();
    0
}

/// `tcp:tcp_retransmit_synack(sk, req)` fires for the timer, and for a client that
/// sends its SYN again; only the first is the timer's.
#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
fn retransmit_synack(ctx: RawTracePointContext) -> i32 {
    let request: u64 = ctx.arg(1);
    if let Some(frame) = Here::find().and_then(frame::current)
        && frame.call == Call::Timer as u32
        && frame.request == request
    {
        frame.saw |= saw::RETRANSMITTED;
    }
    0
}
