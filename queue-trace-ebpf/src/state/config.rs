//! The read-only globals that user space fills before load: what is wanted, and what this
//! kernel looks like.

use queue_trace_common::{
    counter, field,
    field::Field,
    hook, outcome, reason,
    settings::{ASKED, Filter, Kernel, PORT_WORDS, mark},
};

// What each packet asks is in the instructions (`known`). Else the loader replaces the bytes behind
// these names. Volatile reads keep the compiler from folding the zeros; the verifier knows the real
// values, as the section is frozen before the programs load.

#[unsafe(no_mangle)]
static FIELDS: [Field; field::COUNT] = [Field { offset: 0, size: 0 }; field::COUNT];

#[unsafe(no_mangle)]
static FILTER: Filter = Filter {
    outcomes: 0,
    slow_ns: 0,
    netns: [0; _],
    netns_count: 0,
    record_cost_ns: 0,
    only_port: 0,
    ports: 0,
    addrs: 0,
    clients: 0,
    unheard: 0,
    debug: 0,
    _pad: 0,
};

#[unsafe(no_mangle)]
static PORTS: [u64; PORT_WORDS] = [0; PORT_WORDS];

#[unsafe(no_mangle)]
static KERNEL: Kernel = Kernel {
    asked: [0; _],
    counters: [0; _],
    sole: [0; _],
    reasons: [0; _],
    types: [0; _],
    self_test: 0,
    arity: [0; _],
    hash_add_tells: 0,
    kfree_has_sk: 0,
    softirqs_mix: 0,
    delivered: 0,
    tcp_established: 0,
    tcp_syn_recv: 0,
    tcp_listen: 0,
    attached: 0,
    _pad: [0; _],
};

/// A number of [`Kernel`] or [`Filter`] that is in the instruction: for what each packet asks.
macro_rules! known {
    ($whole:ident at $place:expr, $size:expr) => {{
        // SAFETY: sets a register.
        #[cfg(target_arch = "bpf")]
        unsafe {
            let number: u64;
            core::arch::asm!(
                "{number} = {mark}",
                number = out(reg) number,
                mark = const mark::member(mark::$whole, $size, $place),
                // Not pure: the compiler would keep it somewhere until it asks again, where nobody
                // sees what it is.
                options(nomem, nostack, preserves_flags),
            );
            number
        }
        // To be linted, not to be run.
        #[cfg(not(target_arch = "bpf"))]
        {
            mark::member(mark::$whole, $size, $place) as u64
        }
    }};
    (KERNEL.$member:ident, $size:expr) => {
        known!(KERNEL at core::mem::offset_of!(Kernel, $member), $size)
    };
    (FILTER.$member:ident, $size:expr) => {
        known!(FILTER at core::mem::offset_of!(Filter, $member), $size)
    };
}

/// Reads one member of a read-only global.
macro_rules! global {
    ($place:expr) => {{
        // SAFETY: a static that nobody writes after load, read whole.
        unsafe { core::ptr::read_volatile(&raw const $place) }
    }};
}

/// Where a field is.
#[inline(always)]
pub fn field(index: usize) -> Field {
    Field {
        offset: global!(FIELDS[index].offset),
        size: global!(FIELDS[index].size),
    }
}

/// The outcomes for which records are wanted.
#[inline(always)]
pub fn wanted() -> outcome::Set {
    global!(FILTER.outcomes)
}

/// Whether records of an outcome are wanted.
#[inline(always)]
pub fn wants(outcome: u8) -> bool {
    wanted() >> outcome & 1 != 0
}

/// What a record costs of its CPU's allowance, nanoseconds; 0: no limit.
#[inline(always)]
pub fn record_cost_ns() -> u64 {
    known!(FILTER.record_cost_ns, 4)
}

/// Below what time in the accept queue an accepted connection is not told, nanoseconds.
#[inline(always)]
pub fn slow_ns() -> u64 {
    global!(FILTER.slow_ns)
}

/// Which filters are on: ports, addresses, clients.
#[inline(always)]
pub fn filters() -> (bool, bool, bool) {
    let (addrs, clients) = filters_addresses();
    (filters_ports(), addrs, clients)
}

/// Whether ports are filtered.
#[inline(always)]
pub fn filters_ports() -> bool {
    known!(FILTER.ports, 1) != 0
}

/// Whether addresses are, ours and the clients'.
#[inline(always)]
pub fn filters_addresses() -> (bool, bool) {
    (known!(FILTER.addrs, 1) != 0, known!(FILTER.clients, 1) != 0)
}

/// Whether ports without a listener matter that had none while attached.
#[inline(always)]
pub fn unheard() -> bool {
    known!(FILTER.unheard, 1) != 0
}

