//! `cargo xtask live`: the live tests on this machine's own kernel, and the
//! laboratory's own tests, which need root as well.

use anyhow::{Context, Result};

use crate::{
    artifacts::{self, For},
    process, tested,
    vm::Attach,
};

#[derive(clap::Args)]
pub struct Args {
    /// How queue-trace attaches.
    #[arg(long, value_enum, default_value_t = Attach::Tracepoint)]
    pub attach: Attach,
    /// Arguments of the test program: names of tests, or its options.
    #[arg(last = true)]
    pub filters: Vec<String>,
}

/// The variables that tell the live tests what to test.
pub fn environment(program: &str, attach: Attach) -> [(&'static str, String); 2] {
    [
        ("QUEUE_TRACE_BIN", program.into()),
        ("QUEUE_TRACE_ATTACH", attach.name().into()),
    ]
}

pub fn run(args: &Args) -> Result<()> {
    let program = artifacts::program(For::Here)?;
    let tests = artifacts::live_tests(For::Here)?;
    // `env`, as sudo does not pass the environment on.
    let mut command = process::as_root("env")?;
    for (name, value) in environment(&program.to_string_lossy(), args.attach) {
        command.arg(format!("{name}={value}"));
    }
    // One at a time: the tests compare counters of the whole machine.
    command
        .arg(tests)
        .arg("--test-threads=1")
        .args(&args.filters);
    tested::run(&mut command).context("the live tests failed")
}

/// The unit tests that are ignored elsewhere: the laboratory's.
pub fn laboratory() -> Result<()> {
    let mut command = process::as_root(artifacts::unit_tests()?)?;
    tested::run(command.args(["--ignored", "--test-threads=1"]))
        .context("the laboratory's tests failed")
}
