//! The program as a child process: started, waited for, told to stop, and never left
//! behind.

use std::{
    collections::HashSet,
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::maps::MapData;
use queue_trace::lab::Netns;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};

use crate::{
    attached, bpf,
    expected::Shown,
    recording::Recording,
    room::Room,
    setting::{self, attach},
    signals,
};

/// Within it even an emulated machine attaches, or detaches, beside other work.
const DEADLINE: Duration = Duration::from_secs(240);

/// Within it even an emulated machine ends a run. What once failed took minutes, or for ever.
const SOON: Duration = Duration::from_secs(60);

/// How the program is to be started.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    /// Whether its standard output is taken down.
    reads: bool,
}

impl Launch {
    /// With these arguments and no others.
    #[must_use]
    pub fn plain<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::of(&setting::program(), args)
    }

    /// Of another copy of the program.
    #[must_use]
    pub fn of<S: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(program);
        command
            .args(args)
            // What the person who runs the tests prefers is none of their business.
            .env_remove("NO_COLOR")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        signals::heed(&mut command);
        Self {
            command,
            reads: true,
        }
    }

    /// The live stream as text, attached in the way that is tested.
    #[must_use]
    pub fn text() -> Self {
        Self::plain(["--attach", attach().name()])
    }

    /// The live stream as JSON, attached in the way that is tested, a line for each
    /// verdict however many there are.
    #[must_use]
    pub fn live() -> Self {
        Self::text().args(["--json", "--rate", "0"])
    }

    /// The same, showing refusals, or everything.
    #[must_use]
    pub fn showing(shown: Shown) -> Self {
        match shown {
            Shown::Refusals => Self::live(),
            Shown::All => Self::live().arg("--all"),
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// In this namespace only; in these, if called again.
    #[must_use]
    pub fn on(self, netns: &Netns) -> Self {
        self.arg("--netns").arg(netns.path())
    }

    /// In all these rooms and nowhere else.
    #[must_use]
    pub fn on_all<'a>(self, rooms: impl IntoIterator<Item = &'a Room>) -> Self {
        let on = |launch: Self, room: &Room| launch.on(&room.netns);
        rooms.into_iter().fold(self, on)
    }

    /// With a variable set.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// With its standard output going there.
    #[must_use]
    pub fn stdout_to(mut self, stdout: OwnedFd) -> Self {
        self.command.stdout(stdout);
        self.reads = false;
        self
    }

    /// In a terminal: its standard input, output and error.
    #[must_use]
    pub fn terminal(self, terminal: OwnedFd) -> Self {
        let (input, error) = (terminal.try_clone().unwrap(), terminal.try_clone().unwrap());
        let mut launch = self.stdout_to(terminal);
        launch.command.stdin(input).stderr(error);
        launch
    }

    /// With a standard output that nobody reads: [`Tracer::take_stdout`] gives its
    /// other end.
    #[must_use]
    pub fn unread(mut self) -> Self {
        self.reads = false;
        self
    }

    /// Whatever else there is to say about how it starts.
    #[must_use]
    pub fn with(mut self, say: impl FnOnce(&mut Command)) -> Self {
        say(&mut self.command);
        self
    }

    /// Starts it, and waits until it says that it is attached.
    #[must_use]
    pub fn start(self) -> Tracer {
        self.spawn().ready()
    }

    /// Starts it, and waits until it ends by itself.
    #[must_use]
    pub fn finish(self) -> Finished {
        self.spawn().wait()
    }

    /// Starts it.
    #[must_use]
    pub fn spawn(mut self) -> Tracer {
        let mut child = self.command.spawn().unwrap();
        // The command holds what it was given as standard output.
        drop(self.command);
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let (sender, stderr_lines) = mpsc::channel();
        let stderr = stderr.map(|stderr| {
            thread::spawn(move || {
                let mut text = String::new();
                for line in BufReader::new(stderr).lines() {
                    let line = line.unwrap();
                    text.push_str(&line);
                    text.push('\n');
                    // Nobody listens any more once it is ready.
                    let _ = sender.send(line);
                }
                text
            })
        });
        let (stdout, unread) = match (stdout, self.reads) {
            (Some(stdout), true) => (Some(read_in_thread(stdout)), None),
            (stdout, _) => (None, stdout),
        };
        Tracer {
            child,
            stdout,
            unread,
            stderr,
            stderr_lines,
            programs: HashSet::new(),
        }
    }
}

