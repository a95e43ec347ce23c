//! Network namespaces of this machine: which there are, the ways into each, and their
//! counters. Holds none of them open, so it keeps none alive.

#![expect(unsafe_code, reason = "an ioctl and a socket option that no crate has")]

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::{self, DirEntry, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{ffi::OsStringExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

use crate::{
    kernel::text::text,
    model::{front::FrontTexts, ledger::Counters},
};

/// The ways into a namespace. Each of them may end at any time: a process ends, a name is
/// removed. The namespace can be entered as long as one of them is left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetnsPath {
    ways: Vec<PathBuf>,
}

/// Ways that are kept of one namespace. Those of the oldest processes are found first.
const WAYS: usize = 8;

/// This process's own namespace.
const OWN: &str = "/proc/self/ns/net";

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

/// All namespaces that can be found: our own, those mounted somewhere, as `ip netns` and
/// container runtimes do to name them, and those of processes and of their threads.
#[must_use]
pub fn list() -> BTreeMap<u32, NetnsPath> {
    let mut found = BTreeMap::new();
    if let Ok(id) = own() {
        add(&mut found, id, PathBuf::from(OWN));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for (id, path) in mounts.lines().filter_map(mounted) {
        add(&mut found, id, path);
    }
    for process in numbered("/proc") {
        add_ways(&mut found, &process.path());
    }
    found
}

/// The namespaces that a process and its threads are in.
#[must_use]
pub fn of_process(pid: u32) -> BTreeMap<u32, NetnsPath> {
    let mut found = BTreeMap::new();
    add_ways(&mut found, &Path::new("/proc").join(pid.to_string()));
    found
}

/// Those of a process, by its folder, and of its threads.
fn add_ways(found: &mut BTreeMap<u32, NetnsPath>, process: &Path) {
    add_way(found, process.join("ns/net"));
    // A thread may have left the namespace of its process.
    let tasks = process.join("task");
    if fs::metadata(&tasks).is_ok_and(|tasks| tasks.nlink() > ONE_THREAD) {
        for thread in numbered(tasks) {
            add_way(found, thread.path().join("ns/net"));
        }
    }
}

/// Links to `/proc/PID/task` of a process with one thread: two of any folder, one for
/// each thread (`proc_task_getattr`, fs/proc/base.c).
const ONE_THREAD: u64 = 3;

/// The entries of a folder whose names are numbers.
fn numbered(folder: impl AsRef<Path>) -> impl Iterator<Item = DirEntry> {
    let is_number = |entry: &DirEntry| {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        !name.is_empty() && name.iter().all(u8::is_ascii_digit)
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(is_number)
}

fn add_way(found: &mut BTreeMap<u32, NetnsPath>, path: PathBuf) {
    // What has ended meanwhile, or may not be looked at, leads nowhere.
    if let Ok(link) = fs::read_link(&path)
        && let Some(id) = link.to_str().and_then(number)
    {
        add(found, id, path);
    }
}

fn add(found: &mut BTreeMap<u32, NetnsPath>, id: u32, path: PathBuf) {
    match found.entry(id) {
        Entry::Vacant(place) => {
            place.insert(NetnsPath::at(path));
        }
        Entry::Occupied(mut place) => place.get_mut().add(path),
    }
}

/// The namespace that a line of `/proc/self/mountinfo` mounts, if it mounts one:
/// fields 4 and 5 are `net:[NUMBER]` and where it is.
fn mounted(line: &str) -> Option<(u32, PathBuf)> {
    let mut fields = line.split(' ').skip(3);
    let id = number(fields.next()?)?;
    Some((id, unescaped(fields.next()?)))
}

/// A path of `/proc/self/mountinfo`, which has white space and the backslash as a backslash
/// and three octal digits (`mangle_path`, fs/seq_file.c).
fn unescaped(path: &str) -> PathBuf {
    let mut rest = path.as_bytes();
    let mut bytes = Vec::with_capacity(rest.len());
    while let [first, after @ ..] = rest {
        let octal = after.first_chunk::<3>().filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
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
    id(Path::new(OWN))
}

impl NetnsPath {
    /// One way.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { ways: vec![path] }
    }

    /// One more way, as far as there is room.
    pub fn add(&mut self, path: PathBuf) {
        if self.ways.len() < WAYS {
            self.ways.push(path);
        }
    }

    /// Opens it by the first way that still leads to the namespace of that number. `Err`: of the
    /// ways that exist, why the first one could not be used; else not found.
    fn open(&self, netns: u32) -> io::Result<File> {
        let mut why: io::Error = io::ErrorKind::NotFound.into();
        for way in &self.ways {
            let opened = File::open(way).and_then(|namespace| {
                if id_of(&namespace)? == netns {
                    Ok(namespace)
                } else {
                    Err(io::ErrorKind::NotFound.into())
                }
            });
            match opened {
                Ok(namespace) => return Ok(namespace),
                Err(error) if is_gone(&error) => {}
                Err(error) if is_gone(&why) => why = error,
                Err(_) => {}
            }
        }
        Err(why)
    }
}

/// Whether an error says that a namespace, or the way into it, is not there (any more). A
/// process that has ended and was not waited for has no namespaces, but still a folder.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL))
}

/// Does `work` inside a namespace, in a thread that enters it and ends.
///
/// # Errors
/// If the namespace is gone, or may not be entered.
pub fn inside<R: Send>(
    netns: u32,
    path: &NetnsPath,
    work: impl FnOnce() -> io::Result<R> + Send,
) -> io::Result<R> {
    if own().is_ok_and(|own| own == netns) {
        // Takes no privilege.
        return work();
    }
    let namespace = path.open(netns)?;
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

/// Does `work` inside each of these namespaces, one after the other, in one thread that enters
/// them and ends. `None` ends it: what is left is of no interest any more.
pub fn each_inside<'a, R: Send>(
    namespaces: impl Iterator<Item = (u32, &'a NetnsPath)> + Send,
    mut work: impl FnMut(u32) -> Option<io::Result<R>> + Send,
) -> Vec<(u32, io::Result<R>)> {
    let own = own().ok();
    let mut done = Vec::new();
    let mut others = Vec::new();
    for (id, path) in namespaces {
        if own != Some(id) {
            others.push((id, path));
            continue;
        }
        // Takes no privilege.
        let Some(result) = work(id) else {
            return done;
        };
        done.push((id, result));
    }
    if others.is_empty() {
        return done;
    }
    let numbers: Vec<_> = others.iter().map(|(id, _)| *id).collect();
    let visit = || {
        let mut visited = Vec::with_capacity(others.len());
        for (id, path) in others {
            let entered = path.open(id).and_then(|namespace| {
                let kind = Some(LinkNameSpaceType::Network);
                Ok(move_into_link_name_space(namespace.as_fd(), kind)?)
            });
            let result = match entered {
                Ok(()) => work(id),
                Err(error) => Some(Err(error)),
            };
            let Some(result) = result else {
                break;
            };
            visited.push((id, result));
        }
        visited
    };
    let visited = thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, visit)?;
        let panicked = |_| io::Error::other("the thread in the namespaces panicked");
        thread.join().map_err(panicked)
    });
    match visited {
        Ok(visited) => done.extend(visited),
        Err(error) => {
            let same = || io::Error::new(error.kind(), error.to_string());
            done.extend(numbers.into_iter().map(|id| (id, Err(same()))));
        }
    }
    done
}

