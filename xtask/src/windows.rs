//! `cargo xtask windows`: what reads recordings builds where there is no Linux. Windows is
//! the system most unlike it. Nothing is linked or run.

use anyhow::{Context, Result};

use crate::{bpf::Toolchain, process, workspace};

const TARGET: &str = "x86_64-pc-windows-gnu";

pub fn run() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let mut command = toolchain.cargo_in(&workspace::root())?;
    command
        // The standard library from its source: it needs no other system's packages.
        .args([
            "check",
            "--quiet",
            "--package",
            "queue-trace",
            "--lib",
            "--bins",
        ])
        .args(["-Zbuild-std=std,panic_abort", "--target", TARGET])
        .arg("--target-dir")
        .arg(workspace::target().join("windows"))
        // As nothing is linked, C libraries that come along need no compiler for Windows.
        .env(format!("CC_{}", TARGET.replace('-', "_")), "true")
        .env(format!("AR_{}", TARGET.replace('-', "_")), "true");
    process::run(&mut command).context("what reads recordings does not build for Windows")
}
