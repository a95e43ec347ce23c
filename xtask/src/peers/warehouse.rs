//! DuckDB and ClickHouse read a folder of recordings by the statements of `packaging/warehouse`.
//! The recordings are real ones, which the tests keep.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use super::fetched;
use crate::{process, workspace};

/// Recordings with refusals of several kinds, by several ways to attach, and one without.
const RECORDINGS: [&str; 7] = [
    "fentry-bursts",
    "fentry-stuck-worker",
    "tracepoint-accept-stopped",
    "tracepoint-flood-few-no-cookies",
    "tracepoint-healthy",
    "tracepoint-restart-gap",
    "tracepoint-syn-queue-too-small",
];

pub fn run() -> Result<()> {
    let python = fetched::python()?;
    let folder = workspace::target().join("peers/warehouse");
    workspace::fresh_dir(&folder)?;
    let recordings = workspace::root().join("queue-trace/tests/recordings");
    for name in RECORDINGS {
        let mut pack = Command::new("zstd");
        pack.arg("--quiet")
            .arg(recordings.join(format!("{name}.jsonl")));
        process::run(
            pack.arg("-o")
                .arg(folder.join(format!("incident-{name}.jsonl.zst"))),
        )?;
    }
    let script = folder.join("warehouse.py");
    fs::write(&script, include_str!("warehouse.py"))?;
    process::run(
        Command::new(python.join("python"))
            .arg(script)
            .arg(&folder)
            .arg(workspace::root().join("packaging/warehouse")),
    )
    .context("packaging/warehouse does not do what it says")
}
