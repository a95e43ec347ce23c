//! What the kernel side tells in memory that is mapped here: read without a system call,
//! while the kernel writes it.

#![expect(
    unsafe_code,
    reason = "counts are read where the kernel writes them, in a mapped array"
)]

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result, bail};
use aya::{Ebpf, maps::Map};
use bytemuck::{Zeroable, bytes_of_mut, cast_slice_mut};
use memmap2::{MmapOptions, MmapRaw};
use queue_trace_common::{
    loss::Loss,
    settings::{Slot, Tally},
};

/// The tallies of all CPUs.
pub(super) struct Tallies {
    memory: MmapRaw,
}

const NAME: &str = "TALLIES";

impl Tallies {
    pub(super) fn of(ebpf: &mut Ebpf, cpus: usize) -> Result<Self> {
        let Some(Map::Array(map)) = ebpf.take_map(NAME) else {
            bail!("the kernel side has no array {NAME}");
        };
        let memory = MmapOptions::new()
            .len(cpus * size_of::<Tally>())
            // The mapping keeps the map, whose descriptor is not needed any more.
            .map_raw_read_only(map.fd().as_fd().as_raw_fd())
            .context("cannot map the kernel side's counts into memory")?;
        Ok(Self { memory })
    }

    fn words(&self) -> &[AtomicU64] {
        let (start, bytes) = (self.memory.as_ptr(), self.memory.len());
        // SAFETY: the mapping is as long as that, aligned to a page, and lives as long as
        // self. The kernel writes it at any time, in whole words, as atomics allow.
        unsafe { std::slice::from_raw_parts(start.cast(), bytes / size_of::<AtomicU64>()) }
    }

    /// Each CPU's, as they are now.
    pub(super) fn each(&self) -> impl Iterator<Item = Box<Tally>> {
        self.words()
            .chunks_exact(size_of::<Tally>() / size_of::<AtomicU64>())
            .map(|words| {
                let mut tally = Box::new(Tally::zeroed());
                let copy: &mut [u64] = cast_slice_mut(bytes_of_mut(&mut *tally));
                for (copy, word) in copy.iter_mut().zip(words) {
                    // In this order: see `Slot`.
                    *copy = word.load(Ordering::Acquire);
                }
                tally
            })
    }

    /// The slots that are in use.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.each()
            .flat_map(|tally| tally.slots)
            .filter(|slot| slot.counted.seen > 0)
    }

    /// How often something was counted in the map of counts.
    pub(super) fn counted(&self) -> u64 {
        self.each().map(|tally| tally.counted).sum()
    }

    /// How often listeners were made or closed.
    pub(super) fn listeners(&self) -> u64 {
        self.each().map(|tally| tally.listeners).sum()
    }

    /// What was lost so far.
    pub(super) fn loss(&self) -> Loss {
        self.each()
            .fold(Loss::default(), |sum, tally| sum.plus(&tally.loss))
    }
}
