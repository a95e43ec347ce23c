//! The kernel's counters of a namespace on this CPU, and what they did between two readings.

use core::hint::black_box;

use queue_trace_common::{
    counter::{self, GROUPS, Moved},
    field,
    settings::typed,
};

use super::memory::{self, Pointer, Status, Typed};
use crate::state::{config, types::Counters};

/// The address of this CPU's counters of a namespace; `place` is in a map, in which what
/// was a pointer to the verifier becomes a number.
#[inline(always)]
pub fn of(net: impl Pointer, cpu_offset: u64, place: &mut u64) -> u64 {
    *place = net.follow::<{ field::NET_COUNTERS }>().address();
    // SAFETY: a reference is good to read from.
    let shared = unsafe { core::ptr::read_volatile(place) };
    *place = shared.wrapping_add(cpu_offset);
    *place
}

/// Reads counters into a place: those asked for, or all.
#[inline(always)]
pub fn read(place: &mut Counters, counters: u64, which: Moved) -> bool {
    if let Some(counters) = Typed::cast(counters, typed::COUNTERS) {
        let mut index = 0;
        while index < counter::COUNT {
            if which >> index & 1 != 0 {
                place[index] = counters.counter(index);
            }
            index += 1;
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

/// Reads one of [`SOLE`](counter::SOLE).
#[inline(always)]
pub fn sole(counters: u64, which: usize) -> Option<u64> {
    match Typed::cast(counters, typed::COUNTERS) {
        Some(counters) => Some(counters.counter(counter::COUNT + which)),
        None => memory::read(counters + 8 * config::sole_place(which)),
    }
}

#[inline(always)]
fn fetch_group<const LENGTH: usize>(run: &mut [u64], counters: u64, group: usize) -> Status {
    // The lengths are the groups' own, so there is always such a run.
    run.first_chunk_mut::<LENGTH>()
        .map_or(Status::FAILED, |run| {
            memory::fetch(run, counters + 8 * config::counter_place(group))
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
