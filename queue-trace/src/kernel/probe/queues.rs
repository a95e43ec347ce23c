//! The maps in which the kernel side keeps what it knows of listeners' queues.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{self, MapData, MapError},
};
use queue_trace_common::queue::{BUCKETS, Entered, Marks, MarksKey, Queue, QueueKey};

use crate::kernel::probe::{
    batch, marked::MarkedPlaces, named::take, places::Places, wire::PodWire,
};

/// The maps.
pub(super) struct QueueMaps {
    shared: maps::HashMap<MapData, PodWire<QueueKey>, PodWire<Queue>>,
    known: Option<Known>,
    marked: MarkedPlaces,
    marks: maps::HashMap<MapData, PodWire<MarksKey>, PodWire<Marks>>,
    places: Places,
    waiting: maps::HashMap<MapData, PodWire<u64>, PodWire<Entered>>,
}

/// The keys of the table that all CPUs share, as they were found when it was walked over last.
struct Known {
    /// How often an entry had gone in before.
    made: u64,
    keys: HashSet<QueueKey>,
}

/// So many entries are asked for one by one: to walk over the table takes the kernel 400,000
/// instructions, however few it has.
const FEW: usize = 64;

/// What is kept, at a moment.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// What all CPUs share of each listener.
    pub queues: HashMap<QueueKey, Queue>,
    /// By listener.
    pub listeners: HashMap<QueueKey, (Queue, QueueSums)>,
    /// When the connections in each accept queue entered it, the newest first.
    pub waiting: HashMap<QueueKey, Vec<u64>>,
}

const UNREADABLE: &str = "cannot read the queues";

impl QueueMaps {
    pub(super) fn of(ebpf: &mut Ebpf, cpus: usize) -> Result<Self> {
        Ok(Self {
            shared: take(ebpf, "QUEUES")?,
            known: None,
            marked: MarkedPlaces::of(ebpf, cpus)?,
            marks: take(ebpf, "MARKS")?,
            places: Places::of(ebpf)?,
            waiting: take(ebpf, "WAITING")?,
        })
    }

    /// The table that all CPUs share. `made`: how often an entry went in, asked for before.
    pub(super) fn shared(&mut self, made: u64) -> Result<HashMap<QueueKey, Queue>> {
        let same = |known: &&Known| known.made == made && known.keys.len() <= FEW;
        if let Some(known) = self.known.as_ref().filter(same) {
            return self.each_of(&known.keys).context(UNREADABLE);
        }
        let mut queues = HashMap::new();
        let read = batch::each(&self.shared, |key, queue| {
            queues.insert(key, *queue);
        });
        read.context(UNREADABLE)?;
        self.known = Some(Known {
            made,
            keys: queues.keys().copied().collect(),
        });
        Ok(queues)
    }

    fn each_of(&self, keys: &HashSet<QueueKey>) -> Result<HashMap<QueueKey, Queue>, MapError> {
        let read = keys.iter().map(|key| {
            let queue = self.shared.get(&PodWire(*key), 0)?;
            Ok((*key, queue.0))
        });
        let there = |read: &Result<_, MapError>| !matches!(read, Err(MapError::KeyNotFound));
        read.filter(there).collect()
    }

    /// `made`, `has_spilled`: see [`Tallies`](super::tallies::Tallies). To walk over the tables takes
    /// the kernel a million instructions, though they are empty.
    pub(super) fn read(&mut self, made: u64, has_spilled: bool) -> Result<Kept> {
        let mut kept = Kept {
            queues: self.shared(made)?,
            ..Kept::default()
        };
        for (key, queue) in &kept.queues {
            kept.listeners.entry(*key).or_default().0 = *queue;
        }
        let mut waits = |entered: &Entered| {
            let queue = kept.waiting.entry(entered.listener).or_default();
            queue.push(entered.at_ns);
        };
        self.places.each().for_each(|entered| waits(&entered));
        // Where entries go meanwhile the kernel begins anew, so that some come twice.
        let mut marks = HashMap::new();
        if has_spilled {
            let read = batch::each(&self.marks, |key: MarksKey, cpu: &Marks| {
                marks.insert(key, *cpu);
            });
            read.context("cannot read the high-water marks")?;
            let read = batch::each(&self.waiting, |_: u64, entered| waits(entered));
            read.context("cannot read who waits")?;
        }
        let marks = marks.iter().map(|(key, cpu)| (key.listener, *cpu));
        for (key, cpu) in marks.chain(self.marked.each()) {
            kept.listeners.entry(key).or_default().1.add(&cpu);
        }
        for queue in kept.waiting.values_mut() {
            queue.sort_unstable_by(|a, b| b.cmp(a));
        }
        Ok(kept)
    }

