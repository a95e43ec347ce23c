//! The BPF library's loader, without the kernel's types.

#![expect(
    unsafe_code,
    reason = "a thread's root is its own only once it was asked for"
)]

use std::{
    io,
    thread::{self, JoinHandle},
};

use aya::EbpfLoader;
use rustix::{
    process::chroot,
    thread::{UnshareFlags, unshare_unsafe},
};

/// Folder without a `sys/kernel/btf/vmlinux` inside; it is there where the kernel shows its types.
const WITHOUT_TYPES: &str = "/sys";

/// A loader. Whenever one is made the library reads all of the kernel's types, which takes it longer
/// than all else that it does, and are of no use to an object that is
/// [fitted](super::object::fitted) already. So it is made where the library does not find them: in a
/// thread with a root of its own. Where that is not allowed it is made as always.
pub(super) fn new() -> EbpfLoader<'static> {
    let elsewhere = || -> io::Result<EbpfLoader<'static>> {
        // SAFETY: only the root and the working directory of this thread become its own, by which
        // it opens no other file than the one that is not there.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        chroot(WITHOUT_TYPES)?;
        Ok(EbpfLoader::new())
    };
    let made = thread::Builder::new().spawn(elsewhere);
    match made.map(JoinHandle::join) {
        Ok(Ok(Ok(loader))) => loader,
        _ => EbpfLoader::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_root_of_all_others_stays() {
        let root = || fs::canonicalize("/proc/self/root/..").unwrap();
        let before = root();
        drop(new());
        assert_eq!(root(), before);
        assert!(fs::metadata("/proc/self/status").is_ok());
    }
}
