//! What is kept of a listener: its key, its entries in the two maps, made where missing.

use queue_trace_common::{
    field,
    queue::{Marks, Queue, QueueKey},
};

use crate::{
    filter,
    read::{
        memory::{self, Pointer},
        socket,
    },
    state::{
        config,
        maps::{IF_MISSING, MARKS, QUEUES},
        tally,
    },
};

static NO_MARKS: Marks = Marks {
    accept_high_ns: 0,
    syn_high_ns: 0,
    waited_max_ns: 0,
    waited_sum_ns: 0,
    handshake_max_us: 0,
    accept_high: 0,
    syn_high: 0,
    entered: 0,
    waited: [0; _],
    handshakes: [0; _],
};

static NO_QUEUE: Queue = Queue {
    addr: [0; 16],
    comm: [0; 16],
    made_ns: 0,
    closed_ns: 0,
    full_since_ns: 0,
    full_ns: 0,
    full_before_ns: 0,
    full_times: 0,
    cgroup: 0,
    netns: 0,
    pid: 0,
    asked: 0,
    released: 0,
    port: 0,
    accept_depth: 0,
    accept_limit: 0,
};

/// The listener's key. A socket that has lost its file has none: it is being closed.
#[inline(always)]
pub fn key_of(sk: impl Pointer) -> QueueKey {
    QueueKey {
        sk: sk.address(),
        inode: socket::inode(sk),
    }
}

/// This CPU's marks of a listener.
#[inline(always)]
pub fn marks(key: &QueueKey) -> Option<&'static mut Marks> {
    let mut place = MARKS.get_ptr_mut(key);
    if place.is_none() {
        if filter::is_foreign_self_test(memory::value(key.sk, field::SK_NET)) {
            return None;
        }
        // If there is no room, nothing is found below.
        let _ = MARKS.insert(key, &NO_MARKS, IF_MISSING);
        place = MARKS.get_ptr_mut(key);
        if place.is_none() {
            tally::lost(|loss| &mut loss.unlisted);
        }
        // So that its end will be noticed.
        let _ = queue(key);
    }
    // SAFETY: this CPU's copy. What runs with bottom halves off and what runs in accept() write
    // different members. Where softirqs mix see `bump`; there a mark may be one packet late.
    place.map(|marks| unsafe { &mut *marks })
}

/// What all CPUs share of a listener.
#[inline(always)]
pub fn queue(key: &QueueKey) -> Option<&'static mut Queue> {
    let mut place = QUEUES.get_ptr_mut(key);
    if place.is_none() {
        if filter::is_foreign_self_test(memory::value(key.sk, field::SK_NET)) {
            return None;
        }
        // If there is no room, nothing is found below.
        let _ = QUEUES.insert(key, &NO_QUEUE, IF_MISSING);
        place = QUEUES.get_ptr_mut(key);
        if place.is_none() {
            tally::lost(|loss| &mut loss.unlisted);
        }
    }
    // SAFETY: user space removes the entry only after its listener was closed. CPUs may
    // write at once, each whole words.
    let queue = unsafe { &mut *place? };
    if queue.netns == 0 {
        let net: u64 = memory::value(key.sk, field::SK_NET);
        queue.netns = memory::value(net, field::NET_ID);
        queue.port = memory::value(key.sk, field::SK_PORT);
        let _ = socket::fetch_bound_addr(&mut queue.addr, key.sk);
    }
    Some(queue)
}

/// Adds one to a number of this CPU's marks.
#[inline(always)]
pub fn bump(number: &mut u64) {
    add(number, 1);
}

/// Adds to a number of this CPU's marks.
#[inline(always)]
pub fn add(number: &mut u64, more: u64) {
    if config::softirqs_mix() {
        tally::add(number, more);
    } else {
        *number += more;
    }
}
