//! Why an application did not accept: the registry of causes, in the order in which they are
//! looked for, and the function that finds the first one that the evidence supports. What is not
//! known supports none.

use crate::model::{
    printable::printable,
    snapshot::{Descriptors, Snapshot},
    socket::Process,
    stall::{Doing, Role, Stall},
    words::short_time,
};

/// A cause.
#[derive(Debug)]
pub struct Cause {
    /// Its name.
    pub name: &'static str,
    /// What is the case, without numbers.
    pub says: &'static str,
    /// Whether it keeps many threads just as well, so that more of them would not accept more.
    pub keeps_all_threads: bool,
    /// Whether the evidence supports it, and then what the case is, with its numbers: a part of a
    /// sentence.
    pub find: fn(&Facts<'_>) -> Option<String>,
    /// What to do: commands or settings, and what they do.
    pub remedies: fn(&Facts<'_>) -> Vec<(String, String)>,
}

/// The evidence in the light of the listener.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The listener.
    pub snapshot: &'a Snapshot,
    /// The evidence; one that says nothing, if nobody looked.
    pub stall: &'a Stall,
}

/// A conclusion.
#[derive(Debug, Clone)]
pub struct StallReason {
    /// The cause.
    pub cause: &'static Cause,
    /// What the case is, with its numbers.
    pub words: String,
    /// What to do.
    pub remedies: Vec<(String, String)>,
}

/// Every cause, in the order in which they are looked for.
pub static CAUSES: [Cause; 13] = [
    Cause {
        name: "not_the_server",
        says: "The process that holds the socket is not the one that should accept",
        keeps_all_threads: false,
        find: not_the_server,
        remedies: start_the_server,
    },
    Cause {
        name: "stopped",
        says: "The application is stopped: by a signal, a debugger, or the freezer of its cgroup",
        keeps_all_threads: true,
        find: stopped,
        remedies: resume,
    },
    Cause {
        name: "descriptors",
        says: "accept() fails: no file descriptor is left",
        keeps_all_threads: true,
        find: descriptors,
        remedies: raise_descriptors,
    },
    Cause {
        name: "throttled",
        says: "The CPU quota of its cgroup stops the application",
        keeps_all_threads: true,
        find: throttled,
        remedies: raise_quota,
    },
    Cause {
        name: "memory",
        says: "The application is made to reclaim memory, at a limit of its cgroup",
        keeps_all_threads: true,
        find: memory,
        remedies: raise_memory,
    },
    Cause {
        name: "busy",
        says: "A thread is on the CPU all the time",
        keeps_all_threads: false,
        find: busy,
        remedies: profile,
    },
    Cause {
        name: "blocked",
        says: "A thread is blocked in the kernel",
        keeps_all_threads: false,
        find: blocked,
        remedies: see_the_kernel,
    },
    Cause {
        name: "starved",
        says: "A thread could run, but gets no CPU",
        keeps_all_threads: true,
        find: starved,
        remedies: give_cpu,
    },
    Cause {
        name: "not_polled",
        says: "Nobody waits for connections: the listener is not registered with any epoll",
        keeps_all_threads: false,
        find: not_polled,
        remedies: register,
    },
    Cause {
        name: "child",
        says: "The application waits for a child process",
        keeps_all_threads: false,
        find: |facts| waits(facts, Wait::Child),
        remedies: see_the_child,
    },
    Cause {
        name: "lock",
        says: "The application waits for a lock",
        keeps_all_threads: false,
        find: |facts| waits(facts, Wait::Lock),
        remedies: see_the_lock,
    },
    Cause {
        name: "asleep",
        says: "The application sleeps in another system call",
        keeps_all_threads: false,
        find: |facts| waits(facts, Wait::Asleep),
        remedies: see_the_threads,
    },
    Cause {
        name: "not_drained",
        says: "The application was told of the connections and did not call accept()",
        keeps_all_threads: false,
        find: not_drained,
        remedies: drain,
    },
];

/// What kept the owner of a listener from calling accept(); `None` if nothing that was seen did.
#[must_use]
pub fn conclude(snapshot: &Snapshot) -> Option<StallReason> {
    let nothing = Stall::default();
    let facts = Facts {
        snapshot,
        stall: snapshot.stall.as_deref().unwrap_or(&nothing),
    };
    CAUSES.iter().find_map(|cause| {
        let words = printable(&(cause.find)(&facts)?).into_owned();
        let remedies = (cause.remedies)(&facts).into_iter();
        let remedies = remedies.map(|(command, caveat)| {
            let command = printable(&command).into_owned();
            (command, printable(&caveat).into_owned())
        });
        Some(StallReason {
            cause,
            words,
            remedies: remedies.collect(),
        })
    })
}

/// A thread ran, or wanted to, for this part of the time: it did nothing else.
const ALL_THE_TIME: u64 = 80;
/// Of it, more than this part without a CPU: it is short of CPUs, not busy.
const STARVED: u64 = 50;
/// A thread that ran for more than this part was not blocked or asleep, whatever it does now.
const AT_WORK: u64 = 50;
/// Percent of the periods in which a quota stopped it, at least, and of the time.
const THROTTLED_PERIODS: u64 = 25;
const THROTTLED_TIME: u64 = 10;
/// Percent of the time in which something in the cgroup waited for memory, at least.
const MEMORY_PRESSURE: u64 = 20;

/// What a thread is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Stopped,
    Busy,
    Starved,
    Blocked,
    Takes,
    Elsewhere,
    Master,
    Child,
    Lock,
    /// In a call that says something.
    Asleep,
    /// In a wait that threads of a pool are in while nothing is to be done.
    Pool,
    /// It runs, and for how long is not known; or it ran for a part of the time.
    AtWork,
    Ended,
}