/// Whether the kernel side's own messages are wanted.
#[inline(always)]
pub fn debug() -> bool {
    known!(FILTER.debug, 1) != 0
}

/// Whether this kernel's number of a reason for freeing a packet is asked for. Every packet that is
/// freed asks, and hardly one is meant.
#[inline(always)]
pub fn asks(why: u64) -> bool {
    let word = global!(KERNEL.asked[(why >> 6) as usize % ASKED]);
    why < 64 * ASKED as u64 && word >> (why & 63) & 1 != 0
}

/// Which of [`REASONS`](reason::REASONS) it is, if it is one.
#[inline(always)]
pub fn reason(why: u64) -> Option<usize> {
    let mut index = 0;
    while index < reason::COUNT {
        if why == u64::from(global!(KERNEL.reasons[index])) {
            return Some(index);
        }
        index += 1;
    }
    None
}

/// The namespaces asked for, and how many there are.
#[inline(always)]
pub fn netns_filter(index: usize) -> u32 {
    global!(FILTER.netns[index])
}

/// How many namespaces were asked for; 0: all.
#[inline(always)]
pub fn netns_count() -> u64 {
    known!(FILTER.netns_count, 4)
}

/// Whether a port is one of those that are wanted.
#[inline(always)]
pub fn port_wanted(port: u16) -> bool {
    let only = known!(FILTER.only_port, 2);
    if only != 0 {
        return u64::from(port) == only;
    }
    let word = global!(PORTS[usize::from(port >> 6)]);
    word >> (port & 63) & 1 != 0
}

/// First place of a group of counters in the kernel's array.
#[inline(always)]
pub fn counter_place(group: usize) -> u64 {
    u64::from(global!(KERNEL.counters[group]))
}

/// Place of a counter of [`SOLE`](counter::SOLE) in the kernel's array.
#[inline(always)]
pub fn sole_place(which: usize) -> u64 {
    u64::from(global!(KERNEL.sole[which]))
}

/// The number of a struct of [`TYPED`](queue_trace_common::settings::TYPED) among the kernel's
/// types, 0 if its address cannot be given its type.
#[inline(always)]
pub fn type_of<const INDEX: usize>() -> u64 {
    known!(KERNEL at core::mem::offset_of!(Kernel, types) + 4 * INDEX, 4)
}

/// Whether a word can be exchanged: Linux 5.12 has that, 5.18 on arm64, and the loader counts on it
/// where addresses can be given their types (6.2).
#[inline(always)]
pub fn exchanges() -> bool {
    type_of::<0>() != 0
}

/// The mark of our own self-test.
#[inline(always)]
pub fn self_test() -> u32 {
    known!(KERNEL.self_test, 4) as u32
}

/// Whether `inet_csk_reqsk_queue_hash_add` tells whether it added.
#[inline(always)]
pub fn hash_add_tells() -> bool {
    known!(KERNEL.hash_add_tells, 1) != 0
}

/// Whether the tracepoint `kfree_skb` carries the receiving socket.
#[inline(always)]
pub fn kfree_has_sk() -> bool {
    known!(KERNEL.kfree_has_sk, 1) != 0
}

/// Whether the kernel shows packets right before a socket decides on them; see `delivered`.
#[inline(always)]
pub fn sees_delivery() -> bool {
    known!(KERNEL.delivered, 1) != 0
}

/// Whether softirqs of one CPU interrupt each other, see [`frame`](crate::frame).
#[inline(always)]
pub fn softirqs_mix() -> bool {
    known!(KERNEL.softirqs_mix, 1) != 0
}

/// Whether an outcome can be told from others: each nested hook that it needs would have been
/// seen, as it is attached, or as this kernel has nothing there to attach to.
#[inline(always)]
pub fn tells(outcome: u8) -> bool {
    let needed = hook::needed_by(outcome);
    known!(KERNEL.attached, 4) as u32 & needed == needed
}

/// Whether each socket that begins or ends listening is seen.
#[inline(always)]
pub fn sees_listening() -> bool {
    const BOTH: u32 = hook::HOOKS[hook::LISTEN].bit() | hook::HOOKS[hook::STOP].bit();
    sees_delivery() || known!(KERNEL.attached, 4) as u32 & BOTH == BOTH
}

/// TCP states, as this kernel numbers them: (established, syn_recv, listen).
#[inline(always)]
pub fn tcp_states() -> (u8, u8, u8) {
    (
        known!(KERNEL.tcp_established, 1) as u8,
        known!(KERNEL.tcp_syn_recv, 1) as u8,
        known!(KERNEL.tcp_listen, 1) as u8,
    )
}

const _: () = assert!(counter::GROUPS.len() == 3 && hook::COUNT <= 32);
