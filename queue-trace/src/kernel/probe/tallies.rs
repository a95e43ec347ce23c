//! What the kernel side tells in memory that is mapped here, while the kernel writes it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;
use aya::Ebpf;
use bytemuck::{Zeroable, bytes_of_mut, cast_slice_mut};
use queue_trace_common::{
    loss::Loss,
    settings::{CountKey, Counted, SLOTS, Slot, Tally},
};

use crate::kernel::probe::mapped::Mapped;

/// The tallies of all CPUs.
pub(super) struct Tallies {
    memory: Mapped,
}

/// Where a slot is: which CPU's, and which one of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotPlace {
    cpu: usize,
    index: usize,
}

const NAME: &str = "TALLIES";

/// Words of a tally, and of a slot of it.
const TALLY: usize = size_of::<Tally>() / size_of::<AtomicU64>();
const SLOT: usize = size_of::<Slot>() / size_of::<AtomicU64>();

/// The word of a tally that has a member.
macro_rules! word {
    ($($member:tt)+) => {
        std::mem::offset_of!(Tally, $($member)+) / size_of::<AtomicU64>()
    };
}

/// The word of a slot that has its namespace's number, which is 0 while it is free.
const OWNER: usize = (std::mem::offset_of!(Slot, key) + std::mem::offset_of!(CountKey, netns))
    / size_of::<AtomicU64>();

/// Whether another CPU's writes are seen here in the order in which it made them. Elsewhere it
/// would have to ask for that, which a BPF program can do only from Linux 5.18 on.
const SEEN_IN_ORDER: bool = cfg!(target_arch = "x86_64");

/// Within so long at the latest a CPU's writes are seen by all others, whatever their order: it
/// holds them back for as long as it takes to reach memory, which is far below a microsecond.
const SEEN_WITHIN: Duration = Duration::from_micros(50);

const _: () = assert!(std::mem::offset_of!(Tally, slots) == 0);
const _: () = assert!(std::mem::offset_of!(CountKey, netns).is_multiple_of(8));

impl Tallies {
    pub(super) fn of(ebpf: &mut Ebpf, cpus: usize) -> Result<Self> {
        let memory = Mapped::of::<Tally>(ebpf, NAME, cpus)?;
        Ok(Self { memory })
    }

    fn words(&self) -> &[AtomicU64] {
        self.memory.words()
    }

    /// Each CPU's.
    fn each(&self) -> impl Iterator<Item = &[AtomicU64]> {
        self.words().chunks_exact(TALLY)
    }

    /// The sum of a word over all CPUs.
    fn sum(&self, word: usize) -> u64 {
        let words = self.each().map(|tally| tally[word].load(Ordering::Acquire));
        words.fold(0, u64::wrapping_add)
    }

    /// The slots that are in use, and where they are.
    pub(super) fn slots(&self) -> Vec<(SlotPlace, Slot)> {
        let cpus = self.each().enumerate();
        let places =
            cpus.flat_map(|(cpu, _)| (0..SLOTS).map(move |index| SlotPlace { cpu, index }));
        let read = places.map(|place| (place, self.read(place)));
        let mut slots: Vec<_> = read.filter(|(_, slot)| slot.counted.seen > 0).collect();
        if !SEEN_IN_ORDER && !slots.is_empty() {
            // A key may have been seen in part that is older than its count.
            thread::sleep(SEEN_WITHIN);
            for (place, slot) in &mut slots {
                slot.key = self.read(*place).key;
            }
        }
        slots
    }

    fn read(&self, place: SlotPlace) -> Slot {
        let mut slot = Slot::zeroed();
        let copy: &mut [u64] = cast_slice_mut(bytes_of_mut(&mut slot));
        for (copy, word) in copy.iter_mut().zip(self.slot(place)) {
            // In this order: see `Slot`.
            *copy = word.load(Ordering::Acquire);
        }
        slot
    }

    fn slot(&self, place: SlotPlace) -> &[AtomicU64] {
        let start = place.cpu * TALLY + place.index * SLOT;
        &self.words()[start..start + SLOT]
    }

    /// Sets the counts of a slot to zero. Nobody may come any more who adds to them.
    pub(super) fn empty(&self, place: SlotPlace) {
        for word in &self.slot(place)[..size_of::<Counted>() / size_of::<AtomicU64>()] {
            word.store(0, Ordering::Release);
        }
    }

    /// Gives a slot that was emptied to the next key that comes. One that was counted in since
    /// stays with its key: a namespace that nobody finds is taken for gone, and may not be.
    pub(super) fn give_back(&self, place: SlotPlace) {
        if self.read(place).counted.seen == 0 {
            self.slot(place)[OWNER].store(0, Ordering::Release);
        }
    }

    /// How often something was counted in the map of counts.
    pub(super) fn counted(&self) -> u64 {
        self.sum(word!(counted))
    }

    /// How often listeners were made or closed.
    pub(super) fn listeners(&self) -> u64 {
        self.sum(word!(listeners))
    }

    /// Whether something of queues is in a table.
    pub(super) fn has_spilled(&self) -> bool {
        self.sum(word!(spilled)) != 0
    }

    /// How often an entry went into the table of queues that all CPUs share.
    pub(super) fn queues(&self) -> u64 {
        self.sum(word!(queues))
    }

    /// The sum of all that is told here but what it tells of listeners. As long as nobody empties
    /// a slot it only grows; that it is the same means that nothing was counted.
    pub(super) fn activity(&self) -> u64 {
        let seen = std::mem::offset_of!(Slot, counted.seen) / size_of::<AtomicU64>();
        let mut sum = self.counted();
        for tally in self.each() {
            let slots = tally[..SLOTS * SLOT].chunks_exact(SLOT);
            let seen = slots.map(|slot| slot[seen].load(Ordering::Acquire));
            let loss = (0..size_of::<Loss>() / size_of::<AtomicU64>())
                .map(|index| tally[word!(loss) + index].load(Ordering::Acquire));
            sum = seen.chain(loss).fold(sum, u64::wrapping_add);
        }
        sum
    }

    /// What was lost so far.
    pub(super) fn loss(&self) -> Loss {
        let mut loss = Loss::zeroed();
        let words: &mut [u64] = cast_slice_mut(bytes_of_mut(&mut loss));
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.sum(word!(loss) + index);
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_counted_in_again_stays_with_its_key() {
        let tallies = Tallies {
            memory: Mapped::of_nothing::<Tally>(2),
        };
        let place = SlotPlace { cpu: 1, index: 7 };
        let count = |seen| tallies.slot(place)[0].store(seen, Ordering::Relaxed);
        let keys = || -> Vec<_> {
            let slots = tallies.slots().into_iter();
            slots
                .map(|(place, slot)| (place, slot.key.netns, slot.counted.seen))
                .collect()
        };
        tallies.slot(place)[OWNER].store(4711, Ordering::Relaxed);
        count(5);
        assert_eq!(keys(), [(place, 4711, 5)]);
        tallies.empty(place);
        assert_eq!(keys(), []);
        count(2);
        tallies.give_back(place);
        assert_eq!(keys(), [(place, 4711, 2)]);
        tallies.empty(place);
        tallies.give_back(place);
        count(1);
        assert_eq!(keys(), [(place, 0, 1)]);
    }
}