/// What a thread that sleeps waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Child,
    Lock,
    Asleep,
}

fn class(stall: &Stall, one: &Doing) -> Class {
    let ran = stall.percent(one.run_us);
    let delayed = stall.percent(one.delay_us);
    let wanted = ran.unwrap_or(0).saturating_add(delayed.unwrap_or(0));
    match one.state.as_str() {
        "T" | "t" => return Class::Stopped,
        "Z" | "X" | "x" => return Class::Ended,
        _ if wanted >= ALL_THE_TIME => {
            return if delayed.unwrap_or(0).saturating_mul(100) > wanted.saturating_mul(STARVED) {
                Class::Starved
            } else {
                Class::Busy
            };
        }
        _ if ran.is_some_and(|ran| ran >= AT_WORK) => return Class::AtWork,
        "D" => return Class::Blocked,
        "R" => return Class::AtWork,
        _ => {}
    }
    match one.role {
        Some(Role::Takes) => return Class::Takes,
        Some(Role::Elsewhere) => return Class::Elsewhere,
        Some(Role::Master) => return Class::Master,
        Some(Role::Other) | None => {}
    }
    match one.call.as_deref() {
        Some("wait4" | "waitid") => Class::Child,
        Some("flock" | "fcntl") => Class::Lock,
        // Threads of a pool wait so as well.
        Some("futex" | "futex_waitv" | "futex_wait") if one.main => Class::Lock,
        Some("futex" | "futex_waitv" | "futex_wait") => Class::Pool,
        Some("nanosleep" | "clock_nanosleep") if !one.main => Class::Pool,
        _ => Class::Asleep,
    }
}

impl<'a> Facts<'a> {
    fn of_class(&self, wanted: Class) -> impl Iterator<Item = &'a Doing> + use<'a> {
        let stall = self.stall;
        stall
            .doing
            .iter()
            .filter(move |one| class(stall, one) == wanted)
    }

