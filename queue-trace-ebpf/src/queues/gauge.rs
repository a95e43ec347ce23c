//! The gauges of a listener's queues: how deep they were at most, how long the accept queue was
//! full, and how long handshakes took. Read right after what moves them, on the CPU that moved
//! them, so a spike between two looks from user space is not missed.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use queue_trace_common::{
    field,
    queue::{Marks, Queue, QueueKey, bucket},
    settings::typed,
};

use super::kept;
use crate::{
    read::memory::{Plain, Pointer, Typed},
    state::maps::QUEUES,
};

/// A connection entered the accept queue, which is this deep now and may be so deep; how long its
/// handshake took, if that is known. A function of its own, for the verifier's sake.
#[inline(never)]
pub fn accept_rose(key: &QueueKey, depth: u32, limit: u32, took_us: u64) {
    let Some(marks) = kept::marks(key) else {
        return;
    };
    kept::bump(&mut marks.entered);
    note_handshake(marks, took_us);
    if depth <= marks.accept_high && depth <= limit {
        return;
    }
    // SAFETY: a plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
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
    became_full(queue, now);
    // accept() on another CPU may have looked before that was written.
    let (depth, limit) = accept_queue(Plain(key.sk));
    if depth <= limit {
        no_longer_full(queue);
    }
}

/// A handshake was completed by a connection that did not enter. A function of its own, for the
/// verifier's sake.
#[inline(never)]
pub fn completed(key: &QueueKey, took_us: u64) {
    if took_us != UNKNOWN
        && let Some(marks) = kept::marks(key)
    {
        note_handshake(marks, took_us);
    }
}

/// How long a handshake took that was not seen.
pub const UNKNOWN: u64 = u64::MAX;

#[inline(always)]
fn note_handshake(marks: &mut Marks, took_us: u64) {
    if took_us == UNKNOWN {
        return;
    }
    kept::bump(&mut marks.handshakes[bucket(took_us)]);
    if took_us > marks.handshake_max_us {
        marks.handshake_max_us = took_us;
    }
}

/// Whether any accept queue was full while attached. Where none was, an accept() need not look
/// whether its own is so still.
static mut ANY_WAS_FULL: u32 = 0;

/// A connection left the accept queue.
#[inline(always)]
pub fn accept_fell(sk: impl Pointer) {
    // SAFETY: a whole word that is set once; see `became_full` for who reads it too early.
    if unsafe { (&raw const ANY_WAS_FULL).read_volatile() } == 0 {
        return;
    }
    let key = kept::key_of(sk);
    let Some(queue) = QUEUES.get_ptr_mut(&key) else {
        return;
    };
    let (depth, limit) = accept_queue(sk);
    if depth > limit || !no_longer_full(queue) {
        return;
    }
    // A connection may have filled it meanwhile, and have found it noted as full.
    let (depth, limit) = accept_queue(sk);
    if depth > limit {
        // SAFETY: a plain helper without arguments.
        became_full(queue, unsafe { bpf_ktime_get_ns() });
    }
}

// Several CPUs may find the queue full, or not full any more, at the same time: packets for a
// listener and accept() after it has given back the socket's lock run without it. BPF programs
// have no exchange on all kernels, so each word is read once, and what is written follows from
// what was read alone: whoever comes second writes the same again.

/// The accept queue is full.
#[inline(always)]
fn became_full(queue: *mut Queue, now: u64) {
    // First, and whoever calls this looks at the depth afterwards.
    // SAFETY: a whole word, and all write the same.
    unsafe { (&raw mut ANY_WAS_FULL).write_volatile(1) };
    // SAFETY: a whole entry of the map, of plain words; it is not removed while its listener
    // lives.
    unsafe {
        if (&raw const (*queue).full_since_ns).read_volatile() != 0 {
            return;
        }
        let before = (&raw const (*queue).full_ns).read_volatile();
        let times = (&raw const (*queue).full_times).read_volatile();
        (&raw mut (*queue).full_before_ns).write_volatile(before);
        (&raw mut (*queue).full_times).write_volatile(times + 1);
        (&raw mut (*queue).full_since_ns).write_volatile(now);
    }
}

/// The accept queue has room again. Whether it was full.
#[inline(always)]
pub fn no_longer_full(queue: *mut Queue) -> bool {
    // SAFETY: as in `became_full`.
    unsafe {
        let since = (&raw const (*queue).full_since_ns).read_volatile();
        if since == 0 {
            return false;
        }
        let before = (&raw const (*queue).full_before_ns).read_volatile();
        let took = bpf_ktime_get_ns().saturating_sub(since);
        (&raw mut (*queue).full_ns).write_volatile(before + took);
        (&raw mut (*queue).full_since_ns).write_volatile(0);
    }
    true
}

/// A request entered the SYN queue. A function of its own, for the verifier's sake.
#[inline(never)]
pub fn syn_rose(key: &QueueKey) {
    let depth: u32 = match Typed::cast::<{ typed::LISTENER }>(key.sk) {
        Some(sk) => sk.load::<_, { field::SYN_DEPTH }>(),
        None => Plain(key.sk).load::<_, { field::SYN_DEPTH }>(),
    };
    let Some(marks) = kept::marks(key) else {
        return;
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
    (
        sk.load::<_, { field::SK_DEPTH }>(),
        sk.load::<_, { field::SK_LIMIT }>(),
    )
}
