//! What it keeps of its privileges once it is attached, as the kernel shows it, in every thread.

use std::{fs, io};

use live_tests::{Launch, Tracer, attach};

/// CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_BPF, by their numbers
/// (include/uapi/linux/capability.h).
const KEPT: u64 = 1 << 2 | 1 << 19 | 1 << 21 | 1 << 39;

fn assert_has_given_up(tracer: &Tracer) {
    let tasks = format!("/proc/{}/task", tracer.pid());
    let mut threads = 0;
    for task in fs::read_dir(tasks).unwrap() {
        let status = match fs::read_to_string(task.unwrap().path().join("status")) {
            Ok(status) => status,
            // A thread that looks at namespaces has ended since it was listed.
            Err(error) if is_gone(&error) => continue,
            Err(error) => panic!("{error}"),
        };
        threads += 1;
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim_start_matches(':').trim().to_owned()
        };
        let set = |name| u64::from_str_radix(&value(name), 16).unwrap();
        for name in ["CapEff", "CapPrm"] {
            assert_eq!(set(name) & !KEPT, 0, "{status}");
        }
        for name in ["CapInh", "CapAmb", "CapBnd"] {
            assert_eq!(set(name), 0, "{status}");
        }
        assert_eq!(value("NoNewPrivs"), "1", "{status}");
        assert_eq!(value("Seccomp"), "2", "{status}");
    }
    assert!(threads > 0);
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[test]
fn only_what_is_needed_is_kept() {
    for args in [
        &["--json", "--all"][..],
        &["listeners", "--watch", "1s", "--json"],
        &["diagnose", "--for", "1h"],
    ] {
        let tracer = Launch::plain(args)
            .args(["--attach", attach().name()])
            .start();
        assert_has_given_up(&tracer);
        tracer.signal(rustix::process::Signal::TERM);
        let finished = tracer.wait();
        assert!(
            matches!(finished.status.code(), Some(0..=2)),
            "{finished:?}"
        );
    }
}
