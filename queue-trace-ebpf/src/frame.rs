//! The frame of the packet in hand: what this CPU's counters did between the entry of a kernel function
//! and its return, and which nested functions were called meanwhile.
//!
//! Between the two no other packet of TCP runs on this CPU, so the movement belongs
//! to this packet (bottom halves are off from before `tcp_conn_request` until after
//! it; net/ipv4/tcp_input.c, `tcp_rcv_state_process`).

use queue_trace_common::{counter::Moved, field};

use crate::{
    read::{
        counters::{self, Movement},
        memory::{self, Pointer},
    },
    state::{
        maps::CPU,
        tally,
        types::{Call, Cpu, Frame},
    },
};

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

/// Passes an outcome and the counters that moved with it through a map, after which the
/// verifier knows no more of them than that they are numbers: otherwise it would follow all
/// that comes after once for each outcome.
#[inline(always)]
pub fn forget_range(place: &mut u32, outcome: u8, moved: Moved) -> (u8, Moved) {
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
    let address = counters::of(net, cpu.offset, &mut frame.counters);
    if counters::read(&mut frame.before, address, call.counters()) {
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
        tally::lost(|loss| &mut loss.unpaired);
        return None;
    }
    if !counters::read(&mut frame.after, frame.counters, call.counters()) {
        return None;
    }
    let movement = Movement::between(&frame.before, &frame.after, call.counters());
    if movement.more_than_once {
        // Kernels whose softirqs can be preempted by another on the same CPU.
        tally::lost(|loss| &mut loss.ambiguous);
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
