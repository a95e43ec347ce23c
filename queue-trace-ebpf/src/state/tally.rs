//! Each CPU's tally: what was lost, and notes that something changed, which user space reads
//! without a system call.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use queue_trace_common::{loss::Loss, settings::Tally};

use super::maps::TALLIES;

/// Adds one to a loss counter.
#[inline(always)]
pub fn lost(which: impl FnOnce(&mut Loss) -> &mut u64) {
    lost_many(1, which);
}

/// Adds to a loss counter.
#[inline(always)]
pub fn lost_many(many: u64, which: impl FnOnce(&mut Loss) -> &mut u64) {
    if let Some(tally) = of_this_cpu() {
        add(which(&mut tally.loss), many);
    }
}

/// Notes that the map of counts has to be read again. After the count, so that whoever sees
/// the note finds it.
#[inline(always)]
pub fn counts_changed() {
    if let Some(tally) = of_this_cpu() {
        add(&mut tally.counted, 1);
    }
}

/// Notes that the listeners are not those that they were.
#[inline(always)]
pub fn listeners_changed() {
    if let Some(tally) = of_this_cpu() {
        add(&mut tally.listeners, 1);
    }
}

/// This CPU's tally.
#[inline(always)]
pub fn of_this_cpu() -> Option<&'static mut Tally> {
    // SAFETY: a plain helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    // SAFETY: only this CPU writes its entry, except for slots that user space gives back. Slots
    // are written with bottom halves off, where nothing comes between; the other words by `add`.
    TALLIES.get_ptr_mut(cpu).map(|tally| unsafe { &mut *tally })
}

/// Adds to a word in one instruction: what an application does is interrupted by packets, which
/// may add to the same word.
#[inline(always)]
pub fn add(word: &mut u64, more: u64) {
    // SAFETY: a reference is good to read from and write to.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!("lock *(u64 *)({word} + 0) += {more}", word = in(reg) &raw mut *word, more = in(reg) more);
    }
    // To be linted, not to be run.
    #[cfg(not(target_arch = "bpf"))]
    {
        *word += more;
    }
}
