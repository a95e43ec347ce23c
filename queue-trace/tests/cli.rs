//! The command line as far as it needs nothing of the kernel: what is refused before
//! anything is attached, in which words, with which status. The live tests have the
//! rest.

#![expect(
    clippy::unwrap_used,
    reason = "what is not there is a failure, and says so"
)]

use std::process::{Command, Output};

/// clap's own status for a command line that it refuses.
const USAGE: i32 = 2;

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_queue-trace"));
    command.args(args).output().unwrap()
}

/// Nothing on standard output, the status, and a message that has all these words.
fn assert_refused(args: &[&str], status: i32, words: &[&str]) {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: no {word:?} in: {stderr}");
    }
}

/// A bad value is named, with its option and what would do.
#[test]
fn bad_values() {
    for (args, words) in [
        (&["-p", "http"][..], &["'http'", "--port", "1 to 65535"][..]),
        (&["-p", "80,0"], &["'0'", "--port", "1 to 65535"]),
        (&["-p", "80-"], &["'80-'", "--port", "1 to 65535"]),
        (&["-p", "90-80"], &["'90-80'", "--port", "before it begins"]),
        (
            &["--addr", "10.0.0.0/99"],
            &["'10.0.0.0/99'", "--addr", "10.0.0.0/8"],
        ),
        (&["--client", "example.org"], &["'example.org'", "--client"]),
        (&["--netns", "blue"], &["'blue'", "--netns", "path"]),
        (
            &["--event", "dropped"],
            &["'dropped'", "--event", "syn_dropped"],
        ),
        (
            &["--event", "syn_dropped:bored"],
            &["syn_dropped:bored", "last_quarter"],
        ),
        (&["--duration", "soon"], &["'soon'", "--duration", "30s"]),
        (&["--count", "0"], &["'0'", "--count"]),
        (
            &["--attach", "ptrace"],
            &["'ptrace'", "--attach", "tracepoint"],
        ),
        (
            &["demo", "no-such-case"],
            &["'no-such-case'", "accept-overflow"],
        ),
    ] {
        assert_refused(args, USAGE, words);
    }
}

#[test]
fn options_that_exclude_each_other() {
    assert_refused(
        &["--all", "--event", "queued"],
        USAGE,
        &["--all", "--event"],
    );
    assert_refused(&["--json", "check"], USAGE, &["check"]);
}

#[test]
fn too_many_namespaces() {
    let args: Vec<_> = (1..=9).flat_map(|_| ["--netns", "1"]).collect();
    assert_refused(&args, USAGE, &["--netns", "8 times"]);
}

/// Said before privileges are asked for, as it is wrong whoever says it.
#[test]
fn a_path_that_leads_to_no_namespace() {
    for path in ["/no/such/file", env!("CARGO_MANIFEST_DIR")] {
        assert_refused(
            &["--netns", path],
            1,
            &["--netns", path, "no network namespace"],
        );
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (args, words) in [
        (
            &["--help"][..],
            &["--port", "--netns", "Examples:", "demo", "check"][..],
        ),
        (
            &["demo", "--help"],
            &["accept-overflow", "syn-flood", "cookies"],
        ),
        (&["--version"], &["queue-trace", env!("CARGO_PKG_VERSION")]),
    ] {
        let output = run(args);
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(output.stderr.is_empty(), "{args:?}");
        for word in words {
            assert!(stdout.contains(word), "{args:?}: no {word:?} in: {stdout}");
        }
    }
}