    fn first(&self, wanted: Class) -> Option<&'a Doing> {
        self.of_class(wanted).next()
    }

    fn count(&self, wanted: Class) -> u64 {
        self.of_class(wanted).map(|one| u64::from(one.count)).sum()
    }

    /// `thread "worker" (4711; 1 of 8 threads)`.
    fn thread(&self, one: &Doing) -> String {
        let name = match one.comm.as_str() {
            "" => String::new(),
            comm => format!("\"{comm}\" "),
        };
        let of = match self.stall.threads {
            0 | 1 => "the only one".to_owned(),
            all => format!("{} of {all} threads", one.count),
        };
        format!("thread {name}({}; {of})", one.tid)
    }

    fn of_the_time(&self, us: u64) -> String {
        let over = self.stall.over_us.unwrap_or(0);
        format!("{} of {}", short_time(us), short_time(over))
    }
}

/// Whether the process holds sockets for services that it starts. systemd has this name however it
/// was started, for the host or for a user; the first process of a container may be any server.
fn is_socket_activator(comm: &str) -> bool {
    comm == "systemd"
}

/// `gdb[4711]`.
fn named(process: &Process) -> String {
    match process.comm.as_str() {
        "" => format!("process {}", process.pid),
        comm => format!("{comm}[{}]", process.pid),
    }
}

fn not_the_server(facts: &Facts<'_>) -> Option<String> {
    let processes = facts.snapshot.processes.as_deref().unwrap_or_default();
    let first = processes.first()?;
    if processes
        .iter()
        .all(|process| is_socket_activator(&process.comm))
        && facts.stall.looked > 0
        // With Accept=yes, and before the first connection, it waits for the listener itself.
        && facts.stall.epoll.is_none_or(|epoll| epoll.armed == 0)
    {
        return Some(format!(
            "only {}[{}] holds the socket, which it does for a service that is not running",
            first.comm, first.pid
        ));
    }
    let alive = |one: &&Doing| class(facts.stall, one) != Class::Ended;
    let mut all = facts.stall.doing.iter().filter(alive).peekable();
    all.peek()?;
    let whole = facts.stall.looked == facts.stall.holders;
    let signals = |one: &Doing| {
        !one.call
            .as_deref()
            .is_some_and(|call| call.starts_with("wait"))
    };
    if !whole || !all.all(|one| class(facts.stall, one) == Class::Master && signals(one)) {
        return None;
    }
    let who = match facts.stall.looked {
        1 => "the only process that holds the socket waits".to_owned(),
        looked => format!("the {looked} processes that hold the socket wait"),
    };
    Some(format!(
        "{who} for signals only: a master, and no worker holds the socket"
    ))
}

fn start_the_server(facts: &Facts<'_>) -> Vec<(String, String)> {
    let port = facts.snapshot.listener.port;
    let processes = facts.snapshot.processes.iter().flatten();
    let mut activators = processes.filter(|process| is_socket_activator(&process.comm));
    let (command, caveat) = match activators.next().map(|process| process.pid) {
        Some(1) => (
            format!("systemctl list-sockets --all --full | grep ':{port} '"),
            "Names the service (ACTIVATES). systemctl status of that says why it is down; starting it takes the connections that wait.",
        ),
        Some(_) => (
            format!("systemctl --user list-sockets --all --full | grep ':{port} '"),
            "Names the service (ACTIVATES). Run it as the user whose systemd this is, or, if it is the systemd of a container, without --user in there. systemctl status of the service says why it is down; starting it takes the connections that wait.",
        ),
        None => (
            format!("systemctl --failed; ss -ltnp 'sport = :{port}'"),
            "Find the worker or service that should accept, and why it is gone: its log, or a kill for want of memory (dmesg).",
        ),
    };
    vec![(command, caveat.to_owned())]
}

