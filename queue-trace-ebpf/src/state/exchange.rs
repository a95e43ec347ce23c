//! Exchanges: a word is written if it is as expected. The loader makes them where the kernel has them
//! (see [`config::exchanges`](super::config::exchanges)).

/// Writes a word if it is as expected, and gives what it was. All that was written before is seen
/// before it.
#[inline(always)]
pub fn exchange(word: *mut u64, expected: u64, new: u64) -> u64 {
    // SAFETY: callers give a word of an entry of a map. The loader makes the addition an exchange
    // wherever this is run.
    #[cfg(target_arch = "bpf")]
    unsafe {
        let found: u64;
        core::arch::asm!(
            "lock *(u64 *)({word} + {mark}) += {new}",
            word = in(reg) word,
            new = in(reg) new,
            mark = const queue_trace_common::settings::mark::EXCHANGE,
            inout("r0") expected => found,
            options(nostack),
        );
        found
    }
    // To be linted, not to be run.
    #[cfg(not(target_arch = "bpf"))]
    {
        word as u64 + expected + new
    }
}
