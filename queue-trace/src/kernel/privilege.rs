//! Gives up privileges once attached. What stays is what the audit takes: reading the maps, and
//! looking into other network namespaces.

use std::io;

use anyhow::{Context, Result};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::kernel::seccomp;

/// CAP_BPF: read the maps. CAP_SYS_ADMIN: enter a namespace that has a name and no
/// process, and read maps on kernels before CAP_BPF sufficed. CAP_SYS_PTRACE: see
/// which namespace a process lives in. CAP_DAC_READ_SEARCH: find them.
const NEEDED: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// Gives up, for good, every capability but those needed, the ways to get more (the bounding
/// set, and programs that grant them), and the system calls that are not needed. It is about
/// this thread and those that it starts later.
///
/// # Errors
/// If the kernel does not say what we have or take what we give up.
pub fn keep_only_what_is_needed() -> Result<()> {
    let have = capabilities(None).context("cannot read this process's capabilities")?;
    if have.effective.contains(CapabilitySet::SETPCAP) {
        empty_bounding_set();
    }
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
    .context("cannot drop privileges")?;
    // A filter takes this, and without CAP_SETPCAP it is what makes the bounding set useless.
    set_no_new_privs(true)
        .map_err(io::Error::from)
        .context("cannot give up gaining privileges")?;
    if let Err(error) = seccomp::allow_only_what_is_needed() {
        // A kernel without seccomp; everything else was given up.
        log::info!("system calls are not filtered: {error:#}");
    }
    Ok(())
}

/// No program that is started could be given any capability.
fn empty_bounding_set() {
    for capability in CapabilitySet::all().iter() {
        // Kernels differ in how many there are: unknown ones are in no set.
        if capability_is_in_bounding_set(capability).is_ok_and(|is_in| is_in) {
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
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