fn stopped(facts: &Facts<'_>) -> Option<String> {
    if let Some(file) = &facts.stall.frozen_by {
        return Some(format!("its cgroup is frozen, by {file}"));
    }
    let first = facts.first(Class::Stopped)?;
    let others = [
        Class::Busy,
        Class::Starved,
        Class::Blocked,
        Class::Takes,
        Class::Child,
        Class::Lock,
        Class::Asleep,
        Class::AtWork,
    ];
    if others.iter().any(|class| facts.count(*class) > 0) {
        return None;
    }
    Some(match (first.state.as_str(), &facts.stall.tracer) {
        ("t", Some(tracer)) => format!(
            "{} traces it and keeps it stopped, as a debugger does",
            named(tracer)
        ),
        ("t", None) => "a debugger keeps it stopped".to_owned(),
        _ => format!(
            "it was stopped by a signal (SIGSTOP, or one of its terminal): {}",
            facts.thread(first)
        ),
    })
}

fn resume(facts: &Facts<'_>) -> Vec<(String, String)> {
    if let Some(file) = &facts.stall.frozen_by {
        let word = if file.ends_with("cgroup.freeze") {
            "0"
        } else {
            "THAWED"
        };
        return vec![(
            format!("echo {word} > {file}"),
            "Lets it go on at once. Somebody froze it: a container runtime (pause), systemctl freeze, or a checkpoint.".to_owned(),
        )];
    }
    let Some(first) = facts.first(Class::Stopped) else {
        return Vec::new();
    };
    match (first.state.as_str(), &facts.stall.tracer) {
        ("t", Some(tracer)) => vec![(
            format!("ps -fp {}", tracer.pid),
            "Shows the debugger. The application goes on when that lets go of it.".to_owned(),
        )],
        ("t", None) => vec![(
            format!("grep TracerPid /proc/{}/status", first.pid),
            "Names the debugger, on the host or in its container (0: it is not visible there). The application goes on when that lets go of it.".to_owned(),
        )],
        _ => vec![(
            format!("kill -CONT {}", first.pid),
            "Lets it go on at once.".to_owned(),
        )],
    }
}

/// Whether some thread may call accept() now and then and be refused. Those that wait for
/// something else do not: not having a descriptor is not what keeps them.
fn may_call_accept(facts: &Facts<'_>) -> bool {
    let stall = facts.stall;
    let waits_a_while = |one: &Doing| match one.call.as_deref() {
        None => true,
        Some(call) => ["nanosleep", "poll", "select", "epoll", "accept", "io_uring"]
            .iter()
            .any(|name| call.contains(name)),
    };
    let may = |one: &Doing| match class(stall, one) {
        Class::Stopped
        | Class::Blocked
        | Class::Master
        | Class::Child
        | Class::Lock
        | Class::Ended => false,
        Class::Asleep => waits_a_while(one),
        Class::Busy
        | Class::Starved
        | Class::Takes
        | Class::Elsewhere
        | Class::Pool
        | Class::AtWork => true,
    };
    stall.doing.is_empty()
        || stall.looked < stall.holders
        || stall.threads_looked < stall.threads
        || stall.doing.iter().any(may)
}

fn descriptors(facts: &Facts<'_>) -> Option<String> {
    if !may_call_accept(facts) {
        return None;
    }
    if let Some(words) = facts.snapshot.descriptors_used_up() {
        return Some(format!(
            "its owner is out of file descriptors ({words}): accept() fails with EMFILE"
        ));
    }
    // Whoever has CAP_SYS_ADMIN may open more.
    let files = facts.stall.files.filter(|files| !files.exempt)?;
    (files.limit > 0 && files.open >= files.limit).then(|| {
        format!(
            "the host is out of open files ({} of {}): accept() fails with ENFILE",
            files.open, files.limit
        )
    })
}

fn raise_descriptors(facts: &Facts<'_>) -> Vec<(String, String)> {
    let used = facts.snapshot.descriptors.filter(Descriptors::is_used_up);
    let Some(used) = used else {
        let limit = facts.stall.files.map_or(0, |files| files.limit);
        return vec![(
            format!("sysctl -w fs.file-max={}", limit.saturating_mul(4)),
            "Takes effect at once. `lsof | awk '{print $1}' | sort | uniq -c | sort -rn | head` names those that have most open.".to_owned(),
        )];
    };
    let wanted = used.limit.saturating_mul(4).max(65_536);
    let pid = used.pid;
    vec![
        (
            format!("prlimit --pid {pid} --nofile={wanted}:{wanted}"),
            "Takes effect at once, until a restart: LimitNOFILE= in its systemd unit, or --ulimit nofile= of its container, makes it last.".to_owned(),
        ),
        (
            format!("ls -l /proc/{pid}/fd | awk '{{print $NF}}' | sort | uniq -c | sort -rn | head"),
            "Shows what the descriptors are used for. A number that only grows is a leak, for which no limit is high enough.".to_owned(),
        ),
    ]
}

