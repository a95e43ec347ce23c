//! Who waits for a socket by epoll, and which open files a process has: from `/proc/PID/fd` and
//! `fdinfo`. Of a process with very many files only the first are looked at, as the kernel holds
//! the lock of an epoll while it lists what is registered there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::Path,
};

use rustix::{
    fs::{Dir, readlinkat},
    io::Errno,
};

use crate::{kernel::text::text, model::stall::Epoll};

/// So many open files of a process are looked at, those with the lowest numbers.
const FILES: usize = 1024;
/// So many epolls of it.
const EPOLLS: usize = 16;

/// `EPOLLIN` and `EPOLLET` (include/uapi/linux/eventpoll.h).
const EPOLLIN: u32 = 1;
const EPOLLET: u32 = 1 << 31;

/// The open files of a process, as far as this is about waiting.
#[derive(Debug, Default)]
pub struct Polled {
    /// By inode number of a socket, its file descriptors.
    pub sockets: BTreeMap<u64, BTreeSet<u32>>,
    /// By file descriptor of an epoll, what is registered there.
    pub epolls: BTreeMap<u32, Vec<Registered>>,
    /// What a file descriptor is.
    pub files: BTreeMap<u32, String>,
    /// Whether all of its files were looked at.
    pub all: bool,
    /// What was not looked at, a sentence each.
    pub unread: Vec<String>,
}

/// A file registered with an epoll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// Its file descriptor when it was registered.
    pub fd: u32,
    /// What is asked for.
    pub events: u32,
    /// Its inode number, where the kernel tells (5.2).
    pub inode: Option<u64>,
}

impl Polled {
    /// Of the process whose folder in /proc this is.
    ///
    /// # Errors
    /// If its open files may not be listed, or it is gone.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let mut polled = Self {
            all: true,
            ..Self::default()
        };
        let mut epolls = Vec::new();
        // By the open folder, so that the way to it is not walked for each file.
        let files = File::open(folder.join("fd"))?;
        let mut link = Vec::new();
        let mut looked = 0;
        for file in Dir::read_from(&files)?.flatten() {
            let Some(fd) = file
                .file_name()
                .to_str()
                .ok()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            if looked == FILES {
                polled.all = false;
                polled.unread.push(format!(
                    "only the first {FILES} open files of a process were looked at, for epoll"
                ));
                break;
            }
            looked += 1;
            let read = match readlinkat(&files, file.file_name(), link) {
                Ok(read) => read,
                // The list may be read, and what is in it not.
                Err(error @ (Errno::ACCESS | Errno::PERM)) => return Err(error.into()),
                Err(_) => {
                    link = Vec::new();
                    continue;
                }
            };
            let target = read.to_string_lossy();
            let inode = target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'));
            if let Some(inode) = inode.and_then(|inode| inode.parse().ok()) {
                polled.sockets.entry(inode).or_default().insert(fd);
            } else if target == "anon_inode:[eventpoll]" {
                epolls.push(fd);
            }
            polled.files.insert(fd, kind(&target));
            link = read.into_bytes();
        }
        if !polled.all {
            return Ok(polled);
        }
        if epolls.len() > EPOLLS {
            polled.all = false;
            polled.unread.push(format!(
                "only {EPOLLS} of {} epolls of a process were looked at",
                epolls.len()
            ));
        }
        for fd in epolls.into_iter().take(EPOLLS) {
            match text(&folder.join("fdinfo").join(fd.to_string())) {
                Ok(info) => {
                    polled.epolls.insert(fd, registered(&info));
                }
                Err(error) => {
                    polled.all = false;
                    polled
                        .unread
                        .push(format!("what an epoll waits for cannot be read: {error}"));
                }
            }
        }
        Ok(polled)
    }

    /// Whether the epoll of this descriptor is asked for connections of this socket.
    pub fn has(&self, epoll: u32, inode: u64) -> Option<bool> {
        let all = self.epolls.get(&epoll)?;
        let asks = |one: &Registered| one.events & EPOLLIN != 0 && self.is(one, inode);
        Some(all.iter().any(asks))
    }

    fn is(&self, one: &Registered, inode: u64) -> bool {
        match one.inode {
            Some(known) => known == inode,
            None => self
                .sockets
                .get(&inode)
                .is_some_and(|fds| fds.contains(&one.fd)),
        }
    }

    /// The registrations of a socket; `None` if not all were looked at.
    pub fn of(&self, inode: u64) -> Option<Epoll> {
        if !self.all {
            return None;
        }
        let mut sum = Epoll::default();
        let all = self.epolls.values().flatten();
        for one in all.filter(|one| self.is(one, inode)) {
            let armed = u32::from(one.events & EPOLLIN != 0);
            sum.registered += 1;
            sum.armed += armed;
            sum.edge += armed * u32::from(one.events & EPOLLET != 0);
        }
        Some(sum)
    }
}

