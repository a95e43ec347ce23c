//! Network namespaces of this machine: which there are, and their counters. Holds
//! none of them open, so it keeps none alive.

#![expect(unsafe_code, reason = "an ioctl and a socket option that no crate has")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

use crate::model::ledger::Counters;

/// The way into a namespace, as long as it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsPath {
    /// A process that lives in it.
    Process(u32),
    /// A name or any other path to it.
    Path(PathBuf),
}

/// The number of the namespace at a path.
///
/// # Errors
/// If the path cannot be read, or is no network namespace.
pub fn id(path: &Path) -> io::Result<u32> {
    id_of(&File::open(path)?)
}

/// The number of an open namespace. Asks the kernel what kind it is: a file of another
/// kind has an inode number as well.
fn id_of(namespace: &File) -> io::Result<u32> {
    let not_one = || io::Error::other("not a network namespace");
    // SAFETY: the request takes no argument and only returns a number
    // (NS_GET_NSTYPE, ioctl_ns(2)).
    let kind = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_NSTYPE) };
    if kind != libc::CLONE_NEWNET {
        return Err(not_one());
    }
    u32::try_from(namespace.metadata()?.ino()).map_err(|_| not_one())
}

/// All namespaces that can be found: those of processes, and those mounted somewhere,
/// as `ip netns` and container runtimes do to name them.
#[must_use]
pub fn list() -> BTreeMap<u32, NetnsPath> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: BTreeMap<_, _> = mounts.lines().filter_map(mounted).collect();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if let Ok(link) = fs::read_link(entry.path().join("ns/net"))
            && let Some(id) = link.to_str().and_then(number)
        {
            found.insert(id, NetnsPath::Process(pid));
        }
    }
    found
}

/// The namespace that a line of `/proc/self/mountinfo` mounts, if it mounts one:
/// fields 4 and 5 are `net:[NUMBER]` and where it is.
fn mounted(line: &str) -> Option<(u32, NetnsPath)> {
    let mut fields = line.split(' ').skip(3);
    let id = number(fields.next()?)?;
    Some((id, NetnsPath::Path(fields.next()?.into())))
}

/// The number in `net:[NUMBER]`, as links in `/proc` and mounts name a namespace.
fn number(name: &str) -> Option<u32> {
    let number = name.strip_prefix("net:[")?.strip_suffix(']')?;
    number.parse().ok()
}

/// This process's own namespace.
///
/// # Errors
/// If `/proc` is not there.
pub fn own() -> io::Result<u32> {
    id(Path::new("/proc/self/ns/net"))
}

impl NetnsPath {
    /// Opens it, and checks that it still leads to the namespace of that number.
    fn open(&self, netns: u32) -> io::Result<File> {
        let namespace = match self {
            Self::Process(pid) => File::open(format!("/proc/{pid}/ns/net"))?,
            Self::Path(path) => File::open(path)?,
        };
        if id_of(&namespace)? == netns {
            Ok(namespace)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

/// Does `work` inside a namespace, in a thread that enters it and ends.
///
/// # Errors
/// If the namespace is gone, or may not be entered.
pub fn inside<R: Send>(
    netns: u32,
    way: &NetnsPath,
    work: impl FnOnce() -> io::Result<R> + Send,
) -> io::Result<R> {
    if own().is_ok_and(|own| own == netns) {
        // Takes no privilege.
        return work();
    }
    let namespace = way.open(netns)?;
    thread::scope(|scope| {
        thread::Builder::new()
            .spawn_scoped(scope, || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}

/// What tells a namespace from an earlier one that had its number; `None` before Linux
/// 5.14, which does not tell.
#[must_use]
pub fn cookie(netns: u32, way: &NetnsPath) -> Option<u64> {
    inside(netns, way, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let mut cookie = 0u64;
        let mut size = size_of_val(&cookie) as libc::socklen_t;
        // SAFETY: writes at most `size` bytes, which `cookie` has, and the socket is open.
        let failed = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut size,
            )
        } != 0;
        if failed {
            return Err(io::Error::last_os_error());
        }
        Ok(cookie)
    })
    .ok()
}

/// The counters of a namespace.
///
/// # Errors
/// If the namespace is gone, or may not be entered.
pub fn counters(netns: u32, way: &NetnsPath) -> io::Result<Counters> {
    let text = match way {
        // Without entering it, which takes fewer privileges.
        NetnsPath::Process(pid) => {
            let text = fs::read_to_string(format!("/proc/{pid}/net/netstat"))?;
            // The process may have gone, and its number been given to another.
            way.open(netns)?;
            text
        }
        NetnsPath::Path(_) => inside(netns, way, || {
            fs::read_to_string("/proc/thread-self/net/netstat")
        })?,
    };
    Counters::parse(&text)
        .ok_or_else(|| io::Error::other("/proc/net/netstat has no TcpExt section"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_namespace_is_found_with_its_counters() {
        let own = own().unwrap();
        let all = list();
        let way = all
            .get(&own)
            .expect("our own namespace is among those listed");
        counters(own, way).unwrap();
    }

    #[test]
    fn other_files_are_not_taken_for_namespaces() {
        for path in ["/etc/passwd", "/proc/self/ns/pid"] {
            id(Path::new(path)).unwrap_err();
        }
    }

    #[test]
    fn mounts_of_namespaces_are_recognised() {
        let line = "370 25 0:4 net:[4026532177] /run/netns/blue rw shared:210 - nsfs nsfs rw";
        let way = NetnsPath::Path("/run/netns/blue".into());
        assert_eq!(mounted(line), Some((4_026_532_177, way)));
        let other = "28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw";
        assert_eq!(mounted(other), None);
    }

    #[test]
    fn a_door_that_leads_elsewhere_is_noticed() {
        let way = NetnsPath::Process(std::process::id());
        let error = counters(1, &way).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
