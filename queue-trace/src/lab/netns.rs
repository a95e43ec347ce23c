//! A private network namespace: made, entered and left behind by nobody.
//!
//! Only threads that start for the purpose ever enter it, so the caller stays
//! where it is. The namespace lives as long as its handle, the sockets made
//! inside it and the threads inside it.

#![expect(unsafe_code, reason = "unshare changes the calling thread")]

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    panic::resume_unwind,
    path::PathBuf,
    thread,
};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::lab::loopback;

/// A private network namespace with its loopback device up.
///
/// Dropping it closes the handle; the kernel removes the namespace with its last
/// socket.
#[derive(Debug)]
pub struct Netns {
    handle: File,
    id: u32,
}

impl Netns {
    /// Makes a namespace. Needs CAP_SYS_ADMIN.
    pub fn new() -> Result<Self> {
        in_new_thread(|| {
            // SAFETY: NEWNET changes the calling thread's network namespace alone;
            // its table of file descriptors stays shared, which is what the
            // function's contract is about.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context(
                "cannot make a network namespace (unshare): it takes root or CAP_SYS_ADMIN",
            )?;
            let path = "/proc/thread-self/ns/net";
            let handle = File::open(path).with_context(|| format!("cannot open {path}"))?;
            let inode = handle
                .metadata()
                .with_context(|| format!("cannot stat {path}"))?
                .ino();
            let id = u32::try_from(inode).context("namespace number over 32 bits")?;
            loopback::bring_up()?;
            Ok(Self { handle, id })
        })
    }

    /// What keeps the namespace, and so its number, from going to another.
    pub fn into_handle(self) -> OwnedFd {
        self.handle.into()
    }

    /// The namespace's inode number, as in `readlink /proc/self/ns/net`.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// A path by which any process with the same privileges can open the
    /// namespace while this value lives.
    pub fn path(&self) -> PathBuf {
        let fd = self.handle.as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()))
    }

    /// Runs `work` in a thread inside the namespace and waits for it. Sockets
    /// made there, and threads started there, belong to the namespace for good.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        in_new_thread(|| {
            move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("cannot enter network namespace {} (setns)", self.id))?;
            work()
        })
    }

    /// Ends all traffic in the namespace for good: what clients and timers send from now
    /// on arrives nowhere.
    pub fn silence(&self) -> Result<()> {
        self.run(loopback::take_down)
    }

    /// Sets a sysctl of the namespace, for example `net.ipv4.tcp_syncookies`.
    pub fn set_sysctl(&self, name: &str, value: impl ToString) -> Result<()> {
        let (path, value) = (sysctl_path(name), value.to_string());
        self.run(|| {
            fs::write(&path, &value)
                .with_context(|| format!("cannot set {name} to {value} in {}", path.display()))
        })
    }

    /// Reads a sysctl of the namespace.
    pub fn sysctl(&self, name: &str) -> Result<String> {
        let path = sysctl_path(name);
        let text = self.run(|| {
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        })?;
        Ok(text.trim().to_owned())
    }

    /// The namespace's counters, in the format of `/proc/net/netstat`.
    pub fn netstat(&self) -> Result<String> {
        // Not /proc/net: that is the view of the process's first thread.
        let path = "/proc/thread-self/net/netstat";
        self.run(|| fs::read_to_string(path).with_context(|| format!("cannot read {path}")))
    }
}

/// `/proc/sys/net` shows the namespace of the thread that looks.
fn sysctl_path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}

fn in_new_thread<R: Send>(work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .context("cannot start a thread")?
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
    })
}
