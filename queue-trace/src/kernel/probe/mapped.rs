//! An array of the kernel side that is mapped into memory: read without a system call, while the
//! kernel writes it.

#![expect(
    unsafe_code,
    reason = "words are read where the kernel writes them, in a mapped array"
)]

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::atomic::AtomicU64,
};

use anyhow::{Context, Result, bail};
use aya::{Ebpf, maps::Map};
use memmap2::{MmapOptions, MmapRaw};

/// A mapped array.
pub(super) struct Mapped {
    memory: MmapRaw,
}

impl Mapped {
    /// An array of so many values.
    pub(super) fn of<T>(ebpf: &mut Ebpf, name: &str, count: usize) -> Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let Some(Map::Array(map)) = ebpf.take_map(name) else {
            bail!("the kernel side has no array {name}");
        };
        let memory = MmapOptions::new()
            .len(count * size_of::<T>())
            // The mapping keeps the map, whose descriptor is not needed any more.
            .map_raw(map.fd().as_fd().as_raw_fd())
            .with_context(|| format!("cannot map the kernel side's {name} into memory"))?;
        Ok(Self { memory })
    }

    #[cfg(test)]
    pub(super) fn of_nothing<T>(count: usize) -> Self {
        let memory = memmap2::MmapMut::map_anon(count * size_of::<T>()).unwrap();
        Self {
            memory: memory.into(),
        }
    }

    /// Its words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        let (start, bytes) = (self.memory.as_ptr(), self.memory.len());
        // SAFETY: the mapping is as long as that, readable and writable, aligned to a page,
        // and lives as long as self. The kernel writes it at any time, in whole words, as
        // atomics allow.
        unsafe { std::slice::from_raw_parts(start.cast(), bytes / size_of::<AtomicU64>()) }
    }
}
