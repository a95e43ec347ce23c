//! Where softirqs of one CPU interrupt each other (PREEMPT_RT): tasks that are taken off their
//! CPU in the midst of a packet, see [`frame`].

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::frame;

/// `sched_switch(preempt, prev, next, ...)`, on the CPU on which it happens.
#[raw_tracepoint(tracepoint = "sched_switch")]
fn task_switched(ctx: RawTracePointContext) -> i32 {
    frame::pause(ctx.arg(1));
    frame::resume(ctx.arg(2));
    0
}
