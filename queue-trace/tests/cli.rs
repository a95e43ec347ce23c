//! The command line as far as it needs nothing of the kernel: what is refused before
//! anything is attached, in which words, with which status. The live tests have the
//! rest.

#![expect(
    clippy::unwrap_used,
    reason = "what is not there is a failure, and says so"
)]

use std::process::{Command, Output};

use clap::{CommandFactory, Parser};
use queue_trace::commands::Cli;

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

/// Every command's help has an example, and clap takes it as it stands there.
#[test]
fn every_help_has_an_example_that_is_a_command_line() {
    let command = Cli::command();
    let names = command.get_subcommands().map(clap::Command::get_name);
    for name in std::iter::once("").chain(names) {
        let args: Vec<_> = [name, "--help"]
            .into_iter()
            .filter(|arg| !arg.is_empty())
            .collect();
        let help = String::from_utf8(run(&args).stdout).unwrap();
        let (_, examples) = help
            .split_once("\nExample")
            .unwrap_or_else(|| panic!("{name}: no example in {help}"));
        let mut found = 0;
        for line in examples.lines().skip(1).map(str::trim) {
            // What comes before a pipe, or after it, is another program's.
            let Some(own) = line
                .split('|')
                .map(str::trim)
                .find(|part| part.starts_with("queue-trace"))
            else {
                continue;
            };
            // Explained after two spaces.
            let own = own.split("  ").next().unwrap().split(" > ").next().unwrap();
            let parsed = Cli::try_parse_from(own.split_whitespace());
            assert!(parsed.is_ok(), "{name}: {own}: {}", parsed.unwrap_err());
            found += 1;
        }
        assert!(found > 0, "{name}: {examples}");
    }
}

#[test]
fn completions_and_manual_pages_are_of_this_command_line() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("diagnose"), "{shell}");
        assert!(script.contains("rotate"), "{shell}");
    }
    let page = String::from_utf8(run(&["man"]).stdout).unwrap();
    assert!(
        page.starts_with(".ie") || page.contains(".TH queue-trace"),
        "{page}"
    );
    let folder = std::env::temp_dir().join(format!("queue-trace-man-{}", std::process::id()));
    let output = run(&["man", folder.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    assert!(folder.join("queue-trace.1").exists());
    assert!(folder.join("queue-trace-replay.1").exists());
    std::fs::remove_dir_all(folder).unwrap();
}

/// A recording is read whatever reads it, and what is no recording is refused.
#[test]
fn a_recording_is_replayed_as_text_and_as_json() {
    let recording = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/recordings/accept-overflow.jsonl"
    );
    let text = String::from_utf8(run(&["replay", recording]).stdout).unwrap();
    assert_eq!(text.matches("accept 11/10").count(), 89, "{text}");
    assert!(text.contains("unexplained 0"), "{text}");
    let json = String::from_utf8(run(&["replay", "--json", recording]).stdout).unwrap();
    assert_eq!(json, std::fs::read_to_string(recording).unwrap());
    let none = String::from_utf8(run(&["replay", "--json", "-p", "1", recording]).stdout).unwrap();
    assert!(!none.contains("syn_dropped\",\"cause"), "{none}");
    assert!(none.contains("\"type\":\"header\""), "{none}");
    assert_refused(
        &["replay", "--netns", "/run/netns/x", recording],
        1,
        &["--netns", "by number"],
    );
    assert_refused(&["replay", "/no/such/file"], 1, &["/no/such/file"]);
    assert_refused(
        &["replay", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")],
        1,
        &["not a recording"],
    );
    assert_refused(&["replay", env!("CARGO_MANIFEST_DIR")], 1, &["folder"]);
    assert_refused(&["diagnose", "/no/such/file"], 2, &["/no/such/file"]);
    assert_refused(&["diagnose", "--for", "5s", recording], USAGE, &["--for"]);
    // How a kernel is watched says nothing about a recording.
    for command in ["diagnose", "top"] {
        assert_refused(
            &[command, "--attach", "fentry", recording],
            USAGE,
            &["--attach"],
        );
    }
    assert_refused(&["top", "-"], 1, &["terminal"]);
    assert_refused(&["--rotate", "1M"], USAGE, &["--output"]);
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
