//! The frame of the packet in hand: what this CPU's counters did between the entry of a kernel
//! function and its return, and which nested functions were called meanwhile.
//!
//! Between the two no other packet of TCP runs on this CPU, so the movement belongs
//! to this packet (bottom halves are off from before `tcp_conn_request` until after
//! it; net/ipv4/tcp_input.c, `tcp_rcv_state_process`).
//!
//! PREEMPT_RT is different from 6.18 on (without PREEMPT_RT_NEEDS_BH_LOCK): there a task with
//! bottom halves off may be taken off its CPU, and another one that has them off put there. So
//! frames are kept by task, and what other tasks move meanwhile is taken out: when a task with
//! an open frame leaves its CPU the counters are read (`pause`), and when it comes back `before`
//! moves on by what they did since (`resume`). It comes back to the same CPU, as bottom halves
//! off keep a task from migrating there (kernel/softirq.c, `__local_bh_disable_ip`). Hence after
//! less before is what the task itself moved, however tasks take turns. Counters are moved by
//! softirqs and by tasks with bottom halves off, and neither runs in a hard interrupt.
//!
//! A program that fentry runs may itself be interrupted so. It reads the counters again if it
//! was (`steady`). If another task then runs the same program on this CPU, the kernel skips that
//! run and counts it, which is reported as missed.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use queue_trace_common::{
    counter::{self, ALL, Moved},
    field,
    settings::Address,
};

use crate::{
    read::{
        counters::{self, Movement},
        memory::{self, Pointer},
    },
    state::{
        config,
        maps::{FRAMES, IF_MISSING},
        tally::{self, Here},
        types::{Call, Counters, Frame, Request, saw},
    },
};

const NO_ADDRESS: Address = [0; 16];
const NO_COUNTERS: Counters = [0; counter::COUNT];

static NO_FRAME: Frame = Frame {
    call: Call::None as u32,
    verdict: 0,
    saw: 0,
    hook: 0,
    sk: 0,
    skb: 0,
    request: 0,
    net: 0,
    counters: 0,
    before: NO_COUNTERS,
    after: NO_COUNTERS,
    of: Request {
        local: NO_ADDRESS,
        client: NO_ADDRESS,
        client_port: 0,
        retransmits: 0,
        _pad: [0; 5],
    },
    paused: NO_COUNTERS,
    pauses: 0,
    sole: 0,
    sole_paused: 0,
    sole_after: 0,
};

/// What to add to a per-CPU address to reach this CPU's copy.
#[inline(always)]
pub fn cpu_offset(here: Here) -> u64 {
    let own = here.own();
    // SAFETY: this CPU's copy, and a whole word, which every program would set to the same.
    unsafe {
        if (*own).offset == 0 {
            (*own).offset = memory::per_cpu_offset();
        }
        (*own).offset
    }
}

/// The frame of the packet in hand, open or not.
#[inline(always)]
pub fn current(here: Here) -> Option<&'static mut Frame> {
    if config::softirqs_mix() {
        // SAFETY: a task runs one program at a time, and others touch its frame only while it
        // does not run.
        return FRAMES
            .get_ptr_mut(task())
            .map(|frame| unsafe { &mut *frame });
    }
    // SAFETY: this CPU's copy. Frames are of functions that run with bottom halves off, so no
    // other program that uses it runs on this CPU before this one ends.
    Some(unsafe { &mut (*here.own()).frame })
}

/// The frame for the packet that comes now.
#[inline(always)]
fn vacant(here: Here) -> Option<&'static mut Frame> {
    let frame = current(here);
    if frame.is_some() {
        return frame;
    }
    // If there is no room, nothing is found below.
    let _ = FRAMES.insert(task(), &NO_FRAME, IF_MISSING);
    current(here)
}

#[inline(always)]
fn task() -> u64 {
    // SAFETY: a plain helper without arguments.
    unsafe { bpf_get_current_task() }
}

