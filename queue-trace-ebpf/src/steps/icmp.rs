//! Step icmp: `tcp_req_err`, by which an ICMP error removes a half-open request. It
//! moves ListenDrops, although no packet of a handshake was dropped.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use queue_trace_common::{counter::DROP, hook, outcome};

use super::request;
use crate::{
    frame,
    state::{tally::Here, types::Call},
};

#[inline(always)]
fn exit() {
    if let Some((frame, moved)) = Here::find().and_then(|here| {
        frame::close::<{ Call::Icmp.counters() }, { Call::Icmp.alone() }>(
            here,
            Call::Icmp,
            Some(hook::ICMP),
            0,
        )
    }) && moved & DROP != 0
    {
        request::tell(outcome::REQUEST_ABORTED, frame, moved, 0);
    }
}

// The socket that the function is given is the request.

#[fentry]
fn icmp_enter(ctx: FEntryContext) -> i32 {
    request::open::<{ Call::Icmp.counters() }>(Call::Icmp, hook::ICMP, ctx.arg(0));
    0
}

#[fexit]
fn icmp_exit(_: FExitContext) -> i32 {
    exit();
    0
}

#[kprobe]
fn icmp_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(request) = ctx.arg(0) {
        request::open::<{ Call::Icmp.counters() }>(Call::Icmp, hook::ICMP, request);
    }
    0
}

#[kretprobe]
fn icmp_exit_kprobe(_: RetProbeContext) -> u32 {
    exit();
    0
}
