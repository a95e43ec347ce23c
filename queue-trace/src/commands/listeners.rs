//! `queue-trace listeners`: every listener once, or again and again while attached.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::{
    kernel::{host::Host, privilege, probe::Unattached, selection::Selection, session::Session},
    listeners::{Row, look, table, watch::Watch},
    model::snapshot::Snapshot,
    options::{Which, duration},
    sink::Output,
    stderr::say,
    stop::{StopSignals, reader_is_gone},
};

/// Options of `listeners`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace listeners                     what there is now\n  \
    queue-trace listeners --watch 1s -p 443   what happens to it, every second")]
pub struct ListenersArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub which: Which,

    /// Attach, and show them again at this interval, e.g. 1s
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub watch: Option<Duration>,

    /// Write JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the listeners cannot be listed, or the output not be written.
pub async fn run(args: &ListenersArgs) -> Result<()> {
    let selection = Selection::of_listeners(&args.which, 1)?;
    let mut out = Output::open(None)?;
    let Some(interval) = args.watch else {
        let mut unattached = unattached();
        let look = look(&selection, unattached.as_mut().map(Unattached::iterators));
        for note in &look.notes {
            say!("note: {note}");
        }
        return written(print(&mut out, &look.rows, args.json));
    };

    // From here on a signal ends it in good order.
    let mut signals = StopSignals::listen().context("cannot handle signals")?;
    let mut attached = match begin(&args.which, &selection) {
        Ok(attached) => {
            for limit in attached.session.plan.limits() {
                say!("note: {limit}");
            }
            Some(attached)
        }
        Err(error) => {
            say!("note: not attached, so what happens is not shown: {error:#}");
            None
        }
    };
    say!("ready: watching");
    let mut tick = tokio::time::interval(interval);
    loop {
        tokio::select! {
            biased;
            () = signals.any() => return Ok(()),
            _ = tick.tick() => {}
        }
        let rows = match &mut attached {
            Some(Attached {
                session: Session { probe, .. },
                watch,
            }) => {
                // Only counts are shown here.
                drop(probe.take_records());
                watch.all(probe, &selection)?
            }
            None => look(&selection, None).rows,
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
    pub session: Session,
    /// What was reported.
    pub watch: Watch,
}

/// Attaches.
///
/// # Errors
/// What keeps it from attaching.
pub fn begin(args: &Which, selection: &Selection) -> Result<Attached> {
    // Its records are of no interest here.
    let session = Session::begin(&args.kernel, selection)?;
    privilege::keep_only_what_is_needed()?;
    let watch = Watch::new(session.plan.family);
    Ok(Attached { session, watch })
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
