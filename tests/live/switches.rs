//! Switches of the machine that keep programs from running, or from reading what they need.
//! What is silent counts as refused: another way is taken, and nothing is missed by it.

#![expect(unsafe_code, reason = "code between fork and exec")]

use std::{fs, io, os::unix::process::CommandExt};

use live_tests::{Attach, Finished, Launch, Room, attach, in_private_mounts};
use queue_trace::lab::Family;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use serde_json::Value;

const ALWAYS: [(&str, u32); 1] = [("net.ipv4.tcp_syncookies", 2)];

const FTRACE: &str = "/proc/sys/kernel/ftrace_enabled";
const KPROBES: &str = "/sys/kernel/debug/kprobes/enabled";

/// A switch in another position, until this is dropped.
struct Switch {
    path: &'static str,
    before: String,
}

impl Switch {
    fn set(path: &'static str, value: &str) -> Self {
        let before = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        fs::write(path, value).unwrap();
        Self { path, before }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        fs::write(self.path, self.before.trim()).unwrap();
    }
}

fn switch_of(way: Attach) -> Option<&'static str> {
    match way {
        Attach::Fentry => Some(FTRACE),
        Attach::Kprobe => Some(KPROBES),
        Attach::Tracepoint => None,
    }
}

fn check(args: &[&str]) -> (Finished, Value) {
    check_with(|| Ok(()), args)
}

/// With something that the program does before it begins.
fn check_with(before: fn() -> io::Result<()>, args: &[&str]) -> (Finished, Value) {
    let finished = Launch::plain(["check", "--json"])
        .args(args)
        .with(|command| {
            // SAFETY: what is given here makes system calls alone, which is all that may happen
            // between fork and exec.
            unsafe { command.pre_exec(before) };
        })
        .finish();
    let report = serde_json::from_str(&finished.stdout).unwrap();
    (finished, report)
}

/// The ways that `check` says can be used.
fn usable(report: &Value) -> Vec<&str> {
    let modes = report["modes"].as_array().unwrap().iter();
    let usable = modes.filter(|mode| mode["usable"] == true);
    usable.map(|mode| mode["mode"].as_str().unwrap()).collect()
}

/// The way is refused by name. Left to itself it takes one that sees all there is, or says that
/// there is none.
fn assert_another_way_is_taken(words: &[&str]) {
    let name = attach().name();
    let (refused, report) = check(&["--attach", name]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let error = report["error"].as_str().unwrap();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");

    let (_, report) = check(&[]);
    let usable = usable(&report);
    assert!(!usable.contains(&name), "{report}");
    let room = Room::new(Family::V4, 4, &ALWAYS);
    let launch = Launch::plain(["--json", "--rate", "0"]).on(&room.netns);
    if usable.is_empty() {
        launch.finish().assert_failed(1, &["cannot attach"]);
        return;
    }
    let tracer = launch.start();
    room.flood(10);
    let recording = tracer.stop();
    recording.assert_reconciled(&room.netns, &room.before);
    assert_eq!(recording.events().count(), 10);
}

#[test]
fn a_switch_that_is_off() {
    if let Some(switch) = switch_of(attach()) {
        let _off = Switch::set(switch, "0");
        assert_another_way_is_taken(&["switched off", switch]);
    } else {
        // Tracepoints have none: they see all with both off.
        // Some machines keep everybody from switching.
        let there = |path: &&&str| {
            fs::read_to_string(**path).is_ok_and(|now| fs::write(**path, now.trim()).is_ok())
        };
        let switches = [FTRACE, KPROBES];
        let _off: Vec<_> = switches
            .iter()
            .filter(there)
            .map(|path| Switch::set(path, "0"))
            .collect();
        let room = Room::new(Family::V4, 4, &ALWAYS);
        let tracer = Launch::live().on(&room.netns).start();
        room.flood(10);
        let recording = tracer.stop();
        recording.assert_reconciled(&room.netns, &room.before);
        assert_eq!(recording.events().count(), 10);
    }
}

/// There is nothing to switch off: what is asked for works.
fn assert_works() {
    let (finished, report) = check(&["--attach", attach().name()]);
    assert_eq!(finished.status.code(), Some(0), "{report}");
}

/// Where the switch cannot be seen, the self-test hears the silence.
#[test]
fn a_switch_that_is_off_and_cannot_be_seen() {
    let Some(switch) = switch_of(attach()) else {
        return assert_works();
    };
    let _off = Switch::set(switch, "0");
    in_private_mounts(|mounts| {
        match attach() {
            Attach::Fentry => mounts.replace("/proc/sys/kernel", "osrelease", "unknown"),
            _ => mounts.hide("/sys/kernel/debug"),
        }
        assert_another_way_is_taken(&["did not run in the self-test"]);
    });
}

/// One sentence, whatever the verifier would say.
#[test]
fn a_kernel_that_is_locked_down() {
    const FOLDER: &str = "/sys/kernel/security";
    for (modes, mode) in [
        ("none integrity [confidentiality]", "confidentiality"),
        ("none [integrity] confidentiality", "integrity"),
    ] {
        let (finished, report) = in_private_mounts(|mounts| {
            mounts.replace(FOLDER, "lockdown", modes);
            check(&["--attach", attach().name()])
        });
        assert_eq!(report["lockdown"], mode);
        if mode == "integrity" {
            assert_eq!(finished.status.code(), Some(0), "{report}");
            continue;
        }
        assert_eq!(finished.status.code(), Some(2), "{report}");
        let error = report["error"].as_str().unwrap();
        assert!(error.starts_with("the kernel is locked down (confidentiality)"));
        assert!(!error.contains('\n'), "{error}");
    }
}

const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";

/// It is for perf_event_open() without privileges: to root nothing changes.
#[test]
fn performance_events_for_nobody_else() {
    for level in ["3", "4"] {
        let _level = Switch::set(PARANOID, level);
        let (finished, report) = check(&["--attach", attach().name()]);
        assert_eq!(finished.status.code(), Some(0), "{report}");
        assert_eq!(usable(&report), [attach().name()]);
    }
}

/// With CAP_BPF and CAP_PERFMON alone some distributions' kernels then refuse kprobes. That is
/// said, and the other ways are left.
#[test]
fn performance_events_for_two_capabilities() {
    let name = attach().name();
    for level in ["2", "3", "4"] {
        let _level = Switch::set(PARANOID, level);
        let (finished, report) = check_with(two_capabilities, &["--attach", name]);
        assert_eq!(report["privileges"], "CAP_BPF, CAP_PERFMON");
        if attach() == Attach::Kprobe && finished.status.code() == Some(2) {
            let error = report["error"].as_str().unwrap();
            let words = [&format!("perf_event_paranoid is {level}"), "CAP_SYS_ADMIN"];
            assert!(words.iter().all(|word| error.contains(*word)), "{error}");
            assert_ne!(level, "2", "CAP_PERFMON suffices");
        } else {
            assert_eq!(finished.status.code(), Some(0), "{report}");
            assert_eq!(usable(&report), [name]);
        }
        let (_, report) = check_with(two_capabilities, &[]);
        assert!(!usable(&report).is_empty(), "{report}");
    }
}

/// Leaves root no more than what it takes to attach.
fn two_capabilities() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        if ![CapabilitySet::BPF, CapabilitySet::PERFMON].contains(&capability) {
            // Kernels differ in how many there are.
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
    Ok(())
}
