//! Attaches the program that sees each packet right before the socket decides that it is
//! delivered to: at the root of the cgroups, to which every socket of the machine belongs.
//!
//! The root is reached by a mount that only this process has: not every machine mounts the
//! unified hierarchy, but it exists beside the older ones.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use aya::{
    Ebpf,
    programs::{CgroupSkb, CgroupSkbAttachType, ProgramError, links::CgroupAttachMode},
};
use rustix::{
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{named::named, reason::reason};

const PROGRAM: &str = "packet_delivered";

/// The inode number of the first cgroup namespace (`PROC_CGROUP_INIT_INO`,
/// include/linux/proc_ns.h): the root that is seen in it is the machine's.
const FIRST: u64 = 0xefff_fffb;

/// Attaches it by a link, which the kernel takes away with this process.
///
/// # Errors
/// If this process may not, or others left no room.
pub(super) fn attach(ebpf: &mut Ebpf) -> Result<()> {
    let root = root()?;
    let attach = || -> Result<(), ProgramError> {
        let program: &mut CgroupSkb = named(ebpf, PROGRAM)?.try_into()?;
        program.load()?;
        // By a link a program never is the only one, and the kernel takes no flag that says so.
        program.attach(root, CgroupSkbAttachType::Ingress, CgroupAttachMode::Single)?;
        Ok(())
    };
    attach().map_err(|error| anyhow!("cgroup_skb/ingress at the root: {}", reason(&error)))
}

/// Opens the root of the machine's cgroups.
fn root() -> Result<OwnedFd> {
    if is_first("/proc/self/ns/cgroup")? {
        return mount();
    }
    ensure!(
        is_first("/proc/1/ns/cgroup").unwrap_or(false),
        "this process only sees the cgroups of its own container"
    );
    // A container that sees the machine's processes. A thread moves, and ends.
    let opened = thread::spawn(|| {
        let first = File::open("/proc/1/ns/cgroup")?;
        move_into_link_name_space(first.as_fd(), Some(LinkNameSpaceType::ControlGroup))
            .map_err(io::Error::from)
            .context("cannot enter the machine's cgroup namespace")?;
        mount()
    });
    let panicked = |_| Err(anyhow!("the thread that opens the root panicked"));
    opened.join().unwrap_or_else(panicked)
}

fn is_first(namespace: &str) -> Result<bool> {
    let found = fs::metadata(namespace).with_context(|| format!("cannot read {namespace}"))?;
    Ok(found.ino() == FIRST)
}

fn mount() -> Result<OwnedFd> {
    let mount = || {
        let kind = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(kind.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(kind.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    mount()
        .map_err(io::Error::from)
        .context("cannot mount cgroup2")
}
