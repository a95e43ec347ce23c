//! Mounts that one test alone sees: files of the machine hidden, or a disk that is
//! full.

#![expect(unsafe_code, reason = "unshare changes the calling thread, or process")]

use std::{fs, io, os::unix::process::CommandExt, panic::resume_unwind, path::Path, thread};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::tracer::Launch;

/// The mounts of the calling thread, and of the programs that it starts.
#[derive(Debug)]
pub struct Mounts(());

/// Runs `work` in a thread with mounts of its own. They are gone when it ends.
pub fn in_private_mounts<R: Send>(work: impl FnOnce(&Mounts) -> R + Send) -> R {
    let body = || {
        // SAFETY: NEWNS gives this thread alone a view of mounts, a root and a working
        // folder of its own; its file descriptors stay shared, which is what the
        // function's contract is about.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", flags).unwrap();
        work(&Mounts(()))
    };
    thread::scope(|scope| {
        let ended = scope.spawn(body).join();
        ended.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

impl Mounts {
    /// Puts an empty folder in the place of one. One that is not there is hidden
    /// already.
    pub fn hide(&self, folder: &str) {
        if Path::new(folder).exists() {
            mount("none", folder, "tmpfs", MountFlags::empty(), None).unwrap();
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
        }
    }

    /// As in a container that sees its own cgroups alone: tracepoint mode cannot have its program
    /// at their root, nor get there by the machine's first process.
    #[must_use]
    pub fn without_delivery(&self, launch: Launch) -> Launch {
        self.hide("/proc/1");
        let leave = || {
            // SAFETY: the process that begins has its own view of the cgroups; nothing else of it
            // changes.
            unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP) }.map_err(io::Error::from)
        };
        launch.with(|command| {
            // SAFETY: a system call between fork and exec, and nothing else.
            unsafe { command.pre_exec(leave) };
        })
    }

    /// Puts a folder in the place of one that holds nothing but this file.
    pub fn replace(&self, folder: &str, name: &str, content: &str) {
        assert!(Path::new(folder).is_dir(), "there is no folder {folder}");
        mount("none", folder, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(Path::new(folder).join(name), content).unwrap();
    }

    /// Puts a file in the place of another one.
    pub fn bind(&self, file: &Path, place: &Path) {
        mount_bind(file, place).unwrap();
    }

    /// Puts a disk of so many KiB at a folder.
    pub fn small_disk(&self, folder: &Path, kib: u32) {
        let size = std::ffi::CString::new(format!("size={kib}k")).unwrap();
        mount(
            "none",
            folder,
            "tmpfs",
            MountFlags::empty(),
            size.as_c_str(),
        )
        .unwrap();
    }
}
