//! `queue-trace check`: what it says, and its exit status.

use live_tests::{Attach, Launch, attach, in_private_mounts};

#[test]
fn the_main_verdicts_are_observable_here() {
    let finished = Launch::plain(["check", "--attach", attach().name()]).finish();
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
    assert_eq!(finished.stderr, "");
    let text = finished.stdout;
    let has = |words: &[&str]| {
        text.lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
    };
    assert!(has(&["kernel", kernel().as_str()]), "{text}");
    assert!(has(&["privileges", "CAP_SYS_ADMIN"]), "{text}");
    assert!(has(&["types", "/sys/kernel/btf/vmlinux"]), "{text}");
    assert!(has(&[attach().name(), "attached"]), "{text}");
    assert!(has(&["tcp_check_req"]), "{text}");
    assert!(has(&["syn_dropped:accept_queue_full", "dropped"]), "{text}");
    assert!(has(&["The main verdicts are observable."]), "{text}");
    let less = attach() == Attach::Tracepoint;
    assert_eq!(has(&["not observable"]), less, "{text}");
}

fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.trim().to_owned()
}

#[test]
fn left_to_itself_it_finds_a_way() {
    let finished = Launch::plain(["check"]).finish();
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
}

/// Without the kernel's types nothing can be observed, and it says what to do.
#[test]
fn without_types_nothing_is() {
    let finished = in_private_mounts(|mounts| {
        mounts.hide("/sys/kernel/btf");
        Launch::plain(["check"]).finish()
    });
    assert_eq!(finished.status.code(), Some(2), "{finished:?}");
    assert!(finished.stdout.contains("--btf"), "{finished:?}");
    assert!(
        finished.stdout.contains("Nothing can be observed."),
        "{finished:?}"
    );
}
