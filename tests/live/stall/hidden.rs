//! An owner that may not be looked at: what is not known is said, and nothing is concluded.

use std::{ffi::CStr, fs, os::unix::process::CommandExt};

use live_tests::{Launch, Scratch, in_private_mounts};
use rustix::{
    mount::{MountFlags, mount},
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
        "process PID cannot be looked at: /proc hides the processes of others (hidepid), or it has ended",
    );
}

/// It shows that there is one, and not what it has open.
#[test]
fn without_a_privilege() {
    looked_at(
        None,
        "the open files of process PID cannot be read: Permission denied",
    );
}

/// By queue-trace without CAP_SYS_PTRACE, with these options of /proc.
#[track_caller]
fn looked_at(options: Option<&CStr>, words: &str) {
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
        let tracer = Launch::text()
            .args(["--json", "--all", "--rate", "60", "-o"])
            .arg(&path)
            .arg("--netns")
            .arg(&netns)
            .with(|command| {
                let less = || {
                    remove_capability_from_bounding_set(CapabilitySet::SYS_PTRACE)?;
                    Ok(())
                };
                // SAFETY: one system call, which allocates nothing.
                #[expect(unsafe_code, reason = "what runs between fork and exec")]
                unsafe {
                    command.pre_exec(less)
                };
            })
            .start();
        come(&stalling.server.netns);
        let _ = tracer.stop();
    });
    let finished = Launch::plain(["diagnose", "--json"]).arg(&path).finish();
    let diagnosis: Value = serde_json::from_str(&finished.stdout).unwrap();
    let findings = diagnosis["findings"].as_array().unwrap();
    assert!(!findings.is_empty(), "{diagnosis:#}");
    for one in findings {
        assert!(one["cause"].is_null(), "{one:#}");
    }
    let pid = stalling.pid.as_raw_nonzero();
    let said = words.replace("PID", &pid.to_string());
    let evidence = findings[0]["evidence"].to_string();
    assert!(evidence.contains(&said), "{diagnosis:#}");
    // The lines say it as well, and the owner is known all the same.
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
        assert_eq!(line["processes"][0]["pid"], pid.get());
        assert_eq!(line["stall"]["looked"], 0, "{line:#}");
        assert!(line["stall"]["cause"].is_null(), "{line:#}");
    }
}