/// Passes an outcome and the counters that moved with it through a map, after which the
/// verifier knows no more of them than that they are numbers: otherwise it would follow all
/// that comes after once for each outcome. They stay there, the outcome in the lowest byte and the
/// counters in the next.
#[inline(always)]
pub fn forget_range(place: &mut u32, outcome: u8, moved: Moved) -> (u8, Moved) {
    *place = u32::from(outcome) | u32::from(moved) << 8;
    // SAFETY: a reference is good to read from.
    let verdict = unsafe { core::ptr::read_volatile(place) };
    (verdict as u8, (verdict >> 8) as Moved)
}

/// Opens a frame for a packet that passed the filter. The IPv6 functions hand IPv4 packets to the
/// IPv4 ones, which then run nested: the outer call is the one that counts.
#[inline(always)]
pub fn open<const WHICH: Moved>(
    call: Call,
    hook: usize,
    sk: impl Pointer,
    skb: u64,
    request: u64,
) -> Option<&'static mut Frame> {
    let here = Here::find()?;
    let Some(frame) = vacant(here) else {
        tally::lost(|loss| &mut loss.unpaired);
        return None;
    };
    if frame.call != Call::None as u32 {
        if skb != 0 && frame.skb == skb && frame.hook != hook as u32 {
            return None;
        }
        shut(frame);
    }
    let net = sk.follow::<{ field::SK_NET }>();
    let address = counters::of(net, cpu_offset(here));
    frame.counters = address;
    frame.saw = 0;
    frame.sk = sk.address();
    frame.skb = skb;
    frame.request = request;
    frame.net = net.address();
    frame.hook = hook as u32;
    let begun = if config::softirqs_mix() {
        // Open before the counters are read, so that a pause is noticed.
        set_call(frame, call);
        steady(frame, move |frame| {
            counters::read::<WHICH>(&mut frame.before, address)
        })
    } else {
        counters::read::<WHICH>(&mut frame.before, address)
    };
    set_call(frame, if begun { call } else { Call::None });
    begun.then_some(frame)
}

/// Forgets the frame: the packet in hand is filtered out.
#[inline(always)]
pub fn skip() {
    if let Some(frame) = Here::find().and_then(current) {
        shut(frame);
    }
}

/// Makes sure that no frame is open. One that still is has lost its exit, and its verdict.
#[inline(always)]
fn shut(frame: &mut Frame) {
    if frame.call != Call::None as u32 {
        tally::lost(|loss| &mut loss.unpaired);
        set_call(frame, Call::None);
    }
}

/// Where softirqs mix this is what a pause looks at, so it is written where it stands.
#[inline(always)]
fn set_call(frame: &mut Frame, call: Call) {
    // SAFETY: a reference is good to write to.
    unsafe { core::ptr::write_volatile(&raw mut frame.call, call as u32) };
}

/// Closes the frame that `hook` opened for `call` and gives it with the counters that
/// moved. `WHICH`: the call's counters, as a parameter that cannot but be a constant: which to read
/// would else be asked of each. `ALONE`: see [`Call::alone`]. `hook` none: whichever opened it, as
/// what one of them calls last of all is another. `skb` 0: not known at this exit.
#[inline(always)]
pub fn close<const WHICH: Moved, const ALONE: Moved>(
    here: Here,
    call: Call,
    hook: Option<usize>,
    skb: u64,
) -> Option<(&'static mut Frame, Moved)> {
    let frame = current(here)?;
    if frame.call != call as u32 || hook.is_some_and(|hook| frame.hook != hook as u32) {
        return None;
    }
    if skb != 0 && frame.skb != skb {
        shut(frame);
        return None;
    }
    let movement = if config::softirqs_mix() {
        let ended = steady(frame, move |frame| {
            set_call(frame, call);
            let ok = counters::read::<WHICH>(&mut frame.after, frame.counters);
            if frame.saw & saw::WATCHES != 0 {
                frame.sole_after = sole_now(frame);
            }
            // From here on a pause leaves `before` alone.
            set_call(frame, Call::None);
            ok
        });
        if !ended {
            return None;
        }
        Movement::between::<WHICH>(&frame.before, &frame.after)
    } else {
        set_call(frame, Call::None);
        Movement::since::<WHICH, ALONE>(&frame.before, frame.counters, &mut frame.after)?
    };
    if movement.more_than_once {
        tally::lost(|loss| &mut loss.ambiguous);
    }
    Some((frame, movement.moved))
}

