//! `cargo xtask fuzz`: any bytes as a recording, for a while. The target is in `tests/fuzz`,
//! built with what libFuzzer needs to see which way the bytes took; any Rust can do that.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{process, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// For how long, in seconds.
    #[arg(default_value_t = 60)]
    seconds: u32,
}

/// Counters at every branch, operands of comparisons, and checks that a release leaves out.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks --cfg fuzzing";

/// A target has flags of its own only if it is named: build scripts go without.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Longer than a recording's longest line is of no use.
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
    let corpus = target.join("corpus");
    std::fs::create_dir_all(&corpus)?;
    process::run(
        Command::new(target.join(TARGET).join("release/recording"))
            // What it finds goes here; real recordings are what it begins with.
            .arg(&corpus)
            .arg(workspace::root().join("queue-trace/tests/recordings"))
            .args([LONGEST, MEMORY_MIB])
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-artifact_prefix={}/", target.display())),
    )
    .context("the bytes that it found are named above: make a test of them")
}
