//! What the threads of a process do, from `/proc/PID/task`: the state, the system call and the
//! kernel functions that they wait in, how long they ran and how long they waited for a CPU.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    io::Read,
    path::Path,
};

use super::{calls, polled::Polled};
use crate::{
    kernel::text::text,
    model::{
        socket::Process,
        stall::{Doing, Role, Stall},
    },
};

/// Kernel functions of a thread that are kept.
const FUNCTIONS: usize = 4;

/// The threads of a process.
#[derive(Debug, Default)]
pub struct ThreadsSeen {
    /// How many there are.
    pub all: u32,
    /// Those that were looked at.
    pub threads: Vec<Thread>,
    /// The process that started it.
    pub parent: Option<u32>,
    /// Who traces it.
    pub tracer: Option<Process>,
    /// Whether it may open more files than the host's limit.
    pub exempt: bool,
    /// What could not be read, a sentence each.
    pub unread: Vec<String>,
}

/// A thread.
#[derive(Debug, Default)]
pub struct Thread {
    /// Its number.
    pub tid: u32,
    /// When it started, in ticks since boot: tells it from an earlier one of its number.
    pub started: u64,
    parent: u32,
    /// How long it has run.
    pub clock: Option<ThreadClock>,
    main: bool,
    comm: String,
    state: String,
    call: Option<ThreadCall>,
    kernel: Vec<String>,
}

/// How long a thread has run, and has waited for a CPU, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThreadClock {
    run_ns: u64,
    delay_ns: u64,
    /// How often it was put on a CPU.
    turns: u64,
    /// Whether it could run at that moment.
    runnable: bool,
}

/// A system call and its first argument.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ThreadCall {
    name: String,
    first: u64,
}

impl ThreadsSeen {
    /// Of the process whose folder in /proc this is; so many threads at most.
    ///
    /// # Errors
    /// If its threads may not be listed, or it is gone.
    pub fn read(folder: &Path, pid: u32, most: usize) -> io::Result<Self> {
        let mut seen = Self::default();
        let named = !is_32_bit(folder);
        if !named {
            seen.unread.push(format!(
                "process {pid} is a 32-bit program: its system calls are not named"
            ));
        }
        let mut refused = None;
        for task in fs::read_dir(folder.join("task"))?.flatten() {
            seen.all = seen.all.saturating_add(1);
            if seen.threads.len() >= most {
                continue;
            }
            let Some(tid) = task.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // What ended meanwhile does nothing.
            if let Some(thread) = Thread::read(&task.path(), tid, tid == pid, named, &mut refused) {
                seen.parent = seen.parent.or(Some(thread.parent));
                seen.threads.push(thread);
            }
        }
        if let Some(error) = refused {
            seen.unread.push(format!(
                "what the threads of process {pid} wait for cannot be read: {error}"
            ));
        }
        let status = text(&folder.join("status")).unwrap_or_default();
        seen.exempt = is_admin(&status) && is_of_the_host(folder);
        if seen.threads.iter().any(|thread| thread.state == "t") {
            seen.tracer = number(&status, "TracerPid").map(|tid| tracer(folder, tid));
        }
        Ok(seen)
    }
}

