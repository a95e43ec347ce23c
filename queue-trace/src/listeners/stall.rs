//! Takes the evidence why an application does not accept, of the owners of listeners in trouble
//! and of nobody else: what their threads do, what their cgroups and the host let them do, and who
//! polls the socket. All of it is text in /proc and in the file systems of the cgroups. Nothing is
//! stopped, traced, or read of anybody's memory.
//!
//! A look is bounded, see [`PROCESSES`] and [`THREADS`]. What was read is kept until the next look,
//! so that numbers are of the time in between. What follows from it is for
//! [`cause`](crate::model::stall::cause).

mod calls;
mod groups;
mod polled;
mod threads;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use self::{
    groups::{Cgroups, Levels, Reading},
    polled::Polled,
    threads::{ThreadClock, ThreadsSeen},
};
use crate::{
    kernel::text::text,
    listeners::owners,
    model::{
        snapshot::Snapshot,
        stall::{Doing, Epoll, Stall, cause::conclude},
    },
};

/// Of so many processes a look takes the evidence at most, all listeners together.
pub const PROCESSES: usize = 8;
/// And of so many threads.
pub const THREADS: usize = 256;
/// A reading of so short a time ago says nothing about rates.
const SOONEST: Duration = Duration::from_millis(250);
/// An older one is of another episode.
const STALE: Duration = Duration::from_secs(30);

/// What was read last, of whom there is trouble.
#[derive(Debug)]
pub struct Stalls {
    proc: PathBuf,
    cgroups: Cgroups,
    /// Of each thread, how long it has run and waited.
    clocks: HashMap<(u32, u64), ThreadClock>,
    /// Of each process, what its cgroups and the host counted.
    readings: HashMap<u32, Reading>,
    read_at: Option<Instant>,
}

impl Default for Stalls {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            cgroups: Cgroups::default(),
            clocks: HashMap::new(),
            readings: HashMap::new(),
            read_at: None,
        }
    }
}

/// What is left of the bounds of a look.
struct Bounds {
    processes: usize,
    threads: usize,
}

/// What was read of a process in this look.
#[derive(Debug)]
struct Holder {
    seen: ThreadsSeen,
    polled: Polled,
    levels: Levels,
    reading: Reading,
}

impl Stalls {
    /// Adds the evidence to the listeners that are in trouble.
    pub fn look(&mut self, rows: &mut [Snapshot]) {
        let mut stalled: Vec<_> = rows.iter_mut().filter(|row| row.is_stalled()).collect();
        if stalled.is_empty() {
            self.clocks.clear();
            self.readings.clear();
            self.read_at = None;
            return;
        }
        let now = Instant::now();
        let since = self.read_at.map(|before| now - before);
        // Of a moment there are no rates: what was read before it stays, for the next look.
        let too_soon = since.is_some_and(|since| since < SOONEST);
        let usable = since.filter(|since| !too_soon && *since < STALE);
        let over_us = usable.and_then(|since| u64::try_from(since.as_micros()).ok());
        if over_us.is_none() && !too_soon {
            self.clocks.clear();
            self.readings.clear();
        }
        let mut room = Bounds {
            processes: PROCESSES,
            threads: THREADS,
        };
        // The worst first, while there is room.
        stalled.sort_by_key(|row| {
            let waits = row
                .depth()
                .unwrap_or(0)
                .saturating_sub(row.limit().unwrap_or(0));
            std::cmp::Reverse((row.is_full(), waits, row.oldest_waiting_us))
        });
        let mut found: HashMap<u32, Result<Holder, String>> = HashMap::new();
        for row in stalled {
            self.one(row, over_us, &mut room, &mut found);
        }
        if too_soon {
            return;
        }
        self.read_at = Some(now);
        self.clocks = clocks(&found);
        let readings = found.into_iter();
        self.readings = readings
            .filter_map(|(pid, process)| Some((pid, process.ok()?.reading)))
            .collect();
    }

