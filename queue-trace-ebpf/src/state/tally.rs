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
        *which(&mut tally.loss) += many;
    }
}

/// Notes that the map of counts has to be read again. After the count, so that whoever sees
/// the note finds it.
#[inline(always)]
pub fn counts_changed() {
    if let Some(tally) = of_this_cpu() {
        tally.counted += 1;
    }
}

/// Notes that the listeners are not those that they were.
#[inline(always)]
pub fn listeners_changed() {
    if let Some(tally) = of_this_cpu() {
        tally.listeners += 1;
    }
}

/// This CPU's tally.
#[inline(always)]
pub fn of_this_cpu() -> Option<&'static mut Tally> {
    // SAFETY: a plain helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    // SAFETY: only this CPU writes its entry, and user space only reads. Slots are written in
    // softirq, where nothing comes between; of the other words a program that is interrupted
    // by another one may lose an increment of that one, which no count rests on.
    TALLIES.get_ptr_mut(cpu).map(|tally| unsafe { &mut *tally })
}
