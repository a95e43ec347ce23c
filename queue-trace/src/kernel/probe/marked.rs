//! What each CPU keeps of listeners at the places of their addresses.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use aya::Ebpf;
use bytemuck::{Zeroable, bytes_of_mut, cast_slice_mut};
use queue_trace_common::queue::{Marked, MarkedPlace, Marks, QueueKey, WRITING};

use crate::kernel::probe::mapped::Mapped;

/// The places of all CPUs.
pub(super) struct MarkedPlaces {
    memory: Mapped,
}

/// The word that has the listener's address, which comes first.
const OWNER: usize = 0;

const _: () = assert!(std::mem::offset_of!(MarkedPlace, key.sk) == 0);

impl MarkedPlaces {
    pub(super) fn of(ebpf: &mut Ebpf, cpus: usize) -> Result<Self> {
        let memory = Mapped::of::<Marked>(ebpf, "MARKED", cpus)?;
        Ok(Self { memory })
    }

    /// Those that are in use; a listener may have one on each CPU.
    pub(super) fn each(&self) -> impl Iterator<Item = (QueueKey, Marks)> {
        let read = self.places().filter_map(read);
        read.map(|place| (place.key, place.marks))
    }

    /// Gives back the places of listeners that are gone: nobody may come any more who marks them.
    pub(super) fn forget(&self, is_gone: impl Fn(&QueueKey) -> bool) {
        let gone = |words: &&[AtomicU64]| read(words).is_some_and(|place| is_gone(&place.key));
        for words in self.places().filter(gone) {
            // Whoever takes it counts on zeros.
            for word in &words[OWNER + 1..] {
                word.store(0, Ordering::Relaxed);
            }
            words[OWNER].store(0, Ordering::Release);
        }
    }

    fn places(&self) -> impl Iterator<Item = &[AtomicU64]> {
        let words = size_of::<MarkedPlace>() / size_of::<AtomicU64>();
        self.memory.words().chunks_exact(words)
    }
}

/// What is at a place that is in use.
fn read(words: &[AtomicU64]) -> Option<MarkedPlace> {
    let owner = words[OWNER].load(Ordering::Acquire);
    if owner == 0 || owner & WRITING != 0 {
        return None;
    }
    let mut place = MarkedPlace::zeroed();
    let copy: &mut [u64] = cast_slice_mut(bytes_of_mut(&mut place));
    for (copy, word) in copy.iter_mut().zip(words) {
        *copy = word.load(Ordering::Relaxed);
    }
    Some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back_as_zeros() {
        let places = MarkedPlaces {
            memory: Mapped::of_nothing::<Marked>(2),
        };
        let set = |index: usize, sk: u64, entered: u64| {
            let words = places.places().nth(index).unwrap();
            let word = std::mem::offset_of!(MarkedPlace, marks.entered) / 8;
            words[word].store(entered, Ordering::Relaxed);
            words[OWNER].store(sk, Ordering::Relaxed);
        };
        set(0, 0x1000, 5);
        set(1, 0x2000 | WRITING, 0);
        set(40, 0x1000, 7);
        set(41, 0x3000, 9);
        let marks = || -> Vec<_> {
            let each = places.each();
            each.map(|(key, marks)| (key.sk, marks.entered)).collect()
        };
        assert_eq!(marks(), [(0x1000, 5), (0x1000, 7), (0x3000, 9)]);
        places.forget(|key| key.sk == 0x1000);
        assert_eq!(marks(), [(0x3000, 9)]);
        let zeros = |words: &[AtomicU64]| words.iter().all(|w| w.load(Ordering::Relaxed) == 0);
        assert!(
            [0, 40]
                .into_iter()
                .all(|index| zeros(places.places().nth(index).unwrap()))
        );
        assert!(!zeros(places.places().nth(41).unwrap()));
    }
}
