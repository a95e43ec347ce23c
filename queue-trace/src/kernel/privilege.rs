//! Lets go of privileges once attached. What stays is what closing the books takes:
//! reading the maps, and looking into other network namespaces.

use std::io;

use anyhow::{Context, Result};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// CAP_BPF: read the maps. CAP_SYS_ADMIN: enter a namespace that has a name and no
/// process, and read maps on kernels before CAP_BPF sufficed. CAP_SYS_PTRACE: see
/// which namespace a process lives in. CAP_DAC_READ_SEARCH: find them.
const NEEDED: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// Drops every capability but those needed from this thread, for good. Threads
/// started later inherit what is left.
///
/// # Errors
/// If the kernel will not say what we have or take what we give up.
pub fn keep_only_what_is_needed() -> Result<()> {
    let have = capabilities(None).context("cannot read this process's capabilities")?;
    let keep = have.permitted & NEEDED;
    set_capabilities(
        None,
        CapabilitySets {
            effective: keep,
            permitted: keep,
            inheritable: CapabilitySet::empty(),
        },
    )
    .map_err(io::Error::from)
    .context("cannot drop privileges")
}

/// Drops every capability from this thread, for good.
///
/// # Errors
/// If the kernel will not take what we give up.
pub fn keep_nothing() -> Result<()> {
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )
    .map_err(io::Error::from)
    .context("cannot drop privileges")
}
