//! `queue-trace demo`: each case ends well, says what happened, and leaves nothing.

use std::{collections::BTreeSet, fs, iter, os::unix::process::CommandExt};

use live_tests::{Finished, Launch, Ledger, Recording, attach, in_private_mounts};
use queue_trace::lab::scenario::SCENARIOS;
use rustix::{
    io::Errno,
    process::{Pid, test_kill_process_group},
};

#[test]
fn every_case_is_shown() {
    for (number, scenario) in SCENARIOS.iter().enumerate() {
        // Over both families in turn.
        let family: &[&str] = if number % 2 == 0 { &[] } else { &["--ipv6"] };
        let finished = demo(&[&[scenario.name], family].concat());
        println!("{}\n{}", scenario.name, finished.stderr);
        assert!(finished.stderr.contains(scenario.about), "{finished:?}");
        let explained = |line: &str| line.contains(" times: ");
        assert!(finished.stderr.lines().any(explained), "{finished:?}");
        assert!(finished.stdout.contains("unexplained 0"), "{finished:?}");
        let address = if family.is_empty() {
            "127.0.0.1:8080"
        } else {
            "[::1]:8080"
        };
        assert!(finished.stdout.contains(address), "{finished:?}");
    }
}

#[test]
fn the_default_case_is_the_most_common_one() {
    let finished = demo(&[]);
    assert!(finished.stdout.contains("accept 11/10"), "{finished:?}");
    assert!(finished.stderr.contains("89 times"), "{finished:?}");
}

#[test]
fn as_json_it_is_a_recording() {
    let finished = demo(&["cookies", "--json"]);
    let recording = Recording::parse(&finished.stdout);
    assert_eq!(recording.header().attach.family, attach().name());
    assert!(recording.events().count() > 0);
    let explained = |ledger: &Ledger| ledger.unexplained == Some(0);
    assert!(recording.ledgers().all(explained), "{recording:?}");
}

/// Plays a case, in a process group and with mounts of its own, so that a process or
/// a namespace left behind shows.
fn demo(args: &[&str]) -> Finished {
    in_private_mounts(|_| {
        let mounted = namespaces_mounted();
        let launch = Launch::plain(iter::once("demo").chain(args.iter().copied()))
            .args(["--attach", attach().name()])
            .with(|command| {
                command.process_group(0);
            });
        let tracer = launch.start();
        let group = Pid::from_raw(tracer.pid().cast_signed()).unwrap();
        let finished = tracer.wait();
        assert_eq!(finished.status.code(), Some(0), "{finished:?}");
        assert_eq!(test_kill_process_group(group), Err(Errno::SRCH));
        // Others may unmount theirs meanwhile.
        let left = namespaces_mounted();
        assert!(left.is_subset(&mounted), "{left:?} after {mounted:?}");
        finished
    })
}

/// Namespaces that stay because they are mounted somewhere, as this thread sees it.
fn namespaces_mounted() -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let namespaces = mounts.lines().filter(|line| line.contains(" - nsfs "));
    namespaces.map(str::to_owned).collect()
}
