//! `cargo xtask fuzz`: any bytes as a recording, a command line, a kernel's types and a record of
//! the kernel side, for a while. The targets are in `tests/fuzz`, built with what libFuzzer needs to see which way
//! the bytes took; any Rust can do that.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{process, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// For how long, in seconds.
    #[arg(default_value_t = 60)]
    seconds: u32,
    /// Only this target; each for so long otherwise.
    #[arg(long, value_parser = TARGETS)]
    target: Option<String>,
}

/// The targets, by what they read.
const TARGETS: [&str; 4] = ["recording", "command_line", "types", "wire"];

/// Counters at every branch, operands of comparisons, and checks that a release leaves out.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks --cfg fuzzing";

/// A target has flags of its own only if it is named: build scripts go without.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Longer than a recording's longest line is of no use, nor than the types of the tests.
const LONGEST: &str = "-max_len=65536";
const MEMORY_MIB: &str = "-rss_limit_mb=1024";

pub fn run(args: &Args) -> Result<()> {
    let folder = workspace::root().join("tests/fuzz");
    let target = workspace::target().join("fuzz");
    process::run(
        process::cargo()
            .current_dir(&folder)
            .args(["build", "--quiet", "--release", "--target", TARGET])
            .arg("--target-dir")
            .arg(&target)
            .env("RUSTFLAGS", FLAGS),
    )
    .context("libFuzzer is built with a C++ compiler (Debian: g++)")?;
    for name in TARGETS {
        if args.target.as_deref().is_none_or(|only| only == name) {
            fuzz(name, args.seconds, &target)?;
        }
    }
    Ok(())
}

fn fuzz(name: &str, seconds: u32, target: &Path) -> Result<()> {
    let corpus = target.join("corpus").join(name);
    std::fs::create_dir_all(&corpus)?;
    let mut command = Command::new(target.join(TARGET).join("release").join(name));
    // What it finds goes here; it begins with real recordings, and with types of real kernels.
    command.arg(&corpus);
    let real = match name {
        "recording" => Some("recordings"),
        "types" => Some("kernels"),
        _ => None,
    };
    if let Some(folder) = real {
        command.arg(workspace::root().join("queue-trace/tests").join(folder));
    }
    command
        .args([LONGEST, MEMORY_MIB])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/{name}-", target.display()));
    process::run(&mut command)
        .context("the bytes that it found are named above: make a test of them")
}