/// Watches the counter of [`SOLE`](counter::SOLE) that packets of the frame's call may move, until
/// the frame is closed: `WHICH`.
#[inline(always)]
pub fn watch<const WHICH: usize>(frame: &mut Frame) {
    let read = move |frame: &mut Frame| {
        let now = counters::sole::<WHICH>(frame.counters);
        frame.sole = now.unwrap_or(0);
        now.is_some()
    };
    // Before it is read, so that a pause is noticed.
    frame.saw |= saw::WATCHES;
    let begun = if config::softirqs_mix() {
        steady(frame, read)
    } else {
        read(frame)
    };
    if !begun {
        frame.saw &= !saw::WATCHES;
    }
}

/// Whether the counter that a frame watched moved. The frame was closed.
#[inline(always)]
pub fn watched_moved<const WHICH: usize>(frame: &Frame) -> bool {
    if frame.saw & saw::WATCHES == 0 {
        return false;
    }
    let now = if config::softirqs_mix() {
        Some(frame.sole_after)
    } else {
        counters::sole::<WHICH>(frame.counters)
    };
    now.is_some_and(|now| now != frame.sole)
}

/// Reads counters until the task was not paused meanwhile.
#[inline(always)]
fn steady(frame: &mut Frame, mut read: impl FnMut(&mut Frame) -> bool) -> bool {
    const TRIES: u32 = 3;
    let mut tries = 0;
    while tries < TRIES {
        // SAFETY: a reference is good to read from.
        let pauses = unsafe { core::ptr::read_volatile(&raw const frame.pauses) };
        if !read(frame) {
            return false;
        }
        // SAFETY: as above.
        if unsafe { core::ptr::read_volatile(&raw const frame.pauses) } == pauses {
            return true;
        }
        tries += 1;
    }
    set_call(frame, Call::None);
    tally::lost(|loss| &mut loss.interleaved);
    false
}

/// Notes a nested function in the open frame, if there is one. What is to be noted is asked only
/// then.
#[inline(always)]
pub fn note(what: impl FnOnce() -> u32) {
    if let Some(frame) = opened() {
        frame.saw |= what();
    }
}

/// The open frame, if there is one.
#[inline(always)]
pub fn opened() -> Option<&'static mut Frame> {
    Here::find()
        .and_then(current)
        .filter(|frame| frame.call != Call::None as u32)
}

/// Where softirqs mix: a task with an open frame is taken off its CPU.
#[inline(always)]
pub fn pause(task: u64) {
    if let Some(frame) = open_of(task) {
        let _ = counters::read::<ALL>(&mut frame.paused, frame.counters);
        if frame.saw & saw::WATCHES != 0 {
            frame.sole_paused = sole_now(frame);
        }
    }
}

/// It is put there again: what others moved meanwhile is not of its packet.
#[inline(always)]
pub fn resume(task: u64) {
    let Some(frame) = open_of(task) else { return };
    if !counters::read::<ALL>(&mut frame.after, frame.counters) {
        return;
    }
    for index in 0..counter::COUNT {
        let by_others = frame.after[index].wrapping_sub(frame.paused[index]);
        frame.before[index] = frame.before[index].wrapping_add(by_others);
    }
    if frame.saw & saw::WATCHES != 0 {
        let by_others = sole_now(frame).wrapping_sub(frame.sole_paused);
        frame.sole = frame.sole.wrapping_add(by_others);
    }
    frame.pauses += 1;
}

/// The counter that an open frame watches.
#[inline(always)]
fn sole_now(frame: &Frame) -> u64 {
    let now = if frame.call == Call::Ack as u32 {
        counters::sole::<{ counter::DEFERRED }>(frame.counters)
    } else {
        counters::sole::<{ counter::FAST_OPEN_FULL }>(frame.counters)
    };
    now.unwrap_or(0)
}

#[inline(always)]
fn open_of(task: u64) -> Option<&'static mut Frame> {
    // SAFETY: as in `current`: the task does not run.
    let frame = unsafe { &mut *FRAMES.get_ptr_mut(task)? };
    (frame.call != Call::None as u32).then_some(frame)
}