/// What a link in `fd` leads to, in a word.
fn kind(link: &str) -> String {
    match link.split_once(":[") {
        Some(("socket", _)) => "a socket".to_owned(),
        Some(("pipe", _)) => "a pipe".to_owned(),
        Some(("anon_inode", what)) => what.trim_end_matches(']').to_owned(),
        _ => link.to_owned(),
    }
}

/// The lines of an epoll's fdinfo: `tfd: 5 events: 19 data: 5 pos:0 ino:15f009 sdev:9`.
fn registered(info: &str) -> Vec<Registered> {
    let one = |line: &str| {
        let rest = line.strip_prefix("tfd:")?;
        let mut words = rest.split_whitespace();
        let fd = words.next()?.parse().ok()?;
        let mut found = Registered {
            fd,
            events: 0,
            inode: None,
        };
        while let Some(word) = words.next() {
            match word.split_once(':') {
                Some(("events", "")) => {
                    found.events = u32::from_str_radix(words.next()?, 16).ok()?;
                }
                Some(("ino", inode)) => found.inode = u64::from_str_radix(inode, 16).ok(),
                _ => {}
            }
        }
        Some(found)
    };
    info.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_epoll() {
        let old =
            "pos:\t0\nflags:\t02000002\ntfd:        3 events:       19 data:                3\n";
        let new = "tfd:        4 events: 80000019 data: 4  pos:0 ino:15f009 sdev:9\ntfd: x\n";
        let one = |fd, events, inode| Registered { fd, events, inode };
        assert_eq!(registered(old), [one(3, 0x19, None)]);
        assert_eq!(registered(new), [one(4, 0x8000_0019, Some(0x15_f009))]);
        let polled = Polled {
            sockets: [(77, [3].into())].into(),
            epolls: [(9, registered(old)), (10, registered(new))].into(),
            all: true,
            ..Polled::default()
        };
        assert_eq!(polled.has(9, 77), Some(true));
        assert_eq!(polled.has(10, 77), Some(false));
        assert_eq!(polled.has(11, 77), None);
        let epoll = |registered, armed, edge| {
            Some(Epoll {
                registered,
                armed,
                edge,
            })
        };
        assert_eq!(polled.of(77), epoll(1, 1, 0));
        assert_eq!(polled.of(0x15_f009), epoll(1, 1, 1));
        assert_eq!(polled.of(78), epoll(0, 0, 0));
    }

    #[test]
    fn our_own_epoll() {
        use std::os::{fd::AsRawFd, unix::fs::MetadataExt};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let path = format!("/proc/self/fd/{}", listener.as_raw_fd());
        let inode = std::fs::metadata(path).unwrap().ino();
        let of = || {
            let polled = Polled::read(Path::new("/proc/self")).unwrap();
            assert!(polled.sockets.contains_key(&inode));
            polled.of(inode).unwrap()
        };
        assert_eq!(of().registered, 0);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        // Its runtime has two descriptors of one epoll.
        let told = of();
        assert!(told.registered > 0, "{told:?}");
        assert_eq!((told.armed, told.edge), (told.registered, told.registered));
        drop(listener);
    }
}