    fn one(
        &mut self,
        row: &mut Snapshot,
        over_us: Option<u64>,
        room: &mut Bounds,
        found: &mut HashMap<u32, Result<Holder, String>>,
    ) {
        let Some(inode) = row.listener.inode else {
            return;
        };
        let pids: Vec<_> = row.processes.iter().flatten().map(|one| one.pid).collect();
        // Of one that was in no trouble before nothing is known from then.
        let over_us = over_us.filter(|_| pids.iter().any(|pid| self.readings.contains_key(pid)));
        let mut stall = Stall {
            over_us,
            holders: u32::try_from(pids.len()).unwrap_or(u32::MAX),
            ..Stall::default()
        };
        let mut evidence = Evidence::default();
        for pid in &pids {
            if !found.contains_key(pid) {
                if room.processes == 0 || room.threads == 0 {
                    break;
                }
                let process = self.process(*pid, room);
                found.insert(*pid, process);
            }
            match &found[pid] {
                Ok(process)
                    if !process.polled.sockets.contains_key(&inode) && process.polled.all =>
                {
                    let gone = format!(
                        "process {pid} does not hold the socket (any more), or is another one in this PID namespace"
                    );
                    push(&mut stall.unread, gone);
                }
                Ok(process) => {
                    stall.looked += 1;
                    self.add(&mut stall, &mut evidence, *pid, process, inode);
                }
                Err(why) => push(&mut stall.unread, why.clone()),
            }
        }
        if pids.is_empty() {
            push(
                &mut stall.unread,
                nobody(is_first_pid_namespace()).to_owned(),
            );
        }
        threads::find_masters(&mut evidence.doing, &evidence.parents);
        stall.doing = threads::grouped(evidence.doing, over_us);
        stall.epoll = evidence.epoll;
        if evidence.thawed {
            stall.frozen_by = None;
        }
        (stall.files, stall.host_pressure) = self.host(over_us, found);
        if let Some(files) = &mut stall.files {
            files.exempt = stall.looked > 0 && !evidence.bound;
        }
        if row.threads.is_none() && stall.looked > 0 && row.is_full() {
            row.threads = Some(threads::told(&stall.doing));
        }
        if row.descriptors.is_none() && row.is_full() {
            let all = pids
                .iter()
                .filter(|pid| matches!(found.get(*pid), Some(Ok(_))));
            let all = all.filter_map(|pid| owners::descriptors(*pid));
            row.descriptors = all.min_by_key(|one| one.limit.saturating_sub(one.open));
        }
        row.stall = Some(Box::new(stall));
        let cause = conclude(row).map(|conclusion| conclusion.cause.name.to_owned());
        if let Some(stall) = &mut row.stall {
            stall.cause = cause;
        }
    }

    /// Reads all of a process.
    fn process(&mut self, pid: u32, room: &mut Bounds) -> Result<Holder, String> {
        room.processes -= 1;
        let folder = self.proc.join(pid.to_string());
        let polled =
            Polled::read(&folder).map_err(|error| unreadable("open files", pid, &error))?;
        let seen = ThreadsSeen::read(&folder, pid, room.threads)
            .map_err(|error| unreadable("threads", pid, &error))?;
        room.threads -= seen.threads.len().min(room.threads);
        let levels = self.cgroups.of_process(&folder);
        let reading = Reading::read(&levels, &self.proc);
        Ok(Holder {
            seen,
            polled,
            levels,
            reading,
        })
    }

    /// Adds what was read of one that holds the socket.
    fn add(
        &self,
        stall: &mut Stall,
        evidence: &mut Evidence,
        pid: u32,
        process: &Holder,
        inode: u64,
    ) {
        let Holder {
            seen,
            polled,
            levels,
            reading,
        } = process;
        evidence.parents.extend(seen.parent);
        stall.threads = stall.threads.saturating_add(seen.all);
        stall.threads_looked += u32::try_from(seen.threads.len()).unwrap_or(u32::MAX);
        for thread in &seen.threads {
            let before = self.clocks.get(&(thread.tid, thread.started));
            // A thread that came meanwhile has run since then only.
            let began = self.readings.contains_key(&pid).then(ThreadClock::default);
            let before = before.copied().or(began);
            evidence
                .doing
                .push(thread.doing(pid, (before, stall.over_us), polled, inode));
        }
        if let Some(here) = polled.of(inode) {
            let sum = evidence.epoll.get_or_insert_default();
            sum.registered += here.registered;
            sum.armed += here.armed;
            sum.edge += here.edge;
        }
        if stall.tracer.is_none() {
            stall.tracer.clone_from(&seen.tracer);
        }
        evidence.bound |= !seen.exempt;
        let notes = seen
            .unread
            .iter()
            .chain(&polled.unread)
            .chain(&levels.unread);
        for note in notes.chain(&reading.unread) {
            push(&mut stall.unread, note.clone());
        }
        evidence.thawed |= !reading.is_frozen();
        let before = self.readings.get(&pid);
        reading.add_to(before, stall);
    }