fn throttled(facts: &Facts<'_>) -> Option<String> {
    let cpu = facts.stall.cpu.as_ref()?;
    let (periods, in_them, us) = (cpu.periods?, cpu.throttled_periods?, cpu.throttled_us?);
    let often =
        periods > 0 && in_them.saturating_mul(100) >= periods.saturating_mul(THROTTLED_PERIODS);
    let long = facts.stall.percent(Some(us))? >= THROTTLED_TIME;
    (often && long).then(|| {
        let quota = match (cpu.quota_us, cpu.period_us) {
            (Some(quota), Some(period)) => {
                format!("{} in each {}", short_time(quota), short_time(period))
            }
            _ => "it has one".to_owned(),
        };
        format!(
            "its CPU quota ({quota}, {}) stopped it in {in_them} of {periods} periods, for {}",
            cpu.file,
            facts.of_the_time(us)
        )
    })
}

fn raise_quota(facts: &Facts<'_>) -> Vec<(String, String)> {
    let Some(cpu) = &facts.stall.cpu else {
        return Vec::new();
    };
    let word = if cpu.file.ends_with("cpu.max") {
        "max"
    } else {
        "-1"
    };
    vec![(
        format!("echo {word} > {}", cpu.file),
        "Removes the quota at once; a higher one may do. CPUQuota= of its systemd unit, --cpus of its container, or limits.cpu of its pod sets it, and a higher one there lasts.".to_owned(),
    )]
}

/// Where a thread waits because its cgroup is over `memory.high` (mm/memcontrol.c; newer kernels
/// have underscores in front of it).
const OVER_HIGH: &str = "mem_cgroup_handle_over_high";

/// Kernel functions in which a thread reclaims memory or is made to wait for its limit.
const RECLAIM: [&str; 6] = [
    OVER_HIGH,
    "try_charge_memcg",
    "try_to_free_mem_cgroup_pages",
    "try_to_free_pages",
    "reclaim_throttle",
    "shrink_lruvec",
];

fn reclaims(one: &Doing) -> bool {
    let names = &mut one.kernel.iter();
    names.any(|name| RECLAIM.contains(&name.trim_start_matches('_')))
}

/// Whether the kernel makes a thread wait for its cgroup's `memory.high`. It does so for up to two
/// seconds each time, in one of which the limit may not have been passed anew.
fn is_over_high(one: &Doing) -> bool {
    let names = &mut one.kernel.iter();
    names.any(|name| name.trim_start_matches('_') == OVER_HIGH)
}

fn memory(facts: &Facts<'_>) -> Option<String> {
    let stall = facts.stall;
    let at_work = stall.doing.iter().find(|one| reclaims(one));
    let pressure = stall.pressure.and_then(|pressure| pressure.memory_us);
    let pressed = stall
        .percent(pressure)
        .is_some_and(|percent| percent >= MEMORY_PRESSURE);
    let memory = stall.memory.as_ref();
    let times = memory.map_or(0, |memory| {
        memory
            .high_times
            .unwrap_or(0)
            .saturating_add(memory.max_times.unwrap_or(0))
    });
    let over_high = stall.doing.iter().any(is_over_high);
    if times == 0 && !over_high || !(pressed || at_work.is_some()) {
        return None;
    }
    let memory = memory?;
    let mut words = match (
        memory.high_times.unwrap_or(0),
        memory.max_times.unwrap_or(0),
    ) {
        (0, 0) => "it is over memory.high, which makes it wait".to_owned(),
        (0, max) => format!("it came to its limit of memory {max} times"),
        (high, _) => format!("it passed memory.high {high} times, which makes it wait"),
    };
    words.push_str(&format!(" ({}", memory.file));
    if let Some(limit) = memory.high.or(memory.max) {
        words.push_str(&format!(": {limit} bytes"));
    }
    if let Some(current) = memory.current {
        words.push_str(&format!(", {current} in use"));
    }
    words.push(')');
    if let Some(us) = pressure.filter(|_| pressed) {
        words.push_str(&format!(
            "; something in its cgroup waited for memory for {}",
            facts.of_the_time(us)
        ));
    }
    if let Some(one) = at_work {
        words.push_str(&format!("; {} reclaims now", facts.thread(one)));
    }
    Some(words)
}

