//! Evidence: what this CPU's counters did between the entry of a kernel function
//! and its return, and which nested functions were called meanwhile.
//!
//! Between the two no other packet of TCP runs on this CPU, so the movement belongs
//! to this packet (bottom halves are off from before `tcp_conn_request` until after
//! it; net/ipv4/tcp_input.c, `tcp_rcv_state_process`).

use core::hint::black_box;

use queue_trace_common::{
    counter::{self, GROUPS, Moved},
    field,
    outcome::{self, OUTCOMES, Step},
    settings::{Address, typed},
};

use crate::{
    emit,
    globals::{self, CPU},
    memory::{self, Pointer, Status, Typed},
};

/// Values of the counters, in the order of [`counter::COUNTERS`].
pub type Counters = [u64; counter::COUNT];

/// What a frame was opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Call {
    /// Nothing: no frame is open, or the packet is filtered out.
    None = 0,
    /// `tcp_v4_conn_request` and its relatives.
    Syn,
    /// `tcp_check_req`.
    Ack,
    /// `cookie_v4_check`, `cookie_v6_check`.
    Cookie,
    /// `reqsk_timer_handler`.
    Timer,
    /// `tcp_req_err`.
    Icmp,
}

impl Call {
    /// The counters that its outcomes move, or may move.
    #[inline(always)]
    const fn counters(self) -> Moved {
        match self {
            Self::None => 0,
            Self::Syn => counters_of_step(Step::Syn),
            Self::Ack | Self::Cookie => counters_of_step(Step::Ack),
            Self::Timer => counters_of_step(Step::Timer),
            Self::Icmp => counters_of_step(Step::Icmp),
        }
    }
}

const fn counters_of_step(step: Step) -> Moved {
    let mut counters = 0;
    let mut tag = 0;
    while tag < outcome::COUNT {
        let outcome = &OUTCOMES[tag];
        if outcome.step as u8 == step as u8 {
            counters |= outcome.moves | outcome.may_move;
        }
        tag += 1;
    }
    counters
}

/// A nested function that was called, or what it returned.
pub mod saw {
    /// `inet_reqsk_alloc` was called.
    pub const ALLOC: u32 = 1 << 0;
    /// and returned NULL.
    pub const ALLOC_FAILED: u32 = 1 << 1;
    /// A security module refused.
    pub const REFUSED: u32 = 1 << 2;
    /// `tcp_peer_is_proven` was asked, which only the last-quarter rule does.
    pub const PROVEN_ASKED: u32 = 1 << 3;
    /// The request entered the SYN queue.
    pub const QUEUED: u32 = 1 << 4;
    /// The request was in the SYN queue already.
    pub const DUPLICATE: u32 = 1 << 5;
    /// The connection could not be allocated.
    pub const NO_CHILD: u32 = 1 << 6;
    /// It was made.
    pub const CHILD: u32 = 1 << 9;
    /// `inet_csk_complete_hashdance` gave nothing back.
    pub const NOT_ADDED: u32 = 1 << 7;
    /// The SYN-ACK was sent again.
    pub const RETRANSMITTED: u32 = 1 << 8;
}

/// What is remembered of the packet in hand.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Frame {
    /// What the frame was opened for; a [`Call`].
    pub call: u32,
    /// The verdict; see [`through`].
    pub verdict: u32,
    /// Nested functions seen; [`saw`].
    pub saw: u32,
    /// The hook that opened it.
    pub hook: u32,
    /// The listener.
    pub sk: u64,
    /// The packet.
    pub skb: u64,
    /// The half-open request, where there is one.
    pub request: u64,
    /// The network namespace.
    pub net: u64,
    /// This CPU's counters of that namespace.
    pub counters: u64,
    /// Their values at entry.
    pub before: Counters,
    /// Their values at the return.
    pub after: Counters,
}

/// One CPU's memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cpu {
    /// See [`memory::per_cpu_offset`]; kept, as it never changes.
    pub offset: u64,
    /// Until when the records sent so far use up the allowance.
    pub account_ns: u64,
    /// The kernel's tick at which it was found used up.
    pub used_up_at: u64,
    /// The packet in hand.
    pub frame: Frame,
    /// The half-open request whose timer fired: it may be gone when the timer ends.
    pub request: Request,
}

/// A half-open request, copied.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Request {
    /// The address that the client talks to.
    pub local: Address,
    /// The client's address.
    pub client: Address,
    /// The client's port.
    pub client_port: u16,
    /// SYN-ACKs retransmitted so far.
    pub retransmits: u8,
    /// Padding.
    pub _pad: [u8; 5],
}

/// This CPU's memory.
#[inline(always)]
pub fn cpu() -> Option<&'static mut Cpu> {
    let cpu = CPU.get_ptr_mut(0)?;
    // SAFETY: the kernel gives each CPU its own copy, and no other program that
    // uses it runs on this CPU before this one ends: all run in softirq.
    let here = unsafe { &mut *cpu };
    if here.offset == 0 {
        here.offset = memory::per_cpu_offset(cpu);
    }
    Some(here)
}

/// The address of this CPU's counters of a namespace; `place` is in a map, in which what
/// was a pointer to the verifier becomes a number.
#[inline(always)]
pub fn counters_of(net: impl Pointer, cpu_offset: u64, place: &mut u64) -> u64 {
    *place = net.follow(field::NET_COUNTERS).address();
    // SAFETY: a reference is good to read from.
    let shared = unsafe { core::ptr::read_volatile(place) };
    *place = shared.wrapping_add(cpu_offset);
    *place
}

