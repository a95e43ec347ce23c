//! Each CPU's memory: its tally, which user space reads without a system call (counts, what was
//! lost, notes that something changed), and what its programs remember.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use queue_trace_common::{
    loss::Loss,
    settings::{SLOTS, Slot, Tally},
};

use super::{maps::TALLIES, types::Own};

/// This CPU's memory.
#[derive(Clone, Copy)]
pub struct Here(*mut Tally);

impl Here {
    /// Finds it. Every CPU has some.
    #[inline(always)]
    pub fn find() -> Option<Self> {
        // SAFETY: a plain helper without arguments.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        TALLIES.get_ptr_mut(cpu).map(|tally| Self(is_there(tally)))
    }

    /// One of the slots.
    #[inline(always)]
    pub fn slot(self, index: usize) -> &'static mut Slot {
        // SAFETY: only this CPU writes it, with bottom halves off, where nothing comes between,
        // except where user space gives it back. No other member is borrowed.
        unsafe { &mut (*self.0).slots[index % SLOTS] }
    }

    /// What was lost.
    #[inline(always)]
    fn loss(self) -> &'static mut Loss {
        // SAFETY: only this CPU writes it, by `add`. No other member is borrowed.
        unsafe { &mut (*self.0).loss }
    }

    /// What only the kernel side sees.
    #[inline(always)]
    pub fn own(self) -> *mut Own {
        // SAFETY: in the entry that was found, which has room for it.
        unsafe { (&raw mut (*self.0).own).cast() }
    }
}

/// The address of what was found: the compiler must not add to it before that is known, which the
/// verifier refuses.
#[inline(always)]
fn is_there(found: *mut Tally) -> *mut Tally {
    #[cfg(target_arch = "bpf")]
    {
        let mut found = found;
        // SAFETY: does nothing.
        unsafe {
            core::arch::asm!("{found} = {found}", found = inout(reg) found, options(nomem, nostack))
        };
        found
    }
    // To be linted, not to be run.
    #[cfg(not(target_arch = "bpf"))]
    found
}

/// Adds one to a loss counter.
#[inline(always)]
pub fn lost(which: impl FnOnce(&mut Loss) -> &mut u64) {
    lost_many(1, which);
}

/// Adds to a loss counter.
#[inline(always)]
pub fn lost_many(many: u64, which: impl FnOnce(&mut Loss) -> &mut u64) {
    if let Some(here) = Here::find() {
        add(which(here.loss()), many);
    }
}

/// Notes that the map of counts has to be read again. After the count, so that whoever sees
/// the note finds it.
#[inline(always)]
pub fn counts_changed() {
    if let Some(here) = Here::find() {
        // SAFETY: only this CPU writes it, by `add`. No other member is borrowed.
        add(unsafe { &mut (*here.0).counted }, 1);
    }
}

/// Notes that the listeners are not those that they were.
#[inline(always)]
pub fn listeners_changed() {
    if let Some(here) = Here::find() {
        // SAFETY: as in `counts_changed`.
        add(unsafe { &mut (*here.0).listeners }, 1);
    }
}

/// Notes that something went into a table of queues, which have to be searched from now on.
#[inline(always)]
pub fn spilled() {
    if let Some(here) = Here::find() {
        // SAFETY: as in `counts_changed`.
        add(unsafe { &mut (*here.0).spilled }, 1);
    }
}

/// Notes that an entry went into the table of queues that all CPUs share, after it did.
#[inline(always)]
pub fn queues_more() {
    if let Some(here) = Here::find() {
        // SAFETY: as in `counts_changed`.
        add(unsafe { &mut (*here.0).queues }, 1);
    }
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