impl Thread {
    fn read(
        folder: &Path,
        tid: u32,
        main: bool,
        named: bool,
        refused: &mut Option<io::Error>,
    ) -> Option<Self> {
        let mut thread = Self::of_stat(&text(&folder.join("stat")).ok()?)?;
        (thread.tid, thread.main) = (tid, main);
        thread.clock = text(&folder.join("schedstat"))
            .ok()
            .and_then(|text| ThreadClock::of(&text));
        if let Some(clock) = &mut thread.clock {
            clock.runnable = thread.state == "R";
        }
        if !matches!(thread.state.as_str(), "S" | "D" | "I" | "T" | "t") {
            return Some(thread);
        }
        if named {
            match text(&folder.join("syscall")) {
                Ok(call) => thread.call = ThreadCall::of(&call),
                // No such file: a kernel without it; no such process: it ended.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    *refused = Some(error);
                }
                Err(_) => {}
            }
        }
        if matches!(thread.state.as_str(), "S" | "D") {
            thread.kernel = kernel_functions(folder, thread.state == "D" || thread.call.is_none());
        }
        Some(thread)
    }

    /// The text of `stat`. The name is in brackets and may have any in it.
    fn of_stat(stat: &str) -> Option<Self> {
        let (front, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split_whitespace();
        Some(Self {
            comm: front.split_once(" (")?.1.to_owned(),
            state: fields.next()?.to_owned(),
            parent: fields.next()?.parse().ok()?,
            started: fields.nth(17)?.parse().ok()?,
            ..Self::default()
        })
    }

    /// What it does, where this listener is concerned.
    pub fn doing(
        &self,
        pid: u32,
        (before, over_us): (Option<ThreadClock>, Option<u64>),
        polled: &Polled,
        inode: u64,
    ) -> Doing {
        let call = self.call.as_ref();
        let fd = call
            .filter(|call| calls::is_about_file(&call.name))
            .and_then(|call| u32::try_from(call.first).ok());
        let role = call.and_then(|call| role(call, fd, polled, inode));
        let on = fd.filter(|_| role.is_none());
        let spent = self.clock.zip(before).zip(over_us);
        let spent = spent.map(|((now, before), over_us)| now.since(before, over_us));
        Doing {
            count: 1,
            pid,
            tid: self.tid,
            comm: self.comm.clone(),
            main: self.main,
            state: self.state.clone(),
            call: call.map(|call| call.name.clone()),
            on: on.and_then(|fd| polled.files.get(&fd).cloned()),
            role,
            kernel: self.kernel.clone(),
            run_us: spent.map(|(ran, _)| ran),
            delay_us: spent.map(|(_, waited)| waited),
        }
    }
}

impl ThreadClock {
    /// The text of `schedstat`.
    fn of(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        Some(Self {
            run_ns: words.next()?.parse().ok()?,
            delay_ns: words.next()?.parse().ok()?,
            turns: words.next()?.parse().ok()?,
            runnable: false,
        })
    }

    /// Microseconds for which it ran, and for which it waited for a CPU, since `before`. The kernel
    /// adds a wait when it is over: one that goes on is known by the turns that it did not get.
    fn since(self, before: Self, over_us: u64) -> (u64, u64) {
        let ran = self.run_ns.saturating_sub(before.run_ns) / 1000;
        let waited = self.delay_ns.saturating_sub(before.delay_ns) / 1000;
        let waits = self.runnable && before.runnable && self.turns == before.turns && ran == 0;
        let waited = if waits { over_us } else { waited };
        (ran.min(over_us), waited.min(over_us))
    }
}

impl ThreadCall {
    /// The text of `syscall`: number and arguments; `running`, or -1 outside of a call.
    fn of(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let number: libc::c_long = words.next()?.parse().ok().filter(|number| *number >= 0)?;
        let first = words.next()?.strip_prefix("0x")?;
        Some(Self {
            name: calls::name(number),
            first: u64::from_str_radix(first, 16).ok()?,
        })
    }
}

/// -1, as the first argument of wait4(), of which 32 bits count.
const ANY_CHILD: u64 = 0xffff_ffff;

fn role(call: &ThreadCall, fd: Option<u32>, polled: &Polled, inode: u64) -> Option<Role> {
    let takes = |yes| Some(if yes { Role::Takes } else { Role::Elsewhere });
    match call.name.as_str() {
        "accept" | "accept4" => {
            let fds = polled.sockets.get(&inode);
            takes(fds.is_some_and(|fds| fd.is_some_and(|fd| fds.contains(&fd))))
        }
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" => match polled.has(fd?, inode) {
            Some(has) => takes(has),
            // One that was made meanwhile.
            None => polled.all.then_some(Role::Elsewhere),
        },
        "rt_sigsuspend" | "rt_sigtimedwait" | "pause" => Some(Role::Master),
        // And P_ALL.
        "wait4" if call.first & ANY_CHILD == ANY_CHILD => Some(Role::Master),
        "waitid" if call.first == 0 => Some(Role::Master),
        _ => None,
    }
}

