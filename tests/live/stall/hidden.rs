//! An owner that may not be looked at: what is not known is said, and nothing is concluded.

use std::{ffi::CStr, fs, os::unix::process::CommandExt, path::Path};

use live_tests::{Launch, Scratch, Tracer, attach, in_private_mounts, program};
use rustix::{
    mount::{MountFlags, mount},
    process::{Pid, Signal, kill_process},
    thread::{CapabilitySet, remove_capability_from_bounding_set},
};
use serde_json::Value;

use super::{come, start, unique};

/// /proc shows those without CAP_SYS_PTRACE no process of others.
#[test]
fn behind_hidepid() {
    // Members of a group are shown all; it is that of root unless another one is named.
    looked_at(
        Some(c"hidepid=2,gid=65534"),
        without_ptrace,
        true,
        "process <pid> cannot be looked at: /proc hides the processes of others (hidepid), or it has ended",
    );
}

/// It shows that there is one, and not what it has open.
#[test]
fn without_a_privilege() {
    looked_at(
        None,
        without_ptrace,
        true,
        "the open files of process <pid> cannot be read: Permission denied",
    );
}

/// queue-trace is in a container, and the application is not.
#[test]
fn in_another_pid_namespace() {
    looked_at(
        None,
        in_a_pid_namespace,
        false,
        "no process is known that holds the socket, and only those of this PID namespace can be",
    );
}

fn recorded(launch: Launch, path: &Path, netns: &Path) -> Tracer {
    let launch = launch.args(["--attach", attach().name(), "--json", "--all"]);
    let launch = launch.args(["--rate", "60", "-o"]).arg(path);
    launch.arg("--netns").arg(netns).start()
}

fn without_ptrace(path: &Path, netns: &Path, play: &dyn Fn()) {
    let launch = Launch::plain([""; 0]).with(|command| {
        let less = || {
            remove_capability_from_bounding_set(CapabilitySet::SYS_PTRACE)?;
            Ok(())
        };
        // SAFETY: one system call, which allocates nothing.
        #[expect(unsafe_code, reason = "what runs between fork and exec")]
        unsafe {
            command.pre_exec(less)
        };
    });
    let tracer = recorded(launch, path, netns);
    play();
    let _ = tracer.stop();
}

fn in_a_pid_namespace(path: &Path, netns: &Path, play: &dyn Fn()) {
    let launch = Launch::of(
        Path::new("unshare"),
        ["--pid", "--fork", "--kill-child", "--mount-proc"],
    );
    let tracer = recorded(launch.arg(program()), path, netns);
    play();
    // Its parent, whom we started, takes no signal.
    let children = format!("/proc/{0}/task/{0}/children", tracer.pid());
    let child = fs::read_to_string(children).unwrap();
    let child = child.trim().parse().ok().and_then(Pid::from_raw).unwrap();
    kill_process(child, Signal::INT).unwrap();
    tracer.wait().assert_well();
}

/// By queue-trace started that way, with these options of /proc. Whether the owner is known.
#[track_caller]
fn looked_at(
    options: Option<&CStr>,
    start_it: fn(&Path, &Path, &dyn Fn()),
    owner_is_known: bool,
    words: &str,
) {
    let scratch = Scratch::new(&unique("stall-hidden"));
    let path = scratch.file("hidden.jsonl");
    let stalling = start("pipe");
    let netns = scratch.file("netns");
    fs::write(&netns, "").unwrap();
    in_private_mounts(|mounts| {
        // By a path that is not in /proc.
        mounts.bind(&stalling.server.netns.path(), &netns);
        if let Some(options) = options {
            mount("proc", "/proc", "proc", MountFlags::empty(), options).unwrap();
        }
        start_it(&path, &netns, &|| come(&stalling.server.netns));
    });
    let finished = Launch::plain(["diagnose", "--json"]).arg(&path).finish();
    let diagnosis: Value = serde_json::from_str(&finished.stdout).unwrap();
    let findings = diagnosis["findings"].as_array().unwrap();
    assert!(!findings.is_empty(), "{diagnosis:#}");
    for one in findings {
        assert!(one["cause"].is_null(), "{one:#}");
    }
    let pid = stalling.pid.as_raw_nonzero();
    let said = words.replace("<pid>", &pid.to_string());
    let evidence = findings[0]["evidence"].to_string();
    assert!(evidence.contains(&said), "{diagnosis:#}");
    // The lines say it as well, and an owner that is known is named all the same.
    let lines = fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let stalls: Vec<_> = lines
        .iter()
        .filter(|line| line["stall"].is_object())
        .collect();
    assert!(!stalls.is_empty());
    for line in stalls {
        let owner = &line["processes"][0]["pid"];
        assert_eq!(owner.as_i64(), owner_is_known.then_some(pid.get().into()));
        assert_eq!(line["stall"]["looked"], 0, "{line:#}");
        assert!(line["stall"]["cause"].is_null(), "{line:#}");
    }
}
