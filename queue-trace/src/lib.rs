//! queue-trace tells which TCP listener refuses connections, what the kernel did to
//! each packet, and why.
//!
//! Data flows one way. `host` and `btf` gather facts, `plan` decides which kernel
//! functions to watch, `probe` loads and attaches the kernel side. Its records go
//! through `decode` to the [`event::Event`]s that `live` hands to a `sink`. `books`
//! keeps the `ledger`: our verdicts against the kernel's own counters in each network
//! namespace (`netns`). `lab` makes cases of refused handshakes, for the demo and the
//! tests.

pub mod attach;
pub mod books;
pub mod btf;
pub mod canary;
pub mod check;
pub mod cli;
pub mod clock;
pub mod decode;
pub mod demo;
pub mod event;
pub mod host;
pub mod lab;
pub mod ledger;
pub mod live;
pub mod netns;
pub mod plan;
pub mod privilege;
pub mod probe;
pub mod sink;
pub mod stop;
pub mod wanted;

use std::future;

use anyhow::{Context, Result};
use jiff::tz::TimeZone;

use cli::{Cli, Command, Trace};
use live::{Live, Until};
use sink::{Json, Output, Sink, Text};
use wanted::Wanted;

/// Does what the command line says, and gives the exit status.
///
/// # Errors
/// What kept it from being done, with the remedy, to be printed once.
pub fn run(cli: &Cli) -> Result<u8> {
    log_to_stderr(cli.trace.verbose);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    // Attaching registers with the event loop, also where nothing waits on it.
    let _inside = runtime.enter();
    match &cli.command {
        Some(Command::Check(args)) => check::run(args),
        Some(Command::Demo(args)) => runtime.block_on(demo::run(args)).map(|()| 0),
        None => runtime.block_on(trace(&cli.trace)).map(|()| 0),
    }
}

/// The live stream.
async fn trace(args: &Trace) -> Result<()> {
    let wanted = Wanted::from_cli(args)?;
    attach::fit(&host::Host::look())?;
    // Before attaching: a file that cannot be written costs nothing yet.
    let output = Output::open(args.output.as_deref())?;
    let name = output.name();
    let mut sink: Box<dyn Sink> = if args.json {
        Box::new(Json(output))
    } else {
        let colour = output.wants_colour();
        Box::new(Text::new(output, colour, TimeZone::system()))
    };
    let live = Live::begin(&args.kernel, wanted)?;
    live.announce();
    let until = Until {
        count: args.count,
        duration: args.duration,
    };
    live.run(sink.as_mut(), until, future::pending())
        .await
        .map_err(|error| live::write_error(error, &name))
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
        .format_timestamp(None)
        .init();
}