fn raise_memory(facts: &Facts<'_>) -> Vec<(String, String)> {
    let Some(memory) = &facts.stall.memory else {
        return Vec::new();
    };
    let word = if memory.file.ends_with("limit_in_bytes") {
        "-1"
    } else {
        "max"
    };
    vec![(
        format!("echo {word} > {}", memory.file),
        "Removes the limit at once; a higher one may do. MemoryHigh= or MemoryMax= of its systemd unit, or the memory limit of its container, sets it. Memory that only grows is a leak, for which no limit is high enough.".to_owned(),
    )]
}

fn busy(facts: &Facts<'_>) -> Option<String> {
    let one = facts.first(Class::Busy)?;
    // Where more are blocked than busy, those are what keeps it.
    if facts.count(Class::Blocked) > facts.count(Class::Busy) || facts.count(Class::Takes) > 0 {
        return None;
    }
    let stall = facts.stall;
    let ran = one.run_us.unwrap_or(0);
    let waited = one
        .delay_us
        .filter(|us| stall.percent(Some(*us)) >= Some(5));
    let waited = waited.map_or(String::new(), |us| {
        format!(", and waited {} for one", short_time(us))
    });
    Some(format!(
        "{} was on a CPU for {}{waited}",
        facts.thread(one),
        facts.of_the_time(ran)
    ))
}

fn profile(facts: &Facts<'_>) -> Vec<(String, String)> {
    let Some(one) = facts.first(Class::Busy) else {
        return Vec::new();
    };
    vec![(
        format!("perf top -t {}", one.tid),
        "Shows what the thread computes (or jstack, py-spy, gdb -p). Requests that are served one after the other, TLS handshakes, \
         garbage collection and loops that do not end are the usual reasons; an interpreter's lock makes it everybody's reason.".to_owned(),
    )]
}

fn blocked(facts: &Facts<'_>) -> Option<String> {
    let one = facts.first(Class::Blocked)?;
    if facts.count(Class::Takes) > 0 {
        return None;
    }
    let mut words = format!("{} is blocked in the kernel (state D)", facts.thread(one));
    if let Some(call) = &one.call {
        words.push_str(&format!(", in {call}()"));
    }
    if let Some(on) = &one.on {
        words.push_str(&format!(" of {on}"));
    }
    if !one.kernel.is_empty() {
        words.push_str(&format!(": {}", one.kernel.join(" < ")));
    }
    let stall = facts.stall;
    let io = stall.pressure.and_then(|pressure| pressure.io_us);
    let io = io.or(stall.host_pressure.and_then(|pressure| pressure.io_us));
    if let Some(us) = io.filter(|us| stall.percent(Some(*us)) >= Some(5)) {
        words.push_str(&format!(
            "; something waited for disks for {}",
            facts.of_the_time(us)
        ));
    }
    Some(words)
}

fn see_the_kernel(facts: &Facts<'_>) -> Vec<(String, String)> {
    let Some(one) = facts.first(Class::Blocked) else {
        return Vec::new();
    };
    vec![(
        format!("cat /proc/{}/task/{}/stack", one.pid, one.tid),
        "Shows where in the kernel it waits. A disk or a network file system that does not answer is the usual reason, or a file system that is frozen for a snapshot (fsfreeze): look at dmesg, iostat -x 1 and the mounts. A restart does not end such a process.".to_owned(),
    )]
}