/// Calls in which the master of a server waits for what its workers tell it. Which files these are
/// about cannot be known without reading its memory.
const WAITS_FOR_FILES: [&str; 4] = ["select", "pselect6", "poll", "ppoll"];

/// Gives those the role of a master that wait for files while a process that they started holds the
/// socket as well: it is that one's work to accept.
pub fn find_masters(doing: &mut [Doing], parents: &HashSet<u32>) {
    for one in doing {
        let call = one.call.as_deref().unwrap_or_default();
        if one.role.is_none() && WAITS_FOR_FILES.contains(&call) && parents.contains(&one.pid) {
            one.role = Some(Role::Master);
        }
    }
}

/// The kernel functions that a thread waits in: all of them where we may see the stack, else the
/// innermost.
fn kernel_functions(folder: &Path, whole: bool) -> Vec<String> {
    let stack = whole.then(|| text(&folder.join("stack")).ok()).flatten();
    let functions = stack.map(|stack| functions(&stack)).unwrap_or_default();
    if !functions.is_empty() {
        return functions;
    }
    let place = text(&folder.join("wchan")).unwrap_or_default();
    // 0: it does not wait, or we may not know.
    match place.trim() {
        "" | "0" => Vec::new(),
        place => vec![place.to_owned()],
    }
}

/// Of the text of `stack`, without the ways into a system call.
fn functions(stack: &str) -> Vec<String> {
    const ENTRIES: [&str; 8] = [
        "do_syscall",
        "entry_",
        "__x64_sys_",
        "__arm64_sys_",
        "invoke_syscall",
        "el0",
        "x64_sys_call",
        "ret_from_fork",
    ];
    let name = |line: &str| {
        let (_, place) = line.split_once("] ")?;
        let name = place.split('+').next()?;
        let inner = !ENTRIES.iter().any(|entry| name.starts_with(entry));
        (inner && !name.contains("schedule")).then(|| name.to_owned())
    };
    stack.lines().filter_map(name).take(FUNCTIONS).collect()
}

/// A line of the text of `status`.
fn line<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.strip_prefix(':')?.trim())
}

/// A number of `status` that is not 0.
fn number(status: &str, name: &str) -> Option<u32> {
    let number = line(status, name)?.parse().ok();
    number.filter(|number| *number != 0)
}

/// The process of the thread that traces the one of this folder: `TracerPid` is the thread's.
fn tracer(folder: &Path, tid: u32) -> Process {
    let of = |id: u32, file: &str| text(&folder.with_file_name(id.to_string()).join(file));
    let status = of(tid, "status").unwrap_or_default();
    let pid = number(&status, "Tgid").unwrap_or(tid);
    let comm = of(pid, "comm").unwrap_or_default();
    Process {
        pid,
        comm: comm.trim_end().to_owned(),
    }
}

/// Whether it has `CAP_SYS_ADMIN` in its user namespace.
fn is_admin(status: &str) -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let effective = line(status, "CapEff").and_then(|set| u64::from_str_radix(set, 16).ok());
    effective.is_some_and(|set| set & CAP_SYS_ADMIN != 0)
}

/// Whether its user namespace is the first one, where capabilities are those of the host.
fn is_of_the_host(folder: &Path) -> bool {
    /// `PROC_USER_INIT_INO` (include/linux/proc_ns.h).
    const FIRST: &str = "user:[4026531837]";
    fs::read_link(folder.join("ns/user")).is_ok_and(|link| link.as_os_str() == FIRST)
}

