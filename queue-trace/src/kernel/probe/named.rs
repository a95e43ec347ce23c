//! Programs and maps of the kernel side, by their names.

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::Map,
    programs::{Program, ProgramError},
};

/// What is behind the names of kprobes' programs.
pub(super) const KPROBE: &str = "_kprobe";

pub(super) fn named<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)
}

pub(super) fn take<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> Result<T>
where
    T::Error: std::error::Error + Send + Sync + 'static,
{
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("the kernel side has no map {name}"))?;
    T::try_from(map).with_context(|| format!("the map {name} is not what it should be"))
}
