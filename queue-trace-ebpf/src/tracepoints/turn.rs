//! The two programs of a tracepoint: the kernel does not let a program interrupt itself, so the
//! second one does what the first was kept from.

use crate::state::maps::LATEST;

/// Which of the two programs of a tracepoint it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The one that is attached first.
    First,
    /// The other.
    Second,
}

// Places in `LATEST`.
pub const CONSUME: u32 = 0;
pub const KFREE: u32 = 1;
pub const STATE: u32 = 2;
pub const REASON: u32 = 3;

/// Whether the first program of the tracepoint had this event, which the second need not
/// look at then. It may look at one in vain, where an interrupt came between the two: no
/// program does harm when it sees an event again.
#[inline(always)]
pub fn is_done(turn: Turn, tracepoint: u32, event: u64) -> bool {
    let Some(latest) = LATEST.get_ptr_mut(tracepoint) else {
        return false;
    };
    match turn {
        Turn::First => {
            // SAFETY: this CPU's copy, written as a whole word.
            unsafe { latest.write_volatile(event) };
            false
        }
        // SAFETY: as above.
        Turn::Second => unsafe { latest.read_volatile() == event },
    }
}

/// The same for events that may come again with the same number, of which others do not come in
/// between: what the first program noted is taken away. Packets are freed with bottom halves off,
/// so nothing of the kind comes between the two programs; a state may be set by an application, and
/// packets that come then set those of other sockets.
#[inline(always)]
pub fn was_taken(turn: Turn, tracepoint: u32, event: u64) -> bool {
    let done = is_done(turn, tracepoint, event);
    if done && let Some(latest) = LATEST.get_ptr_mut(tracepoint) {
        // SAFETY: as above.
        unsafe { latest.write_volatile(0) };
    }
    done
}