/// Whether its program is one for 32 bits, of which calls have other numbers.
fn is_32_bit(folder: &Path) -> bool {
    let mut head = [0; 5];
    let read = fs::File::open(folder.join("exe")).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head == *b"\x7fELF\x01"
}

/// In what threads of a group are alike.
#[derive(PartialEq, Eq, Hash)]
struct Alike {
    state: String,
    call: Option<String>,
    on: Option<String>,
    role: Option<Role>,
    kernel: Vec<String>,
    main: bool,
    alone: Option<u32>,
}

/// Those that do the same together, those that say most first. One that was on the CPU for long
/// stands alone.
pub fn grouped(all: Vec<Doing>, over_us: Option<u64>) -> Vec<Doing> {
    let mut groups: HashMap<Alike, Doing> = HashMap::new();
    for one in all {
        let wanted = one.run_us.unwrap_or(0) + one.delay_us.unwrap_or(0);
        let alone = over_us.is_some_and(|over| wanted >= over / 4);
        let key = Alike {
            state: one.state.clone(),
            call: one.call.clone(),
            on: one.on.clone(),
            role: one.role,
            kernel: one.kernel.clone(),
            main: one.main,
            alone: alone.then_some(one.tid),
        };
        match groups.get_mut(&key) {
            Some(group) => {
                group.count += 1;
                if (one.run_us, one.delay_us) > (group.run_us, group.delay_us) {
                    *group = Doing {
                        count: group.count,
                        ..one
                    };
                }
            }
            None => {
                groups.insert(key, one);
            }
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|one| {
        let wanted = one.run_us.unwrap_or(0) + one.delay_us.unwrap_or(0);
        let alone = over_us.is_some_and(|over| wanted >= over / 4);
        let ran = if alone { wanted } else { 0 };
        let blocked = one.state == "D";
        (
            std::cmp::Reverse((ran, blocked, one.main, one.count)),
            one.tid,
        )
    });
    groups.truncate(Stall::MOST);
    groups
}

/// How many do what, as `threads` of a listener has it.
pub fn told(doing: &[Doing]) -> BTreeMap<String, u32> {
    let mut sum = BTreeMap::new();
    for one in doing {
        let place = one
            .kernel
            .first()
            .map_or(String::new(), |place| format!(" {place}"));
        *sum.entry(format!("{}{place}", one.state)).or_default() += one.count;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_and_a_clock() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        let thread = Thread::of_stat(&format!("7 (a ) (b)) {fields}")).unwrap();
        assert_eq!(
            (thread.comm.as_str(), thread.state.as_str()),
            ("a ) (b)", "S")
        );
        assert_eq!(thread.started, 4711);
        assert!(Thread::of_stat("7 (x) S 1").is_none());
        let at = |run_ns, delay_ns, turns| ThreadClock {
            run_ns,
            delay_ns,
            turns,
            runnable: true,
        };
        let read = ThreadClock::of("5000 7000 3\n").unwrap();
        assert_eq!(
            ThreadClock {
                runnable: true,
                ..read
            },
            at(5000, 7000, 3)
        );
        assert_eq!(at(9000, 9000, 4).since(at(4000, 10_000, 3), 100), (5, 0));
        // It got no turn, and still waits for one.
        assert_eq!(at(9000, 9000, 3).since(at(9000, 9000, 3), 100), (0, 100));
        // It slept, or got a turn.
        let asleep = ThreadClock {
            runnable: false,
            ..at(9000, 9000, 3)
        };
        assert_eq!(at(9000, 9000, 3).since(asleep, 100), (0, 0));
        assert_eq!(at(9000, 9000, 4).since(at(9000, 9000, 3), 100), (0, 0));
        // A wait that began before.
        assert_eq!(at(9000, 9_000_000, 4).since(at(9000, 0, 3), 100), (0, 100));
    }

    #[test]
    fn a_call_and_a_stack() {
        let futex = format!("{} 0x7f00 0x80 0x7ffd 0x7f93\n", libc::SYS_futex);
        let call = ThreadCall::of(&futex).unwrap();
        assert_eq!((call.name.as_str(), call.first), ("futex", 0x7f00));
        assert_eq!(ThreadCall::of("running\n"), None);
        assert_eq!(ThreadCall::of("-1 0x7ffd 0x7f93\n"), None);
        let stack = "[<0>] io_schedule+0x46/0x80\n[<0>] folio_wait_bit_common+0x13d/0x350\n\
                     [<0>] filemap_fault+0x1/0x2\n[<0>] do_syscall_64+0x71/0x280\n";
        assert_eq!(functions(stack), ["folio_wait_bit_common", "filemap_fault"]);
        let status = "Name:\tTracerPid\nTgid:\t7\nTracerPid:\t12\n";
        assert_eq!(number(status, "TracerPid"), Some(12));
        assert_eq!(number("TracerPid:\t0\n", "TracerPid"), None);
        assert!(is_admin("CapPrm:\t0\nCapEff:\t000001ffffffffff\n"));
        assert!(!is_admin(
            "CapPrm:\t000001ffffffffff\nCapEff:\t000001ffffdfffff\n"
        ));
        assert!(!is_admin("Name:\tCapEff\n"));
    }

    #[test]
    fn what_a_thread_waits_for() {
        let polled = Polled {
            sockets: [(77, [3].into())].into(),
            all: true,
            ..Polled::default()
        };
        let role = |name: &str, first: u64| {
            let call = ThreadCall {
                name: name.to_owned(),
                first,
            };
            role(&call, u32::try_from(first).ok(), &polled, 77)
        };
        assert_eq!(role("accept4", 3), Some(Role::Takes));
        assert_eq!(role("accept4", 4), Some(Role::Elsewhere));
        assert_eq!(role("epoll_wait", 9), Some(Role::Elsewhere));
        assert_eq!(role("wait4", 0xffff_ffff), Some(Role::Master));
        assert_eq!(role("wait4", 4711), None);
        assert_eq!(role("waitid", 0), Some(Role::Master));
        assert_eq!(role("futex", 0x7f00), None);
    }

    #[test]
    fn one_that_started_another_holder_and_waits_for_files_is_a_master() {
        let one = |pid, call: &str| Doing {
            pid,
            call: Some(call.to_owned()),
            ..Doing::default()
        };
        let mut doing = [one(7, "pselect6"), one(8, "pselect6"), one(7, "flock")];
        find_masters(&mut doing, &[1, 7].into());
        assert_eq!(doing.map(|one| one.role), [Some(Role::Master), None, None]);
    }

    #[test]
    fn threads_that_do_the_same_are_one_group() {
        let one = |tid, run_us| Doing {
            count: 1,
            tid,
            state: "S".to_owned(),
            call: Some("futex".to_owned()),
            run_us: Some(run_us),
            delay_us: Some(0),
            ..Doing::default()
        };
        let groups = grouped(vec![one(1, 0), one(2, 5), one(3, 900_000)], Some(1_000_000));
        let told: Vec<_> = groups.iter().map(|one| (one.tid, one.count)).collect();
        assert_eq!(told, [(3, 1), (2, 2)]);
    }

    /// Ourselves: at least this thread runs, and its sums grow.
    #[test]
    fn our_own_threads() {
        let pid = std::process::id();
        let read = || ThreadsSeen::read(Path::new("/proc/self"), pid, 64).unwrap();
        let seen = read();
        assert!(seen.all >= 1);
        assert!(
            seen.threads.iter().any(|thread| thread.state == "R"),
            "{seen:?}"
        );
        assert!(
            ThreadsSeen::read(Path::new("/proc/self"), pid, 0)
                .unwrap()
                .threads
                .is_empty()
        );
        assert!(ThreadsSeen::read(Path::new("/proc/0"), 0, 64).is_err());
    }
}
