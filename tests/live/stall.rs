//! Why an application did not accept: each cause is made for real, and the finding must name it
//! and no other.
//!
//! The servers are this test program itself, started again ([`the_server`]), so that they are there
//! in the guests too.

mod debugger;
mod disk;
mod files;
mod hidden;
mod systemd;

use std::{
    fs::{self, File},
    io::Read,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use live_tests::{Scratch, unproven};
use queue_trace::lab::{Listen, Netns};
use rustix::{
    event::epoll,
    fs::{FlockOperation, flock},
    process::{
        Pid, Resource, Rlimit, Signal, getrlimit, kill_process, set_parent_process_death_signal,
        setpriority_process, setrlimit,
    },
    thread::{CpuSet, sched_setaffinity},
};
use serde_json::Value;

use crate::{
    diagnose::{clients_come_to, diagnosed},
    servers::{AT, PORT, Server, freeze},
};

/// Says what a server does instead of accepting.
const DOES: &str = "QUEUE_TRACE_STALL";
/// The file that it needs for that.
const FILE: &str = "QUEUE_TRACE_STALL_FILE";

/// How nice it is.
const NICE: &str = "QUEUE_TRACE_STALL_NICE";

/// How nice a server is that must have its CPU however busy the machine is. Where there is only one,
/// nothing else is at work, and the tracer needs a part of it.
fn greedy() -> &'static str {
    if has_one_cpu() { "0" } else { "-10" }
}

fn has_one_cpu() -> bool {
    thread::available_parallelism().unwrap().get() == 1
}

/// A server that does one thing instead of accepting; started by [`start`], and no test.
#[test]
#[ignore = "the server of the other tests"]
fn the_server() {
    let does = std::env::var(DOES).unwrap();
    let parent = rustix::process::getpid();
    // A process with one thread, as most servers that stall are; the harness has two.
    // SAFETY: the child goes on with this thread alone. glibc keeps the allocator usable in it, and
    // no other lock of the harness is taken here.
    #[expect(unsafe_code, reason = "there is no safe fork")]
    let child = unsafe { libc::fork() };
    match child {
        0 => {
            set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
            assert_eq!(rustix::process::getppid(), Some(parent));
            serve(&does)
        }
        child => {
            let child = Pid::from_raw(child).unwrap();
            let _ = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
            panic!("the server ended");
        }
    }
}

fn serve(does: &str) -> ! {
    // As those who start tests may be nice, and machines busy. Where sessions share the CPUs alike,
    // it is one of its own that counts.
    let nice = std::env::var(NICE).unwrap();
    let _ = rustix::process::setsid();
    let _ = fs::write("/proc/self/autogroup", &nice);
    setpriority_process(None, nice.parse().unwrap()).unwrap();
    let listen = Listen {
        backlog: 8,
        ..Listen::default()
    };
    let listener = listen.on(AT).unwrap();
    match does {
        "accept" => loop {
            drop(listener.accept());
        },
        "sleep" => loop {
            thread::sleep(Duration::from_secs(600));
        },
        "disk" => disk::serve(&listener),
        "files" => files::serve(&listener),
        "spin" => spin(),
        "spin_beside" => {
            let lock = Mutex::new(());
            thread::scope(|scope| {
                let held = lock.lock().unwrap();
                let worker = thread::Builder::new().name("spinner".to_owned());
                worker.spawn_scoped(scope, || spin()).unwrap();
                // Never: whoever should let go of it computes.
                let again = scope.spawn(|| drop(lock.lock().unwrap()));
                again.join().unwrap();
                drop(held);
            });
        }
        "descriptors" => {
            let limits = getrlimit(Resource::Nofile);
            let few = Rlimit {
                current: Some(16),
                ..limits
            };
            setrlimit(Resource::Nofile, few).unwrap();
            let mut held = Vec::new();
            loop {
                match listener.accept() {
                    Ok(one) => held.push(one),
                    Err(_) => thread::sleep(Duration::from_millis(50)),
                }
            }
        }
        "flock" => {
            let file = File::open(std::env::var(FILE).unwrap()).unwrap();
            flock(&file, FlockOperation::LockExclusive).unwrap();
        }
        "futex" => {
            let lock = Mutex::new(());
            let held = lock.lock().unwrap();
            thread::scope(|scope| scope.spawn(|| drop(lock.lock())).join().unwrap());
            drop(held);
        }
        "child" => drop(Command::new("sleep").arg("600").status().unwrap()),
        "pipe" => {
            let (mut reader, _writer) = std::io::pipe().unwrap();
            reader.read_exact(&mut [0]).unwrap();
        }
        "not_polled" | "not_drained" => {
            let (reader, _writer) = std::io::pipe().unwrap();
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let (what, flags) = match does {
                "not_polled" => (reader.as_fd(), epoll::EventFlags::IN),
                _ => (
                    listener.as_fd(),
                    epoll::EventFlags::IN | epoll::EventFlags::ET,
                ),
            };
            epoll::add(&epoll, what, epoll::EventData::new_u64(0), flags).unwrap();
            let mut events = Vec::with_capacity(8);
            // Told of what came, it does nothing about it.
            loop {
                events.clear();
                let room = rustix::buffer::spare_capacity(&mut events);
                epoll::wait(&epoll, room, None).unwrap();
            }
        }
        "master" => loop {
            // SAFETY: pause(2) waits for a signal.
            #[expect(unsafe_code, reason = "there is no safe pause")]
            unsafe {
                libc::pause()
            };
        },
        // The parent waits in state D until its child is gone: it never is.
        "blocked" => {
            let flags = libc::CLONE_VFORK | libc::SIGCHLD;
            // SAFETY: as fork: the child has memory of its own, and waits.
            #[expect(unsafe_code, reason = "there is no safe vfork")]
            let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
            if child == 0 {
                drop(listener);
                set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
                loop {
                    thread::sleep(Duration::from_secs(600));
                }
            }
        }
        // More memory than memory.high, again and again.
        "memory" => loop {
            let mut block = vec![0u8; 48 << 20];
            block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
            std::hint::black_box(&block);
        },
        other => panic!("{other}"),
    }
    panic!("{does} ended");
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// A server that does this, and the process that listens.
struct Stalling {
    does: String,
    server: Server,
    pid: Pid,
}

fn start(does: &str) -> Stalling {
    start_with(does, |_| {})
}

fn start_with(does: &str, say: impl FnOnce(&mut Command)) -> Stalling {
    let server = Server::start(&format!("stall-{does}"), |_| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "stall::the_server";
        command.args([
            "--exact",
            name,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ]);
        command
            .env(DOES, does)
            .env(NICE, greedy())
            .stderr(Stdio::null());
        say(&mut command);
        command
    });
    let rows = server.listening();
    let pid = rows[0].processes[0].pid;
    Stalling {
        does: does.to_owned(),
        server,
        pid: Pid::from_raw(pid.cast_signed()).unwrap(),
    }
}