    /// Forgets listeners, which must be closed.
    pub(super) fn forget(&mut self, keys: &HashSet<QueueKey>, has_spilled: bool) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        for key in keys {
            // What is not there needs no forgetting.
            let _ = self.shared.remove(&PodWire(*key));
        }
        self.marked.forget(|listener| keys.contains(listener));
        self.places.forget(|listener| keys.contains(listener));
        if !has_spilled {
            return Ok(());
        }
        let mut marks = HashSet::new();
        let read = batch::each(&self.marks, |key: MarksKey, _: &Marks| {
            if keys.contains(&key.listener) {
                marks.insert(key);
            }
        });
        read.context("cannot read the high-water marks")?;
        for key in marks {
            let _ = self.marks.remove(&PodWire(key));
        }
        let mut children = HashSet::new();
        let read = batch::each(&self.waiting, |child: u64, entered| {
            if keys.contains(&entered.listener) {
                children.insert(child);
            }
        });
        read.context("cannot read who waits")?;
        for child in children {
            let _ = self.waiting.remove(&PodWire(child));
        }
        Ok(())
    }
}

/// What all CPUs together keep of a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueSums {
    /// The deepest accept queue.
    pub accept_high: u32,
    /// When it was that deep first.
    pub accept_high_ns: u64,
    /// The deepest SYN queue.
    pub syn_high: u32,
    /// When it was that deep first.
    pub syn_high_ns: u64,
    /// Connections that entered the accept queue.
    pub entered: u64,
    /// The longest time in the accept queue, nanoseconds.
    pub waited_max_ns: u64,
    /// All times in the accept queue added up, nanoseconds.
    pub waited_sum_ns: u64,
    /// The longest handshake, microseconds.
    pub handshake_max_us: u64,
    /// Connections by the time that they were in the accept queue.
    pub waited: [u64; BUCKETS],
    /// Handshakes by the time that they took.
    pub handshakes: [u64; BUCKETS],
}

impl QueueSums {
    /// Adds what one CPU keeps.
    fn add(&mut self, cpu: &Marks) {
        let deeper = |a: (u32, u64), b: (u32, u64)| {
            if b.0 > a.0 || b.0 == a.0 && b.1 < a.1 {
                b
            } else {
                a
            }
        };
        (self.accept_high, self.accept_high_ns) = deeper(
            (self.accept_high, self.accept_high_ns),
            (cpu.accept_high, cpu.accept_high_ns),
        );
        (self.syn_high, self.syn_high_ns) = deeper(
            (self.syn_high, self.syn_high_ns),
            (cpu.syn_high, cpu.syn_high_ns),
        );
        self.entered = self.entered.saturating_add(cpu.entered);
        self.waited_max_ns = self.waited_max_ns.max(cpu.waited_max_ns);
        self.waited_sum_ns = self.waited_sum_ns.saturating_add(cpu.waited_sum_ns);
        self.handshake_max_us = self.handshake_max_us.max(cpu.handshake_max_us);
        for (place, more) in self.waited.iter_mut().zip(cpu.waited) {
            *place = place.saturating_add(more);
        }
        for (place, more) in self.handshakes.iter_mut().zip(cpu.handshakes) {
            *place = place.saturating_add(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_counts_and_of_equals_the_first() {
        let mut sums = QueueSums::default();
        for (accept_high, accept_high_ns) in [(3, 50), (4, 70), (4, 60)] {
            sums.add(&Marks {
                accept_high,
                accept_high_ns,
                ..Marks::default()
            });
        }
        assert_eq!((sums.accept_high, sums.accept_high_ns), (4, 60));
    }

    #[test]
    fn sums_over_cpus_do_not_wrap() {
        let mut sums = QueueSums::default();
        for _ in 0..3 {
            sums.add(&Marks {
                entered: 4_000_000_000,
                waited: [4_000_000_000; _],
                ..Marks::default()
            });
        }
        let all = 12_000_000_000;
        assert_eq!((sums.entered, sums.waited), (all, [all; _]));
    }
}