/// Reads counters into a place: those asked for, or all.
#[inline(always)]
pub fn read_counters(place: &mut Counters, counters: u64, which: Moved) -> bool {
    if let Some(counters) = Typed::cast(counters, typed::COUNTERS) {
        for (group, (first, length)) in GROUPS.into_iter().enumerate() {
            for next in 0..length {
                if which >> (first + next) & 1 != 0 {
                    place[first + next] =
                        counters.word(globals::counter_place(group) + next as u64);
                }
            }
        }
        return true;
    }
    let (first, rest) = place.split_at_mut(GROUPS[0].1);
    let (second, third) = rest.split_at_mut(GROUPS[1].1);
    let status = fetch_group::<{ GROUPS[0].1 }>(first, counters, 0)
        | fetch_group::<{ GROUPS[1].1 }>(second, counters, 1)
        | fetch_group::<{ GROUPS[2].1 }>(third, counters, 2);
    status.ok()
}

#[inline(always)]
fn fetch_group<const LENGTH: usize>(run: &mut [u64], counters: u64, group: usize) -> Status {
    // The lengths are the groups' own, so there is always such a run.
    run.first_chunk_mut::<LENGTH>()
        .map_or(Status::FAILED, |run| {
            memory::fetch(run, counters + 8 * globals::counter_place(group))
        })
}

/// What counters did between two readings.
pub struct Movement {
    /// Those that moved.
    pub moved: Moved,
    /// Whether one moved by more than a single packet moves it.
    pub more_than_once: bool,
}

impl Movement {
    /// Of the counters asked for. Without a branch for each: the verifier would follow both
    /// ways of each, and multiply them.
    #[inline(always)]
    pub fn between(before: &Counters, after: &Counters, which: Moved) -> Self {
        let mut moved = 0;
        let mut all = 0;
        let mut index = 0;
        while index < counter::COUNT {
            if which >> index & 1 != 0 {
                let by = after[index].wrapping_sub(before[index]);
                moved |= by << index;
                all |= by;
            }
            index += 1;
        }
        // A packet moves a counter by one or not at all: then each is a bit.
        let more_than_once = all > 1;
        if more_than_once {
            moved = not_zero(before, after) & u64::from(which);
        }
        Self {
            moved: moved as Moved,
            more_than_once,
        }
    }
}

/// The counters that moved, however far. Rare, so a function of its own.
#[inline(never)]
fn not_zero(before: &Counters, after: &Counters) -> u64 {
    let mut moved = 0;
    let mut index = 0;
    while index < counter::COUNT {
        let by = after[index].wrapping_sub(before[index]);
        // The top bit of x | -x says whether x is not zero. The black box keeps the
        // compiler from seeing that, and making it a branch.
        moved |= ((by | black_box(by.wrapping_neg())) >> 63) << index;
        index += 1;
    }
    moved
}

/// Passes an outcome and the counters that moved with it through a map, after which the
/// verifier knows no more of them than that they are numbers: otherwise it would follow all
/// that comes after once for each outcome.
#[inline(always)]
pub fn through(place: &mut u32, outcome: u8, moved: Moved) -> (u8, Moved) {
    *place = u32::from(outcome) | u32::from(moved) << 8;
    // SAFETY: a reference is good to read from.
    let verdict = unsafe { core::ptr::read_volatile(place) };
    (verdict as u8, (verdict >> 8) as Moved)
}

/// Opens a frame for a packet that passed the filter.
#[inline(always)]
pub fn open(call: Call, hook: usize, sk: impl Pointer, skb: u64, request: u64) {
    let Some(cpu) = cpu() else { return };
    let frame = &mut cpu.frame;
    frame.call = Call::None as u32;
    let net = sk.follow(field::SK_NET);
    let counters = counters_of(net, cpu.offset, &mut frame.counters);
    if read_counters(&mut frame.before, counters, call.counters()) {
        frame.saw = 0;
        frame.sk = sk.address();
        frame.skb = skb;
        frame.request = request;
        frame.net = net.address();
        frame.hook = hook as u32;
        frame.call = call as u32;
    }
}

/// Forgets the frame: the packet in hand is filtered out.
#[inline(always)]
pub fn skip() {
    if let Some(cpu) = cpu() {
        cpu.frame.call = Call::None as u32;
    }
}

/// Closes the frame that `hook` opened for `call` and gives it with the counters that
/// moved. `skb` 0: not known at this exit.
#[inline(always)]
pub fn close(call: Call, hook: usize, skb: u64) -> Option<(&'static mut Frame, Moved)> {
    let cpu = cpu()?;
    let frame = &mut cpu.frame;
    if frame.call != call as u32 || frame.hook != hook as u32 {
        return None;
    }
    frame.call = Call::None as u32;
    if skb != 0 && frame.skb != skb {
        emit::lost(|loss| &mut loss.unpaired);
        return None;
    }
    if !read_counters(&mut frame.after, frame.counters, call.counters()) {
        return None;
    }
    let movement = Movement::between(&frame.before, &frame.after, call.counters());
    if movement.more_than_once {
        // Kernels whose softirqs can be preempted by another on the same CPU.
        emit::lost(|loss| &mut loss.ambiguous);
    }
    Some((frame, movement.moved))
}

/// Notes a nested function in the open frame, if one of these calls is open.
#[inline(always)]
pub fn note(what: u32) {
    if let Some(cpu) = cpu()
        && cpu.frame.call != Call::None as u32
    {
        cpu.frame.saw |= what;
    }
}
