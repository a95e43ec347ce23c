//! An application under a debugger: stopped by it, and only traced. The debugger is this test
//! program, started again ([`the_debugger`]).

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdin, Command, Stdio},
};

use rustix::process::Pid;

use super::start;

/// The process that it traces.
const TRACES: &str = "QUEUE_TRACE_DEBUGGER_TRACES";
/// Whether it stops that.
const STOPS: &str = "QUEUE_TRACE_DEBUGGER_STOPS";
/// What it says when it has it.
const READY: &str = "the debugger is ready";

/// A debugger; started by [`Debugger::start`], and no test.
#[test]
#[ignore = "the debugger of the other tests"]
fn the_debugger() {
    let pid: libc::pid_t = std::env::var(TRACES).unwrap().parse().unwrap();
    std::fs::write("/proc/self/comm", "debugger").unwrap();
    let ask = |request| {
        // SAFETY: these requests take no address and write nothing to our memory.
        #[expect(unsafe_code, reason = "there is no safe ptrace")]
        let done = unsafe { libc::ptrace(request, pid, 0, 0) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    };
    ask(libc::PTRACE_SEIZE);
    if std::env::var_os(STOPS).is_some() {
        ask(libc::PTRACE_INTERRUPT);
        let mut status = 0;
        // SAFETY: the status is a place of ours, for this call.
        #[expect(unsafe_code, reason = "rustix waits for children, and this is none")]
        let stopped = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        assert_eq!(stopped, pid);
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
    }
    println!("\n{READY}");
    // Until the test has seen enough, or is gone. The kernel lets go of what a process traced that
    // ends.
    let _ = std::io::stdin().read(&mut [0]).unwrap();
}

struct Debugger {
    process: Child,
    until: Option<ChildStdin>,
}

impl Debugger {
    fn start(of: Pid, stops: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "stall::debugger::the_debugger", "--ignored"])
            .args(["--nocapture", "--test-threads=1"])
            .env(TRACES, of.as_raw_nonzero().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if stops {
            command.env(STOPS, "1");
        }
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let until = process.stdin.take();
        let debugger = Self { process, until };
        assert!(lines.any(|line| line.unwrap() == READY), "it has ended");
        // What it says at its end is nobody's concern, and must find a reader.
        std::thread::spawn(move || lines.count());
        debugger
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        drop(self.until.take());
        let _ = self.process.wait();
    }
}

#[test]
fn it_keeps_it_stopped() {
    let stalling = start("accept");
    let debugger = Debugger::start(stalling.pid, true);
    let pid = debugger.process.id();
    let found = stalling.assert_found("stopped");
    found.says(&format!("debugger[{pid}] traces it and keeps it stopped"));
    // No signal has stopped it, and none lets it go on.
    assert!(!found.what.contains("SIGSTOP"), "{}", found.what);
    assert_eq!(found.remedy, format!("ps -fp {pid}"));
    let remedies = found.finding["remedies"].to_string();
    assert!(!remedies.contains("kill -CONT"), "{remedies}");
    drop(debugger);
    stalling.assert_accepts();
}

/// It traces it, and its thread computes: that is what keeps it.
#[test]
fn it_only_traces_it() {
    let stalling = start("spin");
    let _debugger = Debugger::start(stalling.pid, false);
    let found = stalling.assert_found("busy");
    assert!(!found.what.contains("traces it"), "{}", found.what);
}
