//! queue-trace tells which TCP listener refuses connections, what the kernel did to
//! each packet, and why.
//!
//! Data flows one way. `host` and `btf` gather facts, `plan` decides which kernel
//! functions to watch, `probe` loads and attaches the kernel side. Its records go
//! through `decode` to the [`event::Event`]s that `live` hands to a `sink`. `books`
//! keeps the `ledger`: our verdicts against the kernel's own counters in each network
//! namespace (`netns`). `lab` makes cases of refused handshakes, for the demo and the
//! tests.
//!
//! What reads recordings (`recording`, `replay`, `top`, `diagnose`, `report`) does without
//! a kernel to watch, and works on any system.

pub mod cli;
pub mod clients;
pub mod clock;
pub mod diagnose;
pub mod event;
pub mod ledger;
pub mod manual;
pub mod recording;
pub mod replay;
pub mod report;
pub mod sink;
pub mod snapshot;
pub mod space_saving;
pub mod spread;
pub mod stop;
pub mod top;

#[cfg(target_os = "linux")]
pub mod attach;
#[cfg(target_os = "linux")]
pub mod books;
#[cfg(target_os = "linux")]
pub mod btf;
#[cfg(target_os = "linux")]
pub mod canary;
#[cfg(target_os = "linux")]
pub mod check;
#[cfg(target_os = "linux")]
pub mod decode;
#[cfg(target_os = "linux")]
pub mod demo;
#[cfg(target_os = "linux")]
pub mod held;
#[cfg(target_os = "linux")]
pub mod host;
#[cfg(target_os = "linux")]
pub mod lab;
#[cfg(target_os = "linux")]
pub mod listeners;
#[cfg(target_os = "linux")]
pub mod live;
#[cfg(target_os = "linux")]
pub mod netns;
#[cfg(target_os = "linux")]
pub mod plan;
#[cfg(target_os = "linux")]
pub mod privilege;
#[cfg(target_os = "linux")]
pub mod probe;
#[cfg(target_os = "linux")]
pub mod wanted;

use anyhow::{Context, Result};

use cli::{Cli, Command};

/// Does what the command line says, and gives the exit status.
///
/// # Errors
/// What kept it from being done, with the remedy, to be printed once.
pub fn run(cli: &Cli) -> Result<u8> {
    log_to_stderr(cli.trace.verbose);
    match &cli.command {
        Some(Command::Replay(args)) => replay::run(args).map(|()| 0),
        Some(Command::Top(args)) if !args.files.is_empty() => {
            event_loop()?.block_on(top::replay(args)).map(|()| 0)
        }
        Some(Command::Diagnose(args)) if !args.files.is_empty() => diagnose::run(args),
        Some(Command::Report(args)) => report::run(args).map(|()| 0),
        Some(Command::Completions(args)) => manual::completions(args).map(|()| 0),
        Some(Command::Man(args)) => manual::man(args).map(|()| 0),
        command => watch(command.as_ref(), cli),
    }
}

fn event_loop() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
}

/// What needs a kernel to watch.
#[cfg(target_os = "linux")]
fn watch(command: Option<&Command>, cli: &Cli) -> Result<u8> {
    let runtime = event_loop()?;
    // Attaching registers with the event loop, also where nothing waits on it.
    let _inside = runtime.enter();
    match command {
        Some(Command::Check(args)) => check::run(args),
        Some(Command::Diagnose(args)) => runtime.block_on(live::diagnose(args)),
        Some(Command::Demo(args)) => runtime.block_on(demo::run(args)).map(|()| 0),
        Some(Command::Listeners(args)) => {
            runtime.block_on(listeners::command::run(args)).map(|()| 0)
        }
        Some(Command::Top(args)) => runtime.block_on(top::watch(args)).map(|()| 0),
        _ => runtime.block_on(live::trace(&cli.trace)).map(|()| 0),
    }
}

/// What needs a kernel to watch, where there is none.
#[cfg(not(target_os = "linux"))]
fn watch(_: Option<&Command>, _: &Cli) -> Result<u8> {
    anyhow::bail!(
        "only a Linux kernel can be watched; on this system queue-trace reads recordings: \
         replay FILE, top FILE, diagnose FILE, report FILE"
    )
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    env_logger::Builder::new()
        .filter(Some("queue_trace"), level)
        .filter(None, log::LevelFilter::Warn)
        // Warns of releases that it cannot parse, such as 7.3-cloud-amd64; it then attaches
        // as on old kernels, which works as well.
        .filter(Some("aya::util"), log::LevelFilter::Error)
        .format_timestamp(None)
        .init();
}
