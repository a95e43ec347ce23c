//! The command line: a file for each thing that the program does, with its options. This one
//! dispatches.

pub mod diagnose;
pub mod manual;
pub mod replay;
pub mod report;
pub mod top;
pub mod trace;

#[cfg(target_os = "linux")]
pub mod agent;
#[cfg(target_os = "linux")]
pub mod check;
#[cfg(target_os = "linux")]
pub mod demo;
#[cfg(target_os = "linux")]
pub mod incidents;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
pub mod listeners;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};

use self::trace::TraceArgs;

/// Tells which TCP listener refuses connections, what the kernel did to each packet,
/// and why.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        queue-trace                          refused handshakes on every port, in every namespace\n  \
        queue-trace -p 8080 --duration 30s   one port, for half a minute\n  \
        queue-trace --event cookie_sent      only the SYN cookies that were sent\n  \
        queue-trace --all --json -o incident.jsonl.zst   record for later\n  \
        queue-trace diagnose --for 30s       what is wrong, and what to change\n  \
        queue-trace demo accept-overflow     see it work, without an incident"
)]
pub struct Cli {
    #[command(subcommand)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub command: Option<Command>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub trace: TraceArgs,
}

impl Cli {
    /// The exit status when it could not be done. For a diagnosis 1 means findings.
    #[must_use]
    pub fn status_of_errors(&self) -> u8 {
        match self.command {
            Some(Command::Diagnose(_)) => 2,
            _ => 1,
        }
    }
}

/// The other things that it does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what is wrong and what to change, from the running kernel or from a recording
    ///
    /// Exit status: 0 nothing found, every rule could be judged, no refusal was missed; 1
    /// findings; 2 could not tell, or an error.
    Diagnose(diagnose::DiagnoseArgs),
    /// Show a recording as if it happened now
    ///
    /// Needs no privilege.
    Replay(replay::ReplayArgs),
    /// Make one self-contained web page of a recording
    Report(report::ReportArgs),
    /// Say what can be observed on this machine, and what cannot
    ///
    /// Exit status: 0 if the main verdicts are observable, 1 if only some are, 2 if none.
    #[cfg(target_os = "linux")]
    Check(check::CheckArgs),
    /// Make a case of refused handshakes in a private network namespace, and trace it
    ///
    /// Nothing is left behind. Takes a few seconds.
    #[cfg(target_os = "linux")]
    Demo(demo::DemoArgs),
    /// Show every listener: its owner, how full its queues are, how long connections wait
    ///
    /// A look at what is there needs no privilege, and shows what you may see. With --watch
    /// it attaches, and shows what happened since as well.
    #[cfg(target_os = "linux")]
    Listeners(listeners::ListenersArgs),
    /// Show the listeners in the terminal, those in trouble first, now or in a recording
    ///
    /// Press ? for the keys. A recording is played, and shown at any moment of it.
    Top(top::TopArgs),
    /// Be always on: metrics for Prometheus and OTLP, and a recording of each incident
    ///
    /// Ends with SIGTERM or Ctrl-C; SIGHUP reads --config again. docs/agent.md has the rest.
    #[cfg(target_os = "linux")]
    Agent(agent::AgentArgs),
    /// List the incident recordings of the agent, and what was found in them
    ///
    /// Needs no privilege but to read the folder.
    #[cfg(target_os = "linux")]
    Incidents(incidents::IncidentsArgs),
    /// Write a completion script for a shell to standard output
    Completions(manual::CompletionsArgs),
    /// Write the manual page to standard output, or all pages to a folder
    Man(manual::ManArgs),
}

