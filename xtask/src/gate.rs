//! `cargo xtask test`: every check, the fast ones first, up to the first failure,
//! and how long each took.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{bpf, live, process, setup, vm, vm::Attach, windows, workspace};

type Stage = (&'static str, fn() -> Result<()>);

const STAGES: &[Stage] = &[
    ("formatting", formatting),
    ("lints", lints),
    ("what the rest needs", setup::run),
    ("unit tests", || {
        cargo(&["test", "--quiet", "--workspace", "--exclude", "live-tests"])
    }),
    ("documentation", documentation),
    ("page in a browser", || {
        cargo(&[
            "test",
            "--quiet",
            "--package",
            "queue-trace",
            "--test",
            "page",
            "--",
            "--ignored",
        ])
    }),
    ("BPF object", || bpf::run(&bpf::Args { check: true })),
    ("another system", windows::run),
    ("laboratory, this kernel", live::laboratory),
    ("live tests, this kernel", || {
        live::run(&live::Args {
            attach: Attach::Tracepoint,
            // Takes a kernel on which BPF programs may change what security hooks say.
            filters: ["--skip", "faults::a_security_module"]
                .map(String::from)
                .to_vec(),
        })
    }),
    ("verdicts, by fentry", || {
        let kernels = ["5.10.223", "5.10", "6.1", "6.12", "6.18", "7.2", "7.3"];
        verdicts(&kernels, Attach::Fentry)
    }),
    // Not on kernels that may preempt the tracer while it clears a table: these leave
    // kprobes' programs out meanwhile, and say so.
    ("verdicts, by kprobes", || {
        verdicts(&["5.10.223", "6.12"], Attach::Kprobe)
    }),
    ("verdicts, by tracepoints", || {
        verdicts(&["6.18", "7.2"], Attach::Tracepoint)
    }),
    ("everything, by fentry", || {
        matrix(&vm::matrix::Args {
            kernels: vec!["7.2".into()],
            attach: vec![Attach::Fentry],
            ..vm::matrix::Args::default()
        })
    }),
];

/// The groups of live tests that every kernel has to pass. All of them on all kernels
/// is `cargo xtask vm test`.
const VERDICTS: [&str; 6] = [
    "scenarios::",
    "floods::",
    "overflow::",
    "handshakes::",
    "faults::",
    "rare::",
];

pub fn run() -> Result<()> {
    let mut times = Vec::new();
    let result = stages(&mut times);
    show(&times);
    result
}

fn stages(times: &mut Vec<(&'static str, Duration)>) -> Result<()> {
    for (number, (name, stage)) in STAGES.iter().enumerate() {
        println!("\n== {}/{} {name}", number + 1, STAGES.len());
        let began = Instant::now();
        let result = stage().with_context(|| format!("stage `{name}`"));
        times.push((name, began.elapsed()));
        result?;
    }
    Ok(())
}

fn show(times: &[(&str, Duration)]) {
    println!();
    let total = times.iter().map(|(_, took)| *took).sum();
    for (name, took) in times.iter().chain([&("in all", total)]) {
        println!("{name:<27} {:>7.1} s", took.as_secs_f64());
    }
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

fn lints() -> Result<()> {
    cargo(&[
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-Dwarnings",
    ])?;
    // The kernel side as if it were a program for this machine: its own compiler
    // comes without clippy. Without the standard library nothing can unwind.
    process::run(
        in_root(&mut process::cargo())
            .args(["clippy", "--quiet", "--manifest-path"])
            .args(["queue-trace-ebpf/Cargo.toml", "--target-dir"])
            .arg(workspace::target().join("lints"))
            .args(["--", "-Dwarnings"])
            .env("CARGO_PROFILE_DEV_PANIC", "abort"),
    )
}

fn documentation() -> Result<()> {
    process::run(
        in_root(&mut process::cargo())
            .args(["doc", "--quiet", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )
}

fn verdicts(kernels: &[&str], attach: Attach) -> Result<()> {
    matrix(&vm::matrix::Args {
        kernels: kernels.iter().map(ToString::to_string).collect(),
        attach: vec![attach],
        filters: VERDICTS.map(String::from).to_vec(),
        ..vm::matrix::Args::default()
    })
}

fn matrix(args: &vm::matrix::Args) -> Result<()> {
    if !vm::matrix::run(args)? {
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
