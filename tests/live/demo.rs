//! `queue-trace demo`: each case ends well, says what happened, and leaves nothing.

use std::os::unix::process::CommandExt;
use std::{fs, iter};

use live_tests::{Finished, Launch, attach, in_private_mounts};
use queue_trace::lab::scenario::SCENARIOS;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process_group};

#[test]
fn every_case_is_shown() {
    for scenario in SCENARIOS {
        let finished = demo(&[scenario.name]);
        println!("{}\n{}", scenario.name, finished.stderr);
        assert!(finished.stderr.contains(scenario.about), "{finished:?}");
        assert!(finished.stdout.contains("unexplained 0"), "{finished:?}");
        let explained = finished
            .stderr
            .lines()
            .any(|line| line.contains(" times: "));
        assert!(explained, "{finished:?}");
    }
}

#[test]
fn over_ipv6_as_well() {
    let finished = demo(&["ack-overflow", "-6"]);
    assert!(finished.stdout.contains("[::1]:8080"), "{finished:?}");
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
    let recording = live_tests::Recording::parse(&finished.stdout);
    assert_eq!(recording.header().attach.family, attach().name());
    assert!(recording.events().count() > 0);
    let explained = |ledger: &live_tests::Ledger| ledger.unexplained == Some(0);
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
        assert_eq!(namespaces_mounted(), mounted);
        finished
    })
}

/// Namespaces that stay because they are mounted somewhere, as this thread sees it.
fn namespaces_mounted() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let namespaces = mounts.lines().filter(|line| line.contains(" - nsfs "));
    namespaces.map(str::to_owned).collect()
}