fn starved(facts: &Facts<'_>) -> Option<String> {
    let one = facts.first(Class::Starved)?;
    if facts.count(Class::Takes) > 0 {
        return None;
    }
    let stall = facts.stall;
    let mut words = format!(
        "{} could run and waited for a CPU for {}",
        facts.thread(one),
        facts.of_the_time(one.delay_us.unwrap_or(0))
    );
    for (whose, pressure) in [
        ("its cgroup", stall.pressure),
        ("the host", stall.host_pressure),
    ] {
        let us = pressure.and_then(|pressure| pressure.cpu_us);
        if let Some(percent) = stall.percent(us) {
            words.push_str(&format!("; CPU pressure of {whose}: {}%", percent.min(100)));
        }
    }
    Some(words)
}

fn give_cpu(facts: &Facts<'_>) -> Vec<(String, String)> {
    let Some(one) = facts.first(Class::Starved) else {
        return Vec::new();
    };
    vec![(
        format!("renice -n -5 -p {}", one.pid),
        "Prefers it to others at once. What else runs (top, or cpu.weight and CPUWeight= of the cgroups) has taken the CPUs; in a virtual machine, look at steal time.".to_owned(),
    )]
}

fn not_polled(facts: &Facts<'_>) -> Option<String> {
    let stall = facts.stall;
    let epoll = stall.epoll.filter(|epoll| epoll.armed == 0)?;
    let one = facts.first(Class::Elsewhere)?;
    let others = [
        Class::Takes,
        Class::AtWork,
        Class::Child,
        Class::Lock,
        Class::Asleep,
        Class::Stopped,
    ];
    if others.iter().any(|class| facts.count(*class) > 0)
        || stall.looked < stall.holders
        || stall.threads_looked < stall.threads
    {
        return None;
    }
    let what = match epoll.registered {
        0 => "no epoll of its owner has the listener".to_owned(),
        _ => "the listener is registered with epoll, but without EPOLLIN".to_owned(),
    };
    Some(format!(
        "{what}, and no thread is in accept(): {} waits for other events",
        facts.thread(one)
    ))
}

fn register(facts: &Facts<'_>) -> Vec<(String, String)> {
    let pid = facts.first(Class::Elsewhere).map_or(0, |one| one.pid);
    vec![(
        format!("grep -H tfd /proc/{pid}/fdinfo/*"),
        "Lists what it waits for. Servers take their listener out of epoll on purpose: at a limit of connections (worker_connections of nginx), in a shutdown, or for a pause after accept() failed. Look for that limit in its log.".to_owned(),
    )]
}

/// Of all threads that sleep, the one that says most.
fn waiting<'a>(facts: &Facts<'a>) -> Option<(&'a Doing, Wait)> {
    // Who waits for the listener would take the connections.
    if facts.count(Class::Takes) > 0 || facts.count(Class::AtWork) > 0 {
        return None;
    }
    let stall = facts.stall;
    let wait = |one: &'a Doing| {
        let wait = match class(stall, one) {
            Class::Child => Wait::Child,
            Class::Lock => Wait::Lock,
            Class::Pool
                if one
                    .call
                    .as_deref()
                    .is_some_and(|call| call.starts_with("futex")) =>
            {
                Wait::Lock
            }
            Class::Pool | Class::Asleep => Wait::Asleep,
            Class::Master
                if one
                    .call
                    .as_deref()
                    .is_some_and(|call| call.starts_with("wait")) =>
            {
                Wait::Child
            }
            _ => return None,
        };
        // A first thread in a futex waits for the others, as often as not.
        let rank = match class(stall, one) {
            // The master of servers that wait for something.
            Class::Master => 3,
            Class::Pool => 2,
            Class::Lock
                if one
                    .call
                    .as_deref()
                    .is_some_and(|call| call.starts_with("futex")) =>
            {
                1
            }
            _ => 0,
        };
        Some((rank, !one.main, one, wait))
    };
    let all = stall.doing.iter().filter_map(wait);
    let first = all.min_by_key(|(rank, not_main, ..)| (*rank, *not_main))?;
    Some((first.2, first.3))
}

