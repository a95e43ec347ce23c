//! The connections in accept queues that the kernel side noted at the places of their addresses.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use aya::Ebpf;
use queue_trace_common::queue::{Entered, PLACES_BITS, Place, QueueKey, WRITING};

use crate::kernel::probe::mapped::Mapped;

/// The places.
pub(super) struct Places {
    memory: Mapped,
}

const COUNT: usize = 1 << PLACES_BITS;

/// The word of a place that has a member.
macro_rules! word {
    ($($member:tt)+) => {
        std::mem::offset_of!(Place, $($member)+) / size_of::<AtomicU64>()
    };
}

impl Places {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self> {
        let memory = Mapped::of::<Place>(ebpf, "PLACES", COUNT)?;
        Ok(Self { memory })
    }

    /// Those that are in use, each whole.
    pub(super) fn each(&self) -> impl Iterator<Item = Entered> {
        self.places().filter_map(read).map(|place| place.entered)
    }

    /// Gives back the places of connections whose end was not seen, as their listener is gone.
    pub(super) fn forget(&self, is_gone: impl Fn(&QueueKey) -> bool) {
        for words in self.places() {
            if let Some(place) = read(words)
                && is_gone(&place.entered.listener)
            {
                // Unless a connection of the same address has come.
                let _ = words[word!(child)].compare_exchange(
                    place.child,
                    0,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
            }
        }
    }

    fn places(&self) -> impl Iterator<Item = &[AtomicU64]> {
        let words = size_of::<Place>() / size_of::<AtomicU64>();
        self.memory.words().chunks_exact(words)
    }
}

/// What is at a place, if that is there whole and stayed there meanwhile.
fn read(words: &[AtomicU64]) -> Option<Place> {
    let load = |word: usize| words[word].load(Ordering::Acquire);
    let child = load(word!(child));
    if child == 0 || child & WRITING != 0 {
        return None;
    }
    let place = Place {
        child,
        entered: Entered {
            at_ns: load(word!(entered.at_ns)),
            listener: QueueKey {
                sk: load(word!(entered.listener.sk)),
                inode: load(word!(entered.listener.inode)),
            },
        },
    };
    (load(word!(child)) == child).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_once_it_is_whole_and_given_back_with_its_listener() {
        let places = Places {
            memory: Mapped::of_nothing::<Place>(COUNT),
        };
        let set = |index: usize, child: u64, at_ns: u64, sk: u64| {
            let words = places.places().nth(index).unwrap();
            words[word!(child)].store(child, Ordering::Relaxed);
            words[word!(entered.at_ns)].store(at_ns, Ordering::Relaxed);
            words[word!(entered.listener.sk)].store(sk, Ordering::Relaxed);
        };
        set(3, 0x1000 | WRITING, 7, 1);
        set(4, 0x2000, 8, 1);
        set(COUNT - 1, 0x3000, 9, 2);
        let times = || -> Vec<_> { places.each().map(|entered| entered.at_ns).collect() };
        assert_eq!(times(), [8, 9]);
        places.forget(|listener| listener.sk == 1);
        assert_eq!(times(), [9]);
        set(3, 0x1000, 7, 1);
        assert_eq!(times(), [7, 9]);
    }
}