fn read_in_thread(mut stdout: ChildStdout) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        text
    })
}

/// The program at work. It is killed if the test ends without it.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    unread: Option<ChildStdout>,
    stderr: Option<JoinHandle<String>>,
    stderr_lines: Receiver<String>,
    /// What it had loaded when it was ready.
    programs: HashSet<u32>,
}

impl Tracer {
    /// Waits until it is attached.
    #[must_use]
    pub fn ready(mut self) -> Self {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stderr_lines.recv_timeout(left) {
                Ok(line) if line.starts_with("ready:") => break,
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("not ready within {DEADLINE:?}"),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let finished = self.wait();
                    panic!("it ended and was never ready: {finished:?}");
                }
            }
        }
        self.programs = attached::programs_of(self.pid());
        self
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The kernel side's map of that name.
    #[must_use]
    pub fn map(&self, name: &str) -> MapData {
        attached::map_of(&self.programs, name)
    }

    /// How often the kernel side's program of that name ran while runs were counted.
    #[must_use]
    pub fn runs_of(&self, name: &str) -> u64 {
        attached::runs_of(&self.programs, name)
    }

    /// Leaves no room in the kernel side's table of that name. How much there was.
    pub fn fill(&self, table: &str) -> usize {
        bpf::fill(&self.map(table)).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.process(), signal).unwrap();
    }

    /// The reading end of its standard output, where nobody reads it.
    #[must_use]
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.unread.take().unwrap()
    }

    /// Reads from now on what nobody read so far.
    pub fn read_after_all(&mut self) {
        let stdout = self.take_stdout();
        self.stdout = Some(read_in_thread(stdout));
    }

    /// Tells it to stop, and gives what it recorded. It must have ended well.
    #[must_use]
    pub fn stop(self) -> Recording {
        self.signal(Signal::TERM);
        self.wait().recording()
    }

    /// Tells it to stop, and waits until it ends, which must be soon. Prints how long that took:
    /// docs/performance.md has it.
    #[must_use]
    pub fn end_soon(self) -> Finished {
        let asked = Instant::now();
        self.signal(Signal::TERM);
        let finished = self.wait();
        let took = asked.elapsed();
        println!("ended {:.2} s after the signal", took.as_secs_f64());
        assert!(took < SOON, "{took:?}");
        finished
    }

    /// Waits until it ends. Nothing of it stays in the kernel.
    #[must_use]
    pub fn wait(mut self) -> Finished {
        let pidfd = pidfd_open(self.process(), PidfdFlags::empty()).unwrap();
        wait_for(&pidfd, PollFlags::IN, "the program to end");
        let status = self.child.wait().unwrap();
        attached::assert_gone(&self.programs);
        let text = |thread: Option<JoinHandle<String>>| {
            thread
                .map(|thread| thread.join().unwrap())
                .unwrap_or_default()
        };
        Finished {
            status,
            stdout: text(self.stdout.take()),
            stderr: text(self.stderr.take()),
        }
    }

    fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a descriptor is ready, and fails if it takes too long.
fn wait_for(fd: &impl AsFd, what: PollFlags, name: &str) {
    let deadline = Timespec::try_from(DEADLINE).unwrap();
    let ready = poll(&mut [PollFd::new(fd, what)], Some(&deadline)).unwrap();
    assert_eq!(ready, 1, "waited {DEADLINE:?} for {name}");
}

/// What is left of a run.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All that it wrote to standard output, where that was read.
    pub stdout: String,
    /// All that it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// What it recorded. It must have ended well.
    #[must_use]
    pub fn recording(&self) -> Recording {
        self.assert_well();
        Recording::parse(&self.stdout)
    }

    /// It ended with status 0, and complained of nothing.
    pub fn assert_well(&self) {
        assert_eq!(self.status.code(), Some(0), "{}", self.stderr);
        for line in self.stderr.lines() {
            let known = ["ready: ", "note: "]
                .iter()
                .any(|word| line.starts_with(word));
            assert!(known, "on standard error: {line}");
        }
    }

    /// It ended with this status and one message, which has all these words in it.
    pub fn assert_failed(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status.code(), Some(status), "{self:?}");
        for word in words {
            assert!(
                self.stderr.contains(word),
                "no {word:?} in: {}",
                self.stderr
            );
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}
