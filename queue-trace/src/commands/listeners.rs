//! `queue-trace listeners`: every listener once, or again and again while attached.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use crate::{
    aside::Aside,
    kernel::{
        host::Host,
        privilege,
        probe::{AT_ONCE, Iterators, unattached},
        selection::Selection,
        session::Session,
    },
    listeners::{
        How, Stalls, Watch,
        cgroup::Folders,
        look,
        pods::{PodNames, name_pods},
        table,
    },
    model::{lines::LossNote, snapshot::Snapshot},
    options::{KernelOptions, ListenerFilters, duration},
    recording::Members,
    sink::Output,
    stderr::say,
    stop::{StopSignals, reader_is_gone},
    trace::losses::Losses,
};

/// Options of `listeners`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace listeners                     what there is now\n  \
    queue-trace listeners --watch 1s -p 443   what happens to it, every second")]
pub struct ListenersArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub listeners: ListenerFilters,

    /// Attach, and show them again at this interval, e.g. 1s
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub watch: Option<Duration>,

    /// Write JSON, one object a line
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: KernelOptions,
}

/// Runs the command.
///
/// # Errors
/// If the listeners cannot be listed, or the output not be written.
pub async fn run(args: &ListenersArgs) -> Result<()> {
    let selection = Selection::of_listeners(&args.listeners, 1)?;
    let mut members = Members::of(&args.listeners);
    let mut out = Output::open(None)?;
    let Some(interval) = args.watch else {
        let iterators = iterators();
        let how = How::all(&selection, iterators.as_ref());
        let mut look = look(how, &mut Folders::default());
        Stalls::default().look(&mut look.rows);
        name_pods(&mut look.rows, &mut PodNames::here());
        keep_members(&mut look.rows, members.as_mut());
        for note in &look.notes {
            say!("note: {note}");
        }
        return written(print(&mut out, &look.rows, args.json));
    };

    // From here on a signal ends it in good order.
    let mut signals = StopSignals::listen().context("cannot handle signals")?;
    let (mut session, watch) = match begin(&args.kernel, &selection) {
        Ok((session, watch)) => {
            for limit in session.plan.limits() {
                say!("note: {limit}");
            }
            (Some(session), watch)
        }
        Err(error) => {
            say!("note: not attached, so what happens is not shown: {error:#}");
            (None, Watch::unattached(selection))
        }
    };
    say!("ready: watching");
    let mut notes = Vec::new();
    let mut losses = Losses::default();
    let mut lost = LossNote::default();
    let mut watch = Aside::new(watch);
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut news = tokio::select! {
            biased;
            () = signals.any() => return Ok(()),
            news = watch.done() => news??,
            _ = tick.tick() => {
                watch.begin(Watch::all)?;
                if reader_is_gone() {
                    return Ok(());
                }
                continue;
            }
        };
        if news.notes != notes {
            notes.clone_from(&news.notes);
            for note in &notes {
                say!("note: {note}");
            }
        }
        if let Some(Session { probe, .. }) = &mut session {
            // Only counts are shown here.
            while probe.take_records().len() == AT_ONCE {}
            if let Some(more) = losses.news(probe, 0, true)? {
                lost.add(&more);
                lost.records = 0;
            }
            probe.retire(|key| news.is_over(key))?;
            // They were in the table that was shown when they were closed.
            drop(probe.release());
        }
        keep_members(&mut news.rows, members.as_mut());
        if !args.json && io::stdout().is_terminal() {
            written(out.write_all(HOME_AND_CLEAR))?;
        }
        written(print_all(&mut out, &news.rows, &lost, args.json))?;
    }
}

/// Leaves the listeners of the owners that are named, if some are.
fn keep_members(rows: &mut Vec<Snapshot>, members: Option<&mut Members>) {
    if let Some(members) = members {
        rows.retain(|row| members.takes(row));
    }
}

/// The kernel's own lists, which take privileges: without them `/proc` tells.
fn iterators() -> Option<Iterators> {
    if !Host::look().privileges.suffice() {
        return None;
    }
    let logged = |error| log::info!("the kernel's iterators cannot be used: {error:#}");
    unattached().map_err(logged).ok()
}

/// ECMA-48: cursor to the top left, erase to the end of the screen.
const HOME_AND_CLEAR: &[u8] = b"\x1b[H\x1b[J";

/// Attaches, and follows the listeners.
///
/// # Errors
/// What keeps it from attaching.
pub fn begin(kernel: &KernelOptions, selection: &Selection) -> Result<(Session, Watch)> {
    // Its records are of no interest here.
    let session = Session::begin(kernel, selection)?;
    privilege::keep_only_what_is_needed()?;
    let reader = session.probe.reader();
    let watch = Watch::new(reader, session.plan.family, selection.clone());
    Ok((session, watch))
}

/// The listeners, and what was lost of what happened to them.
fn print_all(out: &mut Output, rows: &[Snapshot], lost: &LossNote, json: bool) -> io::Result<()> {
    print(out, rows, json)?;
    if lost.parts().next().is_none() {
        return Ok(());
    }
    if json {
        lost.serialize(&mut serde_json::Serializer::new(&mut *out))?;
        writeln!(out)?;
    } else {
        writeln!(out, "LOST since attached: {lost}")?;
    }
    out.flush()
}

fn print(out: &mut Output, rows: &[Snapshot], json: bool) -> io::Result<()> {
    if json {
        for row in rows {
            row.serialize(&mut serde_json::Serializer::new(&mut *out))?;
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