    /// What the whole host lets applications do.
    fn host(
        &self,
        over_us: Option<u64>,
        found: &HashMap<u32, Result<Holder, String>>,
    ) -> (
        Option<crate::model::stall::Files>,
        Option<crate::model::stall::Pressure>,
    ) {
        let files = groups::files(&self.proc);
        let first = found
            .iter()
            .find_map(|(pid, process)| Some((*pid, &process.as_ref().ok()?.reading)));
        let pressure = first
            .filter(|_| over_us.is_some())
            .and_then(|(pid, reading)| {
                let before = self.readings.get(&pid)?;
                reading.host_pressure(before)
            });
        (files, pressure)
    }
}

/// What the processes that hold a socket have in common.
#[derive(Default)]
struct Evidence {
    doing: Vec<Doing>,
    /// Who started them.
    parents: HashSet<u32>,
    epoll: Option<Epoll>,
    /// Whether one of them is in no cgroup that is frozen.
    thawed: bool,
    /// Whether the host's limit of open files holds for one of them.
    bound: bool,
}

fn clocks(found: &HashMap<u32, Result<Holder, String>>) -> HashMap<(u32, u64), ThreadClock> {
    let processes = found.values().filter_map(|process| process.as_ref().ok());
    let threads = processes.flat_map(|process| &process.seen.threads);
    threads
        .filter_map(|thread| Some(((thread.tid, thread.started), thread.clock?)))
        .collect()
}

/// Whether the processes of the whole host are in our PID namespace.
fn is_first_pid_namespace() -> bool {
    /// `PROC_PID_INIT_INO` (include/linux/proc_ns.h).
    const FIRST: &str = "pid:[4026531836]";
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == FIRST)
}

/// That no process is known which holds the socket, as a sentence.
fn nobody(all_seen: bool) -> &'static str {
    if all_seen {
        "no process is known that holds the socket"
    } else {
        "no process is known that holds the socket, and only those of this PID namespace can be (run queue-trace in that of the host)"
    }
}

/// Why something of a process cannot be read, as a sentence.
fn unreadable(what: &str, pid: u32, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::NotFound {
        return format!("the {what} of process {pid} cannot be read: {error}");
    }
    let mounts = text(Path::new("/proc/self/mountinfo")).unwrap_or_default();
    let why = if hides_processes(&mounts) {
        "/proc hides the processes of others (hidepid), or it has ended"
    } else {
        "it has ended, or it is of another PID namespace"
    };
    format!("process {pid} cannot be looked at: {why}")
}

/// Whether /proc shows only processes that its reader may trace, from the text of mountinfo.
fn hides_processes(mountinfo: &str) -> bool {
    const HIDING: [&str; 4] = [
        "hidepid=2",
        "hidepid=4",
        "hidepid=invisible",
        "hidepid=ptraceable",
    ];
    // The mount that was put on top of others is the last one.
    let of_proc = |line: &&str| line.split(' ').nth(4) == Some("/proc");
    let options = mountinfo.lines().rfind(of_proc);
    let options = options.and_then(|line| line.rsplit(' ').next());
    options.is_some_and(|options| options.split(',').any(|one| HIDING.contains(&one)))
}