/// What tells the calling thread's namespace from an earlier one that had its number; `None`
/// before Linux 5.14, which does not tell.
fn own_cookie() -> io::Result<Option<u64>> {
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
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOPROTOOPT) => Ok(None),
            _ => Err(error),
        };
    }
    Ok(Some(cookie))
}

/// A namespace's cookie, which tells it from an earlier one that had its number (`None` before
/// Linux 5.14, which has none), and its counters.
pub type CookieAndCounters = (Option<u64>, Counters);

/// The cookies of namespaces and their counters. It ends as soon as `goes_on` does not hold.
pub fn audited<'a>(
    namespaces: impl Iterator<Item = (u32, &'a NetnsPath)> + Send,
    goes_on: impl Fn() -> bool + Send + Sync,
) -> Vec<(u32, io::Result<CookieAndCounters>)> {
    let own = || Ok((own_cookie()?, parsed(&counter_texts("/proc/thread-self")?)?));
    each_inside(namespaces, |_| goes_on().then(own))
}

/// What a thread shows of its namespace's counters.
fn counter_texts(folder: &str) -> io::Result<[String; 3]> {
    let file = |name: &str| text(format!("{folder}/net/{name}").as_ref());
    let xfrm = match file("xfrm_stat") {
        // A kernel without IPsec.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
    Ok([file("netstat")?, file("snmp")?, xfrm])
}

fn parsed(texts: &[String; 3]) -> io::Result<Counters> {
    let [netstat, snmp, xfrm] = texts;
    Counters::parse(FrontTexts {
        netstat,
        snmp,
        xfrm,
    })
    .ok_or_else(|| io::Error::other("/proc/net/netstat has no TcpExt section"))
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsStr,
        os::unix::ffi::OsStrExt,
        process::{Command, Stdio},
    };

    use super::*;

    fn audited_one(netns: u32, path: &NetnsPath) -> io::Result<CookieAndCounters> {
        let mut all = audited(std::iter::once((netns, path)), || true);
        let (told, audited) = all.pop().unwrap();
        assert_eq!(told, netns);
        audited
    }

    #[test]
    fn our_own_namespace_is_found_with_its_counters() {
        let own = own().unwrap();
        let all = list();
        let path = all
            .get(&own)
            .expect("our own namespace is among those listed");
        assert_eq!(path.ways[0], Path::new(OWN));
        let (cookie, _) = audited_one(own, path).unwrap();
        assert_eq!(cookie, own_cookie().unwrap());
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
        let (id, path) = mounted(line).unwrap();
        assert_eq!(
            (id, path.as_path()),
            (4_026_532_177, Path::new("/run/netns/blue"))
        );
        let other = "28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw";
        assert_eq!(mounted(other), None);
    }

    #[test]
    fn paths_with_white_space_are_read_as_the_kernel_writes_them() {
        for (written, meant) in [
            (r"/run/netns/odd\040name", b"/run/netns/odd name".as_slice()),
            (r"/a\011b\012c\134d\134", b"/a\tb\nc\\d\\"),
            (r"/not\09 \04", br"/not\09 \04"),
        ] {
            assert_eq!(unescaped(written).as_os_str(), OsStr::from_bytes(meant));
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_noticed() {
        let path = NetnsPath::at(OWN.into());
        let error = audited_one(1, &path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn one_way_that_is_left_is_enough() {
        let own = own().unwrap();
        let mut ended = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
        let ways = [
            "/run/netns/nobody has this name".into(),
            format!("/proc/{}/ns/net", ended.id()).into(),
            "/proc/self/ns/net".into(),
        ];
        // Ended, and not waited for: its folder is still there.
        let stat = format!("/proc/{}/stat", ended.id());
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
            thread::yield_now();
        }
        let mut path = NetnsPath::default();
        assert!(is_gone(&path.open(own).unwrap_err()));
        for way in ways {
            path.add(way);
        }
        path.open(own).unwrap();
        ended.wait().unwrap();
    }
}
