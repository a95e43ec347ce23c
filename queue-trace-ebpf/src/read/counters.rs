//! The kernel's counters of a namespace on this CPU, and what they did between two readings.

use core::hint::black_box;

use queue_trace_common::{
    counter::{self, GROUPS, Moved, OVERFLOW},
    field,
    settings::typed,
};

use super::memory::{self, Pointer, Status, Typed};
use crate::state::{config, types::Counters};

/// The address of this CPU's counters of a namespace.
#[inline(always)]
pub fn of(net: impl Pointer, cpu_offset: u64) -> u64 {
    let shared = net.follow::<{ field::NET_COUNTERS }>().address();
    memory::plain(shared).wrapping_add(cpu_offset)
}

/// Reads counters into a place: those asked for, or all.
#[inline(always)]
pub fn read<const WHICH: Moved>(place: &mut Counters, counters: u64) -> bool {
    if let Some(counters) = Typed::cast::<{ typed::COUNTERS }>(counters) {
        let mut index = 0;
        while index < counter::COUNT {
            if WHICH >> index & 1 != 0 {
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
pub fn sole<const WHICH: usize>(counters: u64) -> Option<u64> {
    match Typed::cast::<{ typed::COUNTERS }>(counters) {
        Some(counters) => Some(counters.counter(counter::COUNT + WHICH)),
        None => memory::read(counters + 8 * config::sole_place(WHICH)),
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
    /// Since an earlier reading, of the counters asked for. Those that are `ALONE` do not move where
    /// `OVERFLOW` does, and are not asked then. `after` has the values now only where they cannot be
    /// loaded, or one moved by more than one.
    #[inline(always)]
    pub fn since<const WHICH: Moved, const ALONE: Moved>(
        before: &Counters,
        counters: u64,
        after: &mut Counters,
    ) -> Option<Self> {
        let Some(now) = Typed::cast::<{ typed::COUNTERS }>(counters) else {
            let ok = read::<WHICH>(after, counters);
            return ok.then(|| Self::between::<WHICH>(before, after));
        };
        let mut steps = Steps::default();
        steps.add::<WHICH, ALONE>(before, |index| now.counter(index));
        if steps.moved & u64::from(OVERFLOW) == 0 {
            steps.add::<ALONE, 0>(before, |index| now.counter(index));
        }
        if steps.more_than_once() {
            let _ = read::<WHICH>(after, counters);
        }
        Some(steps.movement::<WHICH>(before, after))
    }

    /// Between two readings, of the counters asked for.
    #[inline(always)]
    pub fn between<const WHICH: Moved>(before: &Counters, after: &Counters) -> Self {
        let mut steps = Steps::default();
        steps.add::<WHICH, 0>(before, |index| after[index]);
        steps.movement::<WHICH>(before, after)
    }
}

/// By how much counters moved.
#[derive(Default)]
struct Steps {
    /// A bit for each, if none moved by more than one.
    moved: u64,
    /// The bits of all their steps.
    all: u64,
}

impl Steps {
    /// Takes in some but for others. Without a branch for each: the verifier would follow both ways
    /// of each, and multiply them.
    #[inline(always)]
    fn add<const SOME: Moved, const OTHERS: Moved>(
        &mut self,
        before: &Counters,
        now: impl Fn(usize) -> u64,
    ) {
        let mut index = 0;
        while index < counter::COUNT {
            if (SOME & !OTHERS) >> index & 1 != 0 {
                let by = now(index).wrapping_sub(before[index]);
                self.moved |= by << index;
                self.all |= by;
            }
            index += 1;
        }
    }

    /// A packet moves a counter by one or not at all.
    #[inline(always)]
    fn more_than_once(&self) -> bool {
        self.all > 1
    }

    #[inline(always)]
    fn movement<const WHICH: Moved>(self, before: &Counters, after: &Counters) -> Movement {
        let more_than_once = self.more_than_once();
        let moved = if more_than_once {
            not_zero(before, after) & u64::from(WHICH)
        } else {
            self.moved
        };
        Movement {
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
