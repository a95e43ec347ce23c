//! The gauges of a listener's queues: how deep they were at most, and how long the accept
//! queue was full. Read right after what moves them, on the CPU that moved them, so a
//! spike between two looks from user space is not missed.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use queue_trace_common::{field, queue::QueueKey, settings::typed};

use super::kept;
use crate::{
    read::memory::{Plain, Pointer, Typed},
    state::{maps::QUEUES, tally},
};

/// A connection entered the accept queue, which is this deep now and may be so deep. A
/// function of its own, for the verifier's sake.
#[inline(never)]
pub fn accept_rose(key: &QueueKey, depth: u32, limit: u32) {
    // SAFETY: a plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(marks) = kept::marks(key) else {
        return tally::lost(|loss| &mut loss.unlisted);
    };
    marks.entered += 1;
    if depth > marks.accept_high {
        marks.accept_high = depth;
        marks.accept_high_ns = now;
    }
    if depth <= limit {
        return;
    }
    let Some(queue) = kept::queue(key) else {
        return;
    };
    if queue.full_since_ns == 0 {
        queue.full_since_ns = now;
        queue.full_times += 1;
        // accept() on another CPU may have looked before that was written.
        let (depth, limit) = accept_queue(Plain(key.sk));
        if depth <= limit {
            queue.full_since_ns = 0;
        }
    }
}

/// A connection left the accept queue.
#[inline(always)]
pub fn accept_fell(sk: impl Pointer) {
    let key = kept::key_of(sk);
    // SAFETY: the entry is not removed while its listener lives.
    let Some(queue) = QUEUES.get_ptr_mut(&key).map(|queue| unsafe { &mut *queue }) else {
        return;
    };
    let (depth, limit) = accept_queue(sk);
    if queue.full_since_ns != 0 && depth <= limit {
        kept::no_longer_full(queue);
    }
}

/// A request entered the SYN queue. A function of its own, for the verifier's sake.
#[inline(never)]
pub fn syn_rose(key: &QueueKey) {
    let depth: u32 = match Typed::cast(key.sk, typed::LISTENER) {
        Some(sk) => sk.load(field::SYN_DEPTH),
        None => Plain(key.sk).load(field::SYN_DEPTH),
    };
    let Some(marks) = kept::marks(key) else {
        return tally::lost(|loss| &mut loss.unlisted);
    };
    if depth > marks.syn_high {
        marks.syn_high = depth;
        // SAFETY: a plain helper without arguments.
        marks.syn_high_ns = unsafe { bpf_ktime_get_ns() };
    }
}

/// Depth and limit of the accept queue.
#[inline(always)]
pub fn accept_queue(sk: impl Pointer) -> (u32, u32) {
    (sk.load(field::SK_DEPTH), sk.load(field::SK_LIMIT))
}
