//! `queue-trace listeners`: every listener once, or again and again while attached.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use queue_trace_common::outcome::{self, Kind};
use serde::Serialize;

use super::{Row, look, table, watch::Watch};
use crate::{
    attach,
    btf::Types,
    cli,
    host::Host,
    plan::Plan,
    privilege,
    probe::{Probe, Unattached},
    sink::Output,
    snapshot::Snapshot,
    stop::{StopSignals, reader_is_gone},
    wanted::Wanted,
};

/// Runs the command.
///
/// # Errors
/// If the listeners cannot be listed, or the output not be written.
pub async fn run(args: &cli::Listeners) -> Result<()> {
    let wanted = Wanted::of_listeners(&args.which, 1)?;
    let mut out = Output::open(None)?;
    let Some(interval) = args.watch else {
        let mut unattached = unattached();
        let look = look(&wanted, unattached.as_mut().map(Unattached::iterators));
        for note in &look.notes {
            eprintln!("note: {note}");
        }
        return written(print(&mut out, &look.rows, args.json));
    };

    // From here on a signal ends it in good order.
    let mut signals = StopSignals::listen().context("cannot handle signals")?;
    let mut attached = match begin(&args.which, &wanted) {
        Ok(attached) => {
            for limit in attached.plan.limits() {
                eprintln!("note: {limit}");
            }
            Some(attached)
        }
        Err(error) => {
            eprintln!("note: not attached, so what happens is not shown: {error:#}");
            None
        }
    };
    eprintln!("ready: watching");
    let mut tick = tokio::time::interval(interval);
    loop {
        tokio::select! {
            biased;
            () = signals.any() => return Ok(()),
            _ = tick.tick() => {}
        }
        let rows = match &mut attached {
            Some(Attached { probe, watch, .. }) => {
                // Only counts are shown here.
                drop(probe.take_records());
                watch.all(probe, &wanted)?
            }
            None => look(&wanted, None).rows,
        };
        if !args.json && io::stdout().is_terminal() {
            written(out.write_all(HOME_AND_CLEAR))?;
        }
        written(print(&mut out, &rows, args.json))?;
        if reader_is_gone() {
            return Ok(());
        }
    }
}

/// The kernel's own lists, which take privileges: without them `/proc` tells.
fn unattached() -> Option<Unattached> {
    if !Host::look().privileges.suffice() {
        return None;
    }
    let logged = |error| log::info!("the kernel's iterators cannot be used: {error:#}");
    Unattached::load().map_err(logged).ok()
}

/// ECMA-48: cursor to the top left, erase to the end of the screen.
const HOME_AND_CLEAR: &[u8] = b"\x1b[H\x1b[J";

/// What shows listeners, attached.
pub struct Attached {
    /// The kernel side.
    pub probe: Probe,
    /// What was told.
    pub watch: Watch,
    /// How.
    pub plan: Plan,
}

/// Attaches.
///
/// # Errors
/// What keeps it from attaching.
pub fn begin(args: &cli::Which, wanted: &Wanted) -> Result<Attached> {
    let host = Host::look();
    attach::fit(&host)?;
    let types = Types::read(args.kernel.btf.as_deref())?;
    let (mut probe, mut plan) = attach::attach(&host, &types, &args.kernel, wanted)?;
    plan.amiss.extend_from_slice(probe.notes());
    if !args.kernel.no_canary {
        // Records are of no interest here.
        drop(attach::self_test(&mut probe, &mut plan)?);
    }
    privilege::keep_only_what_is_needed()?;
    let watch = Watch::new(plan.family);
    Ok(Attached { probe, watch, plan })
}

fn print(out: &mut Output, rows: &[Row], json: bool) -> io::Result<()> {
    if json {
        for row in rows {
            Snapshot::from(row).serialize(&mut serde_json::Serializer::new(&mut *out))?;
            out.write_all(b"\n")?;
        }
    } else {
        let colour = out.wants_colour();
        table::write(out, rows, colour)?;
        writeln!(out)?;
    }
    out.flush()
}

/// A reader that went away is not an error.
fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the listeners"),
    }
}

impl Wanted {
    /// What a view of listeners asks of the kernel side: counts of all, and so many records
    /// of refusals a second.
    ///
    /// # Errors
    /// If a namespace named by its path is not there.
    pub fn of_listeners(args: &cli::Which, rate: u32) -> Result<Self> {
        Ok(Self {
            outcomes: outcome::of_kind(Kind::Refusal),
            ports: args.ports.clone(),
            addrs: args.addrs.clone(),
            netns: Self::namespaces_named(&args.netns)?,
            rate,
            ..Self::default()
        })
    }
}
