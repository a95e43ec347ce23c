//! `cargo xtask test`: every check, the fast ones first, up to the first failure.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::vm::Attach;
use crate::{bpf, live, process, setup, vm, workspace};

type Stage = (&'static str, fn() -> Result<()>);

const STAGES: &[Stage] = &[
    ("formatting", formatting),
    ("lints", || {
        cargo(&[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-Dwarnings",
        ])
    }),
    ("unit tests", || {
        cargo(&["test", "--quiet", "--workspace", "--exclude", "live-tests"])
    }),
    ("documentation", documentation),
    ("what the rest needs", setup::run),
    ("BPF object", || bpf::run(&bpf::Args { check: true })),
    ("live tests, this kernel", || {
        live::run(&live::Args {
            attach: Attach::Tracepoint,
            filters: Vec::new(),
        })
    }),
    ("live tests, kernel matrix", matrix),
];

pub fn run() -> Result<()> {
    for (number, (name, stage)) in STAGES.iter().enumerate() {
        println!("\n== {}/{} {name}", number + 1, STAGES.len());
        stage().with_context(|| format!("stage `{name}`"))?;
    }
    Ok(())
}

fn formatting() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&[
        "fmt",
        "--check",
        "--manifest-path",
        "queue-trace-ebpf/Cargo.toml",
    ])
}

fn documentation() -> Result<()> {
    process::run(
        in_root(&mut process::cargo())
            .args(["doc", "--quiet", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )
}

fn matrix() -> Result<()> {
    if !vm::matrix::run(&vm::matrix::Args::default())? {
        bail!("tests failed");
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    process::run(in_root(&mut process::cargo()).args(args))
}

fn in_root(command: &mut Command) -> &mut Command {
    command.current_dir(workspace::root())
}
