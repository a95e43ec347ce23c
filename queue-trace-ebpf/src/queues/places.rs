//! Where a connection in an accept queue is noted: at a place that its address gives, which takes a
//! few instructions where a table that is searched takes hundreds. Where another connection has
//! that place, or the kernel has no exchange, in that table.
//!
//! Connections enter on any CPU, so a place is taken by an exchange: its owner is first written with
//! a bit that says that the rest is not there yet. Whoever takes the connection out is alone, and
//! gives the place back by a store.

use queue_trace_common::queue::{Entered, PLACES_BITS, Place, WRITING};

use crate::state::{
    config,
    exchange::exchange,
    maps::{PLACES, WAITING},
    tally,
};

/// Notes a connection. Whether there was room.
#[inline(always)]
pub fn put(child: u64, entered: &Entered) -> bool {
    if let Some(place) = of(child)
        && take(place, child)
    {
        // SAFETY: a whole entry of the map, which is ours as long as its owner says so.
        unsafe {
            (&raw mut (*place).entered.listener.sk).write_volatile(entered.listener.sk);
            (&raw mut (*place).entered.listener.inode).write_volatile(entered.listener.inode);
            (&raw mut (*place).entered.at_ns).write_volatile(entered.at_ns);
        }
        exchange(owner(place), child | WRITING, child);
        return true;
    }
    let is_there = WAITING.insert(child, entered, 0).is_ok();
    if is_there {
        tally::spilled();
    }
    is_there
}

/// Forgets a connection, and gives what was noted of it, if anything was.
#[inline(always)]
pub fn remove(child: u64) -> Option<Entered> {
    if let Some(place) = of(child)
        && has(place) == child
    {
        // SAFETY: a whole entry of the map. Nobody else writes that of a connection that leaves.
        let entered = unsafe { (*place).entered };
        // SAFETY: as above.
        unsafe { owner(place).write_volatile(0) };
        return Some(entered);
    }
    // SAFETY: copied out at once; nobody else writes the entry of a connection that leaves.
    let entered = (unsafe { WAITING.get(child) }).copied()?;
    let _ = WAITING.remove(child);
    Some(entered)
}

/// The place of a connection, where places can be taken.
#[inline(always)]
fn of(child: u64) -> Option<*mut Place> {
    if !config::exchanges() {
        return None;
    }
    // Sockets are some KiB apart: all bits of the address take part.
    let hash = child.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    PLACES.get_ptr_mut((hash >> (64 - PLACES_BITS)) as u32)
}

#[inline(always)]
fn owner(place: *mut Place) -> *mut u64 {
    // SAFETY: an address in an entry of the map.
    unsafe { &raw mut (*place).child }
}

#[inline(always)]
fn has(place: *mut Place) -> u64 {
    // SAFETY: a whole word of an entry of the map.
    unsafe { owner(place).read_volatile() }
}

/// Takes a place that is free, or is of an earlier socket at the same address, whose end was not
/// seen.
#[inline(always)]
fn take(place: *mut Place, child: u64) -> bool {
    let before = has(place);
    (before == 0 || before == child) && exchange(owner(place), before, child | WRITING) == before
}
