//! Builds the program and its live tests, and finds what cargo made.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{architecture::Architecture, cross, process, workspace};

/// What a build is for.
#[derive(Clone, Copy)]
pub enum For {
    /// This machine.
    Here,
    /// A guest without libraries: static, and in a folder of its own, as other
    /// flags would otherwise throw away the ordinary builds.
    Guest(Architecture),
}

/// The queue-trace program, as it is released.
pub fn program(place: For) -> Result<PathBuf> {
    build(
        place,
        &[
            "build",
            "--release",
            "--package",
            "queue-trace",
            "--bin",
            "queue-trace",
        ],
        "queue-trace",
    )
}

/// The program of the live tests.
pub fn live_tests(place: For) -> Result<PathBuf> {
    let mut args = vec![
        "test",
        "--no-run",
        "--package",
        "live-tests",
        "--test",
        "live",
    ];
    if matches!(place, For::Guest(_)) {
        // Small, as it travels in memory, and fast, as guests are slow.
        args.push("--release");
    }
    build(place, &args, "live")
}

/// The program that measures.
pub fn bench(place: For) -> Result<PathBuf> {
    build(
        place,
        &[
            "build",
            "--release",
            "--package",
            "live-tests",
            "--bin",
            "bench",
        ],
        "bench",
    )
}

/// The program of the unit tests, which holds the laboratory's own tests.
pub fn unit_tests() -> Result<PathBuf> {
    build(
        For::Here,
        &["test", "--no-run", "--package", "queue-trace", "--lib"],
        "queue_trace",
    )
}

fn build(place: For, args: &[&str], name: &str) -> Result<PathBuf> {
    let (mut cargo, flags) = match place {
        For::Here => (process::cargo(), Vec::new()),
        For::Guest(architecture) => cross::cargo(architecture)?,
    };
    cargo
        .current_dir(workspace::root())
        .args(args)
        .args(["--quiet", "--message-format=json-render-diagnostics"]);
    if let For::Guest(architecture) = place {
        let flags = flags
            .into_iter()
            .chain(["-Ctarget-feature=+crt-static".into()]);
        cargo
            .args(["--target", architecture.target(), "--target-dir"])
            .arg(workspace::target().join("static"))
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                flags.collect::<Vec<_>>().join("\x1f"),
            );
    }
    // Cargo's own words are shown as they come.
    let messages = process::stdout(cargo.stderr(Stdio::inherit()))?;
    executable(&messages, name).with_context(|| format!("cargo built no program `{name}`"))
}

/// The path of the program `name` in cargo's messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_path_is_in_cargos_messages() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"name":"live_tests"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"live"},"executable":"/t/deps/live-0123"}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(
            executable(messages, "live"),
            Some("/t/deps/live-0123".into())
        );
        assert_eq!(executable(messages, "live_tests"), None);
    }
}