/// Does what the command line says, and gives the exit status.
///
/// # Errors
/// What kept it from being done, with the remedy, to be printed once.
pub fn run(cli: &Cli) -> Result<u8> {
    log_to_stderr(cli.trace.verbose);
    match &cli.command {
        Some(Command::Replay(args)) => replay::run(args).map(|()| 0),
        Some(Command::Top(args)) if !args.files.is_empty() => {
            event_loop()?.block_on(top::recorded(args)).map(|()| 0)
        }
        Some(Command::Diagnose(args)) if !args.files.is_empty() => diagnose::recorded(args),
        Some(Command::Report(args)) => report::run(args).map(|()| 0),
        #[cfg(target_os = "linux")]
        Some(Command::Incidents(args)) => incidents::run(args).map(|()| 0),
        Some(Command::Completions(args)) => manual::completions(args, Cli::command()).map(|()| 0),
        Some(Command::Man(args)) => manual::man(args, Cli::command()).map(|()| 0),
        command => watch(command.as_ref(), cli),
    }
}

fn event_loop() -> Result<tokio::runtime::Runtime> {
    #[cfg(target_os = "linux")]
    limits::leave_room_for_the_event_loop()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
}

/// What needs a kernel to watch.
#[cfg(target_os = "linux")]
fn watch(command: Option<&Command>, cli: &Cli) -> Result<u8> {
    limits::raise_open_files();
    let runtime = event_loop()?;
    // Attaching registers with the event loop, also where nothing waits on it.
    let _inside = runtime.enter();
    match command {
        Some(Command::Agent(args)) => runtime.block_on(agent::run(args)).map(|()| 0),
        Some(Command::Check(args)) => check::run(args),
        Some(Command::Diagnose(args)) => runtime.block_on(diagnose::watch(args)),
        Some(Command::Demo(args)) => runtime.block_on(demo::run(args)).map(|()| 0),
        Some(Command::Listeners(args)) => runtime.block_on(listeners::run(args)).map(|()| 0),
        Some(Command::Top(args)) => runtime.block_on(top::watch(args)).map(|()| 0),
        _ => runtime.block_on(trace::run(&cli.trace)).map(|()| 0),
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

#[cfg(test)]
mod tests {
    use queue_trace_common::outcome::{self, Kind};

    use super::*;

    fn parse(args: &[&str]) -> Result<TraceArgs, String> {
        Cli::try_parse_from([&["queue-trace"], args].concat())
            .map(|cli| cli.trace)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ports_are_lists_and_ranges() {
        let trace = parse(&["-p", "80,443", "-p", "8000-8099"]).unwrap();
        assert_eq!(
            trace.filters.listeners.ports,
            [80..=80, 443..=443, 8000..=8099]
        );
    }

    #[test]
    fn a_bad_value_is_named_with_its_option() {
        for (args, says) in [
            (["-p", "http"], "--port"),
            (["-p", "0"], "not a port"),
            (["-p", "90-80"], "before it begins"),
            (["-p", "70000"], "not a port"),
            (["--addr", "10.0.0.0/99"], "--addr"),
            (["--client", "example"], "--client"),
            (["--netns", "blue"], "--netns"),
            (["--event", "dropped"], "syn_dropped"),
            (["--event", "syn_dropped:bored"], "last_quarter"),
            (["--event", "queued:why"], "no causes"),
            (["--duration", "soon"], "--duration"),
            (["--duration", "0s"], "longer than nothing"),
            (["--count", "0"], "--count"),
            (["--attach", "ptrace"], "--attach"),
            (["--rotate", "big"], "64K, 100M"),
            (["--rotate", "0M"], "more than nothing"),
            (["--networks", "24"], "--networks"),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(says), "{args:?}: {error}");
        }
    }

    #[test]
    fn refusals_are_shown_unless_asked_otherwise() {
        let refusals = outcome::of_kind(Kind::Refusal);
        assert_eq!(parse(&[]).unwrap().filters.outcomes(), refusals);
        assert_eq!(
            parse(&["--all"]).unwrap().filters.outcomes(),
            (1 << outcome::COUNT) - 1
        );
        let only = parse(&["--event", "queued", "--event", "accepted"]).unwrap();
        assert_eq!(
            only.filters.outcomes(),
            1 << outcome::QUEUED | 1 << outcome::ACCEPTED
        );
    }
}
