//! What is kept of a listener: its key, its entry in the map that all CPUs share, and its marks, at
//! their place or in the map behind it; made where missing.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use queue_trace_common::{
    field,
    queue::{MARKED as MARKED_PLACES, MarkedPlace, Marks, MarksKey, Queue, QueueKey, WRITING},
};

use crate::{
    filter,
    read::{
        memory::{self, Pointer},
        socket,
    },
    state::{
        config,
        exchange::exchange,
        maps::{IF_MISSING, MARKED, MARKS, QUEUES},
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
    let mut marks = find(key);
    if marks.is_none() {
        make(key);
        marks = find(key);
    }
    // SAFETY: this CPU's own. What runs with bottom halves off and what runs in accept() write
    // different members. Where softirqs mix see `bump`; there a mark may be one packet late.
    marks.map(|marks| unsafe { &mut *marks })
}

/// Where they are, if there are some.
#[inline(always)]
fn find(key: &QueueKey) -> Option<*mut Marks> {
    if let Some(place) = place(key)
        // SAFETY: whole words of an entry of the map.
        && unsafe { (*place).key == *key }
    {
        // SAFETY: within the entry.
        return Some(unsafe { &raw mut (*place).marks });
    }
    MARKS.get_ptr_mut(here(key))
}

/// The key of this CPU's marks of a listener.
#[inline(always)]
fn here(listener: &QueueKey) -> MarksKey {
    MarksKey {
        listener: *listener,
        // SAFETY: a plain helper without arguments.
        cpu: unsafe { bpf_get_smp_processor_id() },
        _pad: 0,
    }
}

/// Makes some. Rare, so a function of its own.
#[inline(never)]
fn make(key: &QueueKey) {
    if filter::is_foreign_self_test(memory::value(key.sk, field::SK_NET)) {
        return;
    }
    // So that its end will be noticed, after which a place is given back.
    let is_listed = queue(key).is_some();
    if is_listed
        && let Some(place) = place(key)
        && take(place, key)
    {
        return;
    }
    let key = &here(key);
    if MARKS.insert(key, &NO_MARKS, IF_MISSING).is_ok() {
        tally::spilled();
    } else if MARKS.get_ptr_mut(key).is_none() {
        tally::lost(|loss| &mut loss.unlisted);
    }
}

/// This CPU's place for the marks of a listener, where places can be taken.
#[inline(always)]
fn place(key: &QueueKey) -> Option<*mut MarkedPlace> {
    if !config::exchanges() {
        return None;
    }
    // SAFETY: a plain helper without arguments.
    let places = MARKED.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })?;
    // A listener is some KiB large.
    let index = (key.sk >> 6 ^ key.sk >> 12) as usize % MARKED_PLACES;
    // SAFETY: within the entry that was found.
    Some(unsafe { (&raw mut (*places)[index]).cast() })
}

/// Takes a place that is free, whose marks are zero. What takes it may be interrupted by what would
/// take it as well, so it is done by an exchange.
#[inline(always)]
fn take(place: *mut MarkedPlace, key: &QueueKey) -> bool {
    // SAFETY: an entry of the map.
    let (owner, inode) = unsafe { (&raw mut (*place).key.sk, &raw mut (*place).key.inode) };
    // SAFETY: a whole word.
    if unsafe { owner.read_volatile() } != 0 || exchange(owner, 0, key.sk | WRITING) != 0 {
        return false;
    }
    // SAFETY: a whole word, and ours alone now.
    unsafe { inode.write_volatile(key.inode) };
    exchange(owner, key.sk | WRITING, key.sk);
    true
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
        if QUEUES.insert(key, &NO_QUEUE, IF_MISSING).is_ok() {
            tally::queues_more();
        }
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
