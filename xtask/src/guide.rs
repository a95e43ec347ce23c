//! `cargo xtask pictures` and `cargo xtask guide`: what the documentation shows of the program,
//! made anew from the program.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{
    artifacts::{self, For},
    live, process,
    vm::Attach,
    workspace,
};

/// Makes the pictures in docs/pictures.
pub fn pictures() -> Result<()> {
    let program = artifacts::program(For::Here)?;
    process::run(
        process::cargo()
            .args([
                "run",
                "--quiet",
                "--package",
                "live-tests",
                "--bin",
                "pictures",
                "--",
            ])
            .arg(program)
            .arg(workspace::root().join("docs/pictures"))
            .current_dir(workspace::root()),
    )
    .context("the pictures could not be made")
}

/// Runs the sessions of README.md and docs/guide.md, and writes what the program says.
pub fn sessions() -> Result<()> {
    let program = artifacts::program(For::Here)?;
    let mut command = Command::new("env");
    for (name, value) in live::environment(&program.to_string_lossy(), Attach::Tracepoint) {
        command.arg(format!("{name}={value}"));
    }
    process::run(
        command
            .arg("QUEUE_TRACE_WRITE_GUIDE=1")
            .arg(artifacts::live_tests(For::Here)?)
            .arg("guide::sessions"),
    )
    .context("the sessions could not be written")
}
