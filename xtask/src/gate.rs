//! `cargo xtask test`: every check, the fast ones first, up to the first failure,
//! and how long each took.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    beside::Beside, dependencies, lint, lint_table, live, peers, process, setup, tested, vm,
    vm::Attach, workspace,
};

type Stage = (&'static str, fn(&mut Option<Beside>) -> Result<()>);

const STAGES: &[Stage] = &[
    ("formatting", |_| formatting()),
    ("lints", |_| lints()),
    ("layout", |_| lint::run()),
    ("licences and sources", |_| dependencies::run()),
    ("what the rest needs", |beside| {
        setup::run()?;
        *beside = Some(Beside::start(BESIDE)?);
        Ok(())
    }),
    ("unit tests", |_| {
        tests(&["--workspace", "--exclude", "live-tests"])
    }),
    ("documentation", |_| documentation()),
    ("page in a browser", |_| {
        tests(&[
            "--package",
            "queue-trace",
            "--test",
            "page",
            "--",
            "--ignored",
        ])
    }),
    ("BPF object", wait),
    ("another system", wait),
    ("laboratory, this kernel", |_| live::laboratory()),
    ("the agent's real peers", |_| {
        peers::run(&peers::Args::default())
    }),
    ("live tests, this kernel", |_| {
        live::run(&live::Args {
            attach: Attach::Tracepoint,
            // Takes a kernel on which BPF programs may change what security hooks say.
            filters: ["--skip", "faults::a_security_module"]
                .map(String::from)
                .to_vec(),
        })
    }),
    ("programs for other kernels", wait),
    ("live tests, other kernels", |_| other_kernels()),
];

/// What takes one processor most of the time and gives way to others, in the order in which it is
/// waited for.
const BESIDE: &[&[&str]] = &[&["build-ebpf", "--check"], &["windows"], &["vm", "build"]];

fn wait(beside: &mut Option<Beside>) -> Result<()> {
    if let Some(beside) = beside {
        return beside.wait();
    }
    println!("left out, as the stage that begins it was");
    Ok(())
}

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

/// The groups of live tests that wait for the time to pass: about half of what all take.
const WAITING: [&str; 4] = ["agent::", "diagnose::", "namespaces::", "servers::"];

#[derive(clap::Args)]
pub struct Args {
    /// Begin with this stage, by its number: for going on after a failure, not for the proof.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = stage_number)]
    from: usize,
}

/// A stage's number, as it is shown.
fn stage_number(text: &str) -> Result<usize, String> {
    let last = STAGES.len();
    let number = text
        .parse()
        .ok()
        .filter(|number| (1..=last).contains(number));
    number.ok_or_else(|| format!("1 to {last}"))
}

pub fn run(args: &Args) -> Result<()> {
    let mut times = Vec::new();
    let result = stages(args.from, &mut times);
    show(&times);
    result
}

fn stages(from: usize, times: &mut Vec<(&'static str, Duration)>) -> Result<()> {
    let mut beside = None;
    for (number, (name, stage)) in (1..).zip(STAGES).skip(from - 1) {
        println!("\n== {number}/{} {name}", STAGES.len());
        let began = Instant::now();
        let result = stage(&mut beside).with_context(|| format!("stage `{name}`"));
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
            .arg("--")
            .args(lint_table::kernel_side()?)
            .arg("-Dwarnings")
            .env("CARGO_PROFILE_DEV_PANIC", "abort")
            // Its compiler is one that allows unstable features.
            .env("RUSTC_BOOTSTRAP", "1"),
    )
}

fn documentation() -> Result<()> {
    process::run(
        in_root(&mut process::cargo())
            .args(["doc", "--quiet", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )
}

/// What takes long and is mostly of user space: what is told of owners, and of thousands of
/// listeners; files, pipes and pages. These run on this kernel, and on the others with
/// `cargo xtask vm test`.
const OF_USER_SPACE: [&str; 11] = [
    "stall::",
    "churn::",
    "bad_input::",
    "output::",
    "ending::",
    "audit::",
    "service::",
    "recordings::",
    "environment::",
    "guide::",
    "top::",
];

/// The tests on one kernel, which takes longest, and the verdicts on the others.
fn other_kernels() -> Result<()> {
    // Two machines share all tests of one kernel: one would be at it when the others are done.
    let skip = |group: &&str| ["--skip".to_owned(), (*group).to_owned()];
    let everything = |part, filters| vm::matrix::Args {
        kernels: vec!["7.2".into()],
        attach: vec![Attach::Fentry],
        size: vm::Size {
            timeout: 1800,
            ..vm::Size::default()
        },
        filters,
        part: Some(part),
    };
    let others = WAITING.iter().chain(&OF_USER_SPACE);
    let all = [
        everything("waiting", WAITING.map(String::from).to_vec()),
        everything("rest", others.flat_map(skip).collect()),
        // 6.18, which is between two of them, is tested by tracepoints.
        verdicts(&["5.10.223", "6.1", "6.12", "7.3"], Attach::Fentry),
        // Not on kernels that may preempt the tracer while it clears a table: these leave
        // kprobes' programs out meanwhile, and say so.
        verdicts(&["5.10.223", "6.12"], Attach::Kprobe),
        verdicts(&["6.18", "7.2"], Attach::Tracepoint),
        // One of the other architecture. A clock that counts instructions does not wait while
        // nothing happens.
        vm::matrix::Args {
            filters: vec!["handshakes::".into()],
            size: vm::Size {
                icount: true,
                ..vm::Size::default()
            },
            ..verdicts(&["6.12-arm64"], Attach::Fentry)
        },
    ];
    if !vm::matrix::run_all(&all)? {
        bail!("tests failed");
    }
    Ok(())
}

fn verdicts(kernels: &[&str], attach: Attach) -> vm::matrix::Args {
    vm::matrix::Args {
        kernels: kernels.iter().map(ToString::to_string).collect(),
        attach: vec![attach],
        filters: VERDICTS.map(String::from).to_vec(),
        ..vm::matrix::Args::default()
    }
}

fn tests(args: &[&str]) -> Result<()> {
    tested::run(
        in_root(&mut process::cargo())
            .args(["test", "--quiet"])
            .args(args),
    )
}

fn cargo(args: &[&str]) -> Result<()> {
    process::run(in_root(&mut process::cargo()).args(args))
}

fn in_root(command: &mut Command) -> &mut Command {
    command.current_dir(workspace::root())
}