/// For how long clients come.
const COME: Duration = Duration::from_secs(6);

impl Stalling {
    /// Clients come, and what is found must be this cause and no other. Gives the sentence of the
    /// finding.
    #[track_caller]
    fn assert_found(&self, cause: &str) -> Found {
        let name = unique(&format!("stall-{cause}-{}", self.does));
        let diagnosis = diagnosed(&name, &self.server.netns, || {
            come(&self.server.netns);
        });
        let findings = diagnosis["findings"].as_array().unwrap();
        let causes: Vec<_> = findings
            .iter()
            .filter_map(|one| one["cause"].as_str())
            .collect();
        assert!(!causes.is_empty(), "no cause, not {cause}: {diagnosis:#}");
        assert!(
            causes.iter().all(|found| *found == cause),
            "{causes:?}, not {cause}: {diagnosis:#}"
        );
        let with_cause = findings.iter().find(|one| !one["cause"].is_null()).unwrap();
        Found {
            what: with_cause["what"].as_str().unwrap().to_owned(),
            remedy: with_cause["remedies"][0]["command"]
                .as_str()
                .unwrap()
                .to_owned(),
            finding: with_cause.clone(),
        }
    }

    /// It goes on: a client is accepted, and its connection closed.
    #[track_caller]
    fn assert_accepts(&self) {
        let mut client = self.server.connect();
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        // What it has not read makes a reset of it.
        match client.read(&mut [0; 1]) {
            Ok(read) => assert_eq!(read, 0),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

/// A name that no other test has.
fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{count}", std::process::id())
}

/// Eight clients, again and again.
fn come(netns: &Netns) {
    clients_come_to(netns, AT, 8, Duration::from_millis(300), COME);
}

/// A finding about a cause.
struct Found {
    what: String,
    remedy: String,
    finding: Value,
}

impl Found {
    #[track_caller]
    fn says(&self, words: &str) {
        assert!(
            self.what.contains(words),
            "not said: {words}\n{:#}",
            self.finding
        );
    }
}

/// A cgroup that is gone when the test is over. Its members are moved out first.
struct Cgroup {
    folder: PathBuf,
    /// Version 2.
    unified: bool,
}

impl Cgroup {
    /// With this controller: of version 2 where it has it, else of version 1.
    fn new(controller: &str) -> Self {
        let name = unique(&format!("queue-trace-stall-{controller}"));
        let top = Path::new("/sys/fs/cgroup");
        let has = |file: &str| {
            let text = fs::read_to_string(top.join(file)).unwrap_or_default();
            controller == "freezer" && !text.is_empty()
                || text.split_whitespace().any(|one| one == controller)
        };
        let unified = has("cgroup.controllers");
        let folder = if unified {
            if controller != "freezer" {
                fs::write(top.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
            }
            top.join(name)
        } else {
            top.join(controller).join(name)
        };
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        Self { folder, unified }
    }

    fn set(&self, file: &str, value: &str) {
        let path = self.folder.join(file);
        fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    fn take(&self, pid: Pid) {
        self.set("cgroup.procs", &pid.as_raw_nonzero().to_string());
    }

    /// A part of the CPUs, of 100.
    fn set_quota(&self, percent: u32) {
        let quota = percent * 1000;
        if self.unified {
            self.set("cpu.max", &format!("{quota} 100000"));
        } else {
            self.set("cpu.cfs_period_us", "100000");
            self.set("cpu.cfs_quota_us", &quota.to_string());
        }
    }

    /// Before all others, however busy the machine is.
    fn prefer(&self) {
        if has_one_cpu() {
            return;
        }
        if self.unified {
            self.set("cpu.weight", "10000");
        } else {
            self.set("cpu.shares", "262144");
        }
    }

    fn freeze(&self, yes: bool) {
        if self.unified {
            self.set("cgroup.freeze", if yes { "1" } else { "0" });
        } else {
            self.set("freezer.state", if yes { "FROZEN" } else { "THAWED" });
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What was frozen could not end.
        for (file, value) in [("cgroup.freeze", "0"), ("freezer.state", "THAWED")] {
            let file = self.folder.join(file);
            if file.exists() {
                let _ = fs::write(file, value);
            }
        }
        let outside = self.folder.parent().unwrap().join("cgroup.procs");
        let inside = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            let _ = fs::write(&outside, pid);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.folder).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn stopped_by_a_signal() {
    let stalling = start("accept");
    freeze(stalling.pid);
    let found = stalling.assert_found("stopped");
    found.says("SIGSTOP");
    assert_eq!(
        found.remedy,
        format!("kill -CONT {}", stalling.pid.as_raw_nonzero())
    );
    kill_process(stalling.pid, Signal::CONT).unwrap();
}

/// Two seconds without accept() look like a burst. A look at the owner in them shows what they were.
#[test]
fn stopped_for_two_seconds() {
    let stalling = start("accept");
    let netns = &stalling.server.netns;
    let come = |during| clients_come_to(netns, AT, 12, Duration::from_millis(200), during);
    let diagnosis = diagnosed(&unique("stall-short"), netns, || {
        freeze(stalling.pid);
        come(Duration::from_secs(2));
        kill_process(stalling.pid, Signal::CONT).unwrap();
        // It takes those that wait, and others.
        stalling.assert_accepts();
        stalling.assert_accepts();
    });
    let finding = &diagnosis["findings"][0];
    assert_eq!(finding["rule"], "accept-stopped", "{diagnosis:#}");
    assert_eq!(finding["cause"], "stopped", "{diagnosis:#}");
    let still = finding["episodes"][0]["longest_without_accept_s"].as_f64();
    // For longer it is a stop, whatever was seen.
    assert!(still.unwrap() < 3.0, "{diagnosis:#}");
    let mut rules = diagnosis["findings"].as_array().unwrap().iter();
    let burst = rules.find(|one| one["rule"] == "backlog-too-small-for-bursts");
    assert_eq!(burst, None, "{diagnosis:#}");
}

#[test]
fn stopped_by_the_freezer() {
    let stalling = start("accept");
    let cgroup = Cgroup::new("freezer");
    cgroup.take(stalling.pid);
    cgroup.freeze(true);
    let found = stalling.assert_found("stopped");
    found.says("its cgroup is frozen");
    // The real shell takes it, and the server goes on.
    assert!(
        Command::new("sh")
            .args(["-c", &found.remedy])
            .status()
            .unwrap()
            .success()
    );
    stalling.assert_accepts();
}

#[test]
fn throttled_by_a_quota() {
    let stalling = start("spin");
    let cgroup = Cgroup::new("cpu");
    cgroup.set_quota(5);
    cgroup.take(stalling.pid);
    let found = stalling.assert_found("throttled");
    found.says("5.0ms in each 100ms");
    assert!(
        found.remedy.contains(cgroup.folder.to_str().unwrap()),
        "{}",
        found.remedy
    );
    assert!(
        Command::new("sh")
            .args(["-c", &found.remedy])
            .status()
            .unwrap()
            .success()
    );
}

/// The same with room in its quota: its thread is what keeps it.
#[test]
fn busy_beside_a_quota() {
    let stalling = start("spin");
    let cgroup = Cgroup::new("cpu");
    cgroup.set_quota(1000);
    cgroup.prefer();
    cgroup.take(stalling.pid);
    let found = stalling.assert_found("busy");
    found.says("the only one");
}

#[test]
fn one_thread_of_three_is_busy() {
    let found = start("spin_beside").assert_found("busy");
    found.says("thread \"spinner\"");
    found.says("1 of 3 threads");
}

/// One that would run, and another one has its only CPU.
#[test]
fn starved_of_a_cpu() {
    let spin = |nice| {
        let stalling = start_with("spin", |command| {
            command.env(NICE, nice);
        });
        let mut first = CpuSet::new();
        first.set(0);
        sched_setaffinity(Some(stalling.pid), &first).unwrap();
        stalling
    };
    let stalling = spin("19");
    let _greedy = spin(greedy());
    let found = stalling.assert_found("starved");
    found.says("waited for a CPU");
}

#[test]
fn out_of_file_descriptors() {
    let stalling = start("descriptors");
    let found = stalling.assert_found("descriptors");
    found.says("its limit is 16");
    found.says("EMFILE");
}

#[test]
fn blocked_in_the_kernel() {
    let found = start("blocked").assert_found("blocked");
    found.says("state D");
    found.says("in clone()");
}

#[test]
fn waiting_for_a_lock_on_a_file() {
    let scratch = Scratch::new("stall-flock");
    let path = scratch.file("lock");
    let held = File::create(&path).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let stalling = start_with("flock", |command| {
        command.env(FILE, &path);
    });
    let found = stalling.assert_found("lock");
    found.says("in flock()");
    found.says(path.to_str().unwrap());
    assert_eq!(found.remedy, "lslocks");
}

#[test]
fn waiting_for_a_lock_in_memory() {
    let found = start("futex").assert_found("lock");
    found.says("in futex()");
}

#[test]
fn waiting_for_a_child() {
    let found = start("child").assert_found("child");
    found.says("waits for a child process");
}

#[test]
fn asleep_in_a_pipe() {
    let found = start("pipe").assert_found("asleep");
    found.says("read() of a pipe");
}

#[test]
fn nobody_polls() {
    let found = start("not_polled").assert_found("not_polled");
    found.says("no epoll of its owner has the listener");
}

#[test]
fn told_only_once() {
    let found = start("not_drained").assert_found("not_drained");
    found.says("EPOLLET");
}

#[test]
fn a_master_without_workers() {
    let found = start("master").assert_found("not_the_server");
    found.says("a master, and no worker holds the socket");
}

/// A thread of an interpreter computes with its lock held, and the one that accepts waits for that.
#[test]
fn an_interpreter_with_its_lock_held() {
    let script = format!(
        "import re, socket, threading
listener = socket.socket(); listener.bind(('127.0.0.1', {PORT})); listener.listen(8)
threading.Thread(target=lambda: re.match('(a+)+$', 'a' * 60 + 'b'), daemon=True).start()
while True: listener.accept()[0].close()"
    );
    let server = Server::start("stall-interpreter", |_| {
        let mut python = Command::new("python3");
        python.args(["-c", &script]);
        python
    });
    let pid = server.pid();
    let stalling = Stalling {
        does: "interpreter".to_owned(),
        server,
        pid,
    };
    let cgroup = Cgroup::new("cpu");
    cgroup.prefer();
    cgroup.take(pid);
    let found = stalling.assert_found("busy");
    found.says("1 of 2 threads");
}

/// Over `memory.high`, which version 2 of cgroups alone has.
#[test]
fn reclaiming_memory() {
    if unproven("stall::reclaiming_memory", live_tests::ALL) {
        return;
    }
    let stalling = start("memory");
    let cgroup = Cgroup::new("memory");
    cgroup.set("memory.high", &(8u32 << 20).to_string());
    cgroup.take(stalling.pid);
    let found = stalling.assert_found("memory");
    found.says("memory.high");
    assert!(found.remedy.ends_with("memory.high"), "{}", found.remedy);
}

/// One that accepts as fast as it can: nothing is concluded, and nobody looks.
#[test]
fn one_that_accepts() {
    let stalling = start("accept");
    let diagnosis = diagnosed("stall-none", &stalling.server.netns, || {
        come(&stalling.server.netns);
    });
    let findings = diagnosis["findings"].as_array().unwrap();
    assert!(
        findings.iter().all(|one| one["cause"].is_null()),
        "{diagnosis:#}"
    );
}
