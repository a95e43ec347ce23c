//! Which processes hold a socket, from `/proc`: every process's open files. A process that
//! ends meanwhile is left out, and so are those that we may not look at.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    path::Path,
};

use crate::model::{snapshot::Descriptors, socket::Process};

/// Processes by the inode number of a socket that they hold.
pub type Owners = HashMap<u64, Vec<Process>>;

/// The processes that hold one of these sockets.
#[must_use]
pub fn of(sockets: &HashSet<u64>) -> Owners {
    let mut owners = Owners::new();
    if sockets.is_empty() {
        return owners;
    }
    for pid in pids() {
        let held = held_by(pid, sockets);
        if held.is_empty() {
            continue;
        }
        let process = Process {
            pid,
            comm: comm(pid).unwrap_or_default(),
        };
        for inode in held {
            owners.entry(inode).or_default().push(process.clone());
        }
    }
    for processes in owners.values_mut() {
        processes.sort_by_key(|process| process.pid);
    }
    owners
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn held_by(pid: u32, sockets: &HashSet<u64>) -> BTreeSet<u64> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    files
        .flatten()
        .filter_map(|file| socket(fs::read_link(file.path()).ok()?.to_str()?))
        .filter(|inode| sockets.contains(inode))
        .collect()
}

/// The number in `socket:[NUMBER]`.
fn socket(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The short name of a process; `None` if it is gone.
#[must_use]
pub fn comm(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&comm).trim_end().to_owned())
}

/// The file name of the program that a process runs; `None` if it may not be seen.
#[must_use]
pub fn program(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = path.file_name()?.to_str()?;
    // A program that was replaced on disk goes on under a longer name.
    Some(name.trim_end_matches(" (deleted)").to_owned())
}

/// What the threads of a process do, how many each: the letter of the state as in ps(1),
/// and the kernel function that those that wait are in, if we may know.
#[must_use]
pub fn threads(pid: u32) -> BTreeMap<String, u32> {
    let mut doing: BTreeMap<_, u32> = BTreeMap::new();
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    // What has ended meanwhile does nothing.
    for task in tasks.into_iter().flatten().flatten().take(THREADS) {
        if let Some(what) = thread(&task.path()) {
            *doing.entry(what).or_default() += 1;
        }
    }
    doing
}

/// The file descriptors of a process, if they may be seen.
#[must_use]
pub fn descriptors(pid: u32) -> Option<Descriptors> {
    let folder = format!("/proc/{pid}");
    let limits = fs::read_to_string(format!("{folder}/limits")).ok()?;
    let limit = limit_of_files(&limits)?;
    let files = fs::read_dir(format!("{folder}/fd")).ok()?.flatten();
    let numbers = files.filter_map(|file| file.file_name().to_str()?.parse().ok());
    Some(Descriptors {
        pid,
        open: numbered_below(limit, numbers),
        limit,
    })
}

/// How many of the files count against the limit, which is of their numbers: a process may have
/// opened others before it was lowered.
fn numbered_below(limit: u64, numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.filter(|number| *number < limit).count() as u64
}

/// The soft limit of open files, from the text of `/proc/PID/limits`.
fn limit_of_files(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Of so many processes and of so many threads of each it is looked what they do.
pub(super) const PROCESSES: usize = 64;
const THREADS: usize = 256;

fn thread(task: &Path) -> Option<String> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    // Behind the name, which is in brackets and may have any in it.
    let (_, rest) = stat.rsplit_once(") ")?;
    let state = rest.chars().next()?;
    let place = fs::read_to_string(task.join("wchan")).unwrap_or_default();
    // 0: it does not wait, or we may not know.
    Some(match place.trim() {
        "" | "0" => state.to_string(),
        place => format!("{state} {place}"),
    })
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::{fd::AsRawFd, unix::fs::MetadataExt},
    };

    use super::*;

    #[test]
    fn our_own_listener_is_ours() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let path = format!("/proc/self/fd/{}", listener.as_raw_fd());
        let inode = fs::metadata(path).unwrap().ino();
        let owners = of(&HashSet::from([inode]));
        let pids: Vec<_> = owners[&inode].iter().map(|process| process.pid).collect();
        assert_eq!(pids, [std::process::id()]);
        assert!(of(&HashSet::from([u64::MAX])).is_empty());
    }

    #[test]
    fn a_thread_that_looks_is_running() {
        let doing = threads(std::process::id());
        assert!(doing.get("R").is_some_and(|count| *count >= 1), "{doing:?}");
        assert!(threads(u32::MAX).is_empty());
    }

    #[test]
    fn files_above_the_limit_take_no_place_below_it() {
        assert_eq!(numbered_below(20, [0, 1, 2, 19, 20, 64].into_iter()), 4);
        assert!(descriptors(std::process::id()).is_some_and(|all| all.open >= 3 && all.limit > 3));
    }

    #[test]
    fn only_links_to_sockets_count() {
        assert_eq!(socket("socket:[4711]"), Some(4711));
        assert_eq!(socket("pipe:[4711]"), None);
        assert_eq!(socket("/tmp/socket:[4711]"), None);
    }
}
