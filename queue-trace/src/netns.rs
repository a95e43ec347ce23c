//! Network namespaces of this machine: which there are, and their counters. Holds
//! none of them open, so it keeps none alive.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::ledger::Counters;

/// Where `ip netns` and container runtimes keep names of namespaces.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// The way into a namespace, as long as it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
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
    // The link of /proc says what it is; a bind mount is told by its file system.
    let inode = fs::metadata(path)?.ino();
    u32::try_from(inode).map_err(|_| io::Error::other("not a network namespace"))
}

/// All namespaces that can be found: those of processes, and those with a name.
#[must_use]
pub fn list() -> BTreeMap<u32, Door> {
    let mut found = BTreeMap::new();
    for directory in NAMED {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if let Ok(id) = id(&entry.path()) {
                found.insert(id, Door::Path(entry.path()));
            }
        }
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Ok(id) = id(&entry.path().join("ns/net")) {
            found.entry(id).or_insert(Door::Process(pid));
        }
    }
    found
}

/// This process's own namespace.
///
/// # Errors
/// If `/proc` is not there.
pub fn own() -> io::Result<u32> {
    id(Path::new("/proc/self/ns/net"))
}

/// The counters of a namespace.
///
/// # Errors
/// If the namespace is gone, or may not be entered.
pub fn counters(netns: u32, door: &Door) -> io::Result<Counters> {
    let text = match door {
        Door::Process(pid) => {
            let text = fs::read_to_string(format!("/proc/{pid}/net/netstat"))?;
            // The process may have gone, and its number been given to another.
            if id(Path::new(&format!("/proc/{pid}/ns/net")))? != netns {
                return Err(io::ErrorKind::NotFound.into());
            }
            text
        }
        Door::Path(path) => {
            let namespace = File::open(path)?;
            if namespace.metadata()?.ino() != u64::from(netns) {
                return Err(io::ErrorKind::NotFound.into());
            }
            inside(&namespace, || {
                fs::read_to_string("/proc/thread-self/net/netstat")
            })?
        }
    };
    Counters::parse(&text).ok_or_else(|| io::Error::other("/proc/net/netstat has no TcpExt section"))
}

/// Does `work` in a thread that has entered the namespace, and ends.
fn inside<R: Send>(namespace: &File, work: impl FnOnce() -> io::Result<R> + Send) -> io::Result<R> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_namespace_is_found_with_its_counters() {
        let own = own().unwrap();
        let all = list();
        let door = all.get(&own).expect("our own namespace is among those listed");
        counters(own, door).unwrap();
    }

    #[test]
    fn a_door_that_leads_elsewhere_is_noticed() {
        let door = Door::Process(std::process::id());
        let error = counters(1, &door).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