fn waits(facts: &Facts<'_>, wanted: Wait) -> Option<String> {
    let (one, wait) = waiting(facts)?;
    if wait != wanted {
        return None;
    }
    let thread = facts.thread(one);
    let call = one.call.as_deref();
    let on = one
        .on
        .as_deref()
        .map_or(String::new(), |on| format!(" of {on}"));
    let place = one.kernel.first().map(String::as_str);
    Some(match (wanted, call) {
        (Wait::Child, Some(call)) => format!("{thread} waits for a child process, in {call}()"),
        (Wait::Lock, Some(call)) if call.starts_with("futex") => {
            format!("{thread} waits for a lock or another thread, in {call}()")
        }
        (Wait::Lock, Some(call)) => format!("{thread} waits for a lock, in {call}(){on}"),
        (_, Some(call)) => format!("{thread} sleeps in {call}(){on}"),
        (_, None) => match place {
            Some(place) => format!("{thread} sleeps in the kernel, in {place}"),
            // That it sleeps is no cause.
            None => return None,
        },
    })
}

fn see_the_child(facts: &Facts<'_>) -> Vec<(String, String)> {
    let pid = waiting(facts).map_or(0, |(one, _)| one.pid);
    vec![(
        format!("ps -f --ppid {pid}"),
        "Lists its children: what it waits for is one of them. A server that starts programs should not wait for them in the thread that accepts.".to_owned(),
    )]
}

fn see_the_lock(facts: &Facts<'_>) -> Vec<(String, String)> {
    let Some((one, _)) = waiting(facts) else {
        return Vec::new();
    };
    let (pid, tid) = (one.pid, one.tid);
    match one.call.as_deref() {
        Some("flock" | "fcntl") => vec![(
            "lslocks".to_owned(),
            format!(
                "Names the process that has the file locked; thread {tid} of process {pid} waits for it."
            ),
        )],
        _ => vec![(
            format!("gdb -p {pid} -batch -ex 'thread apply all bt'"),
            format!(
                "Shows which lock thread {tid} waits for, and which thread has it (jstack, py-spy or a dump of goroutines for their runtimes). Take it before a restart removes the evidence."
            ),
        )],
    }
}

fn see_the_threads(facts: &Facts<'_>) -> Vec<(String, String)> {
    let Some((one, _)) = waiting(facts) else {
        return Vec::new();
    };
    vec![(
        format!("gdb -p {} -batch -ex 'thread apply all bt'", one.pid),
        "Shows who called it. A request to a database, another service or a name server without a timeout, in the thread that accepts, is the usual reason.".to_owned(),
    )]
}

fn not_drained(facts: &Facts<'_>) -> Option<String> {
    let epoll = facts
        .stall
        .epoll
        .filter(|epoll| epoll.edge > 0 && epoll.edge == epoll.armed)?;
    let one = facts.first(Class::Takes)?;
    (one.call.as_deref().is_some_and(|call| call.starts_with("epoll")) && epoll.registered > 0).then(|| {
        format!(
            "{} waits in epoll for news of the listener, is told of it only once (EPOLLET), and accept() was not called since",
            facts.thread(one)
        )
    })
}

fn drain(facts: &Facts<'_>) -> Vec<(String, String)> {
    let pid = facts.first(Class::Takes).map_or(0, |one| one.pid);
    vec![(
        format!("gdb -p {pid} -batch -ex 'thread apply all bt'"),
        "After each event the application must call accept() until EAGAIN. Runtimes with tasks of their own (Go, Tokio) poll so: there, take a dump of the goroutines or tasks, and find the one that should accept.".to_owned(),
    )]
}

#[cfg(test)]
mod tests;
