//! Whether sockets began or ended listening, anywhere: while none did, a listener that was looked at
//! is the same under the same address. A socket that takes the address of one that is gone begins
//! to listen before anything comes to it.

use super::tally;

/// No moment.
pub const NEVER: u64 = 0;

/// How often one did.
static mut CHANGES: u64 = 0;

/// A number that is another one after each change, and never [`NEVER`].
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a whole word.
    unsafe { (&raw const CHANGES).read_volatile() + 1 }
}

/// A socket begins to listen, or ends. Before it does.
#[inline(always)]
pub fn changes() {
    let changes = &raw mut CHANGES;
    // SAFETY: only added to, by one instruction.
    tally::add(unsafe { &mut *changes }, 1);
}