/// Once, and no more than are kept.
fn push(notes: &mut Vec<String>, note: String) {
    if notes.len() < Stall::MOST && !notes.contains(&note) {
        notes.push(note);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::{fd::AsRawFd, unix::fs::MetadataExt},
        thread,
    };

    use super::*;
    use crate::model::{
        snapshot::Gauge,
        socket::{Listener, Process},
    };

    fn full(inode: u64, pids: &[u32]) -> Snapshot {
        let process = |pid: &u32| Process {
            pid: *pid,
            comm: "server".to_owned(),
        };
        Snapshot {
            listener: Listener {
                inode: Some(inode),
                ..Listener::default()
            },
            processes: Some(pids.iter().map(process).collect()),
            accept_queue: Some(Gauge {
                depth: Some(9),
                limit: Some(8),
                ..Gauge::default()
            }),
            ..Snapshot::default()
        }
    }

    /// Looks at one listener.
    fn stall(stalls: &mut Stalls, row: &Snapshot) -> Stall {
        let mut rows = [row.clone()];
        stalls.look(&mut rows);
        let [row] = rows;
        *row.stall.unwrap()
    }

    #[test]
    fn only_those_in_trouble_are_looked_at() {
        let mut well = full(1, &[std::process::id()]);
        well.accept_queue = None;
        let mut stalls = Stalls::default();
        let mut rows = [well];
        stalls.look(&mut rows);
        assert_eq!(rows[0].stall, None);
        assert!(stalls.clocks.is_empty() && stalls.read_at.is_none());
    }

    /// Ourselves: the first look has no rates, nor has one a moment later.
    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let path = format!("/proc/self/fd/{}", listener.as_raw_fd());
        let inode = fs::metadata(path).unwrap().ino();
        let row = full(inode, &[std::process::id()]);
        let mut stalls = Stalls::default();
        let first = stall(&mut stalls, &row);
        assert_eq!((first.over_us, first.holders, first.looked), (None, 1, 1));
        assert!(first.threads >= 1 && first.threads_looked >= 1);
        assert!(first.doing.iter().all(|one| one.run_us.is_none()));
        assert_eq!(stall(&mut stalls, &row).over_us, None);
        thread::sleep(SOONEST);
        let later = stall(&mut stalls, &row);
        assert!(later.over_us >= Some(250_000), "{later:?}");
        assert!(later.doing.iter().all(|one| one.run_us <= later.over_us));
        // Another one is in trouble now, of which nothing is known from before.
        thread::sleep(SOONEST);
        assert_eq!(stall(&mut stalls, &full(inode, &[1])).over_us, None);
        // All is well again.
        stalls.look(&mut []);
        assert!(stalls.readings.is_empty());
    }

    #[test]
    fn a_proc_that_hides_processes() {
        let before = "22 28 0:20 / /proc rw,nosuid - proc proc rw\n";
        let hides = |options: &str| {
            let over = format!("{before}90 22 0:60 / /proc rw,relatime - proc proc {options}\n");
            hides_processes(&over)
        };
        assert!(hides("rw,hidepid=invisible") && hides("rw,gid=4,hidepid=2"));
        assert!(!hides("rw") && !hides("rw,hidepid=noaccess"));
        assert!(!hides_processes(before) && !hides_processes(""));
        let denied = io::ErrorKind::PermissionDenied.into();
        let words = unreadable("threads", 7, &denied);
        assert!(words.starts_with("the threads of process 7 cannot be read: "));
    }

    #[test]
    fn what_cannot_be_looked_at_is_said() {
        let mut stalls = Stalls::default();
        let nobody = stall(&mut stalls, &full(1, &[]));
        assert!(
            nobody.unread[0].contains("no process is known"),
            "{nobody:?}"
        );
        // A number that is another process in this PID namespace.
        let other = stall(&mut stalls, &full(1, &[std::process::id()]));
        assert_eq!(other.looked, 0);
        assert!(
            other.unread[0].contains("does not hold the socket"),
            "{other:?}"
        );
        let gone = stall(&mut stalls, &full(1, &[u32::MAX]));
        assert!(gone.unread[0].contains("it has ended"), "{gone:?}");
        // No more than the bound.
        let mut many = Stalls::default();
        let all: Vec<_> = (0..20).map(|pid| u32::MAX - pid).collect();
        let found = stall(&mut many, &full(1, &all));
        assert_eq!((found.holders, found.unread.len()), (20, PROCESSES));
    }
}
