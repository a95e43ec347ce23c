//! `queue-trace top`: the listeners in a terminal, those in trouble first, for an incident.
//!
//! `state` is what is shown and what keys do to it, `view` draws it; both are pure. This
//! file has the terminal, the clock and the kernel side.

mod state;
mod view;

use std::{io, thread, time::Duration};

use anyhow::{Context, Result, bail};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event as TerminalEvent, KeyEventKind},
};
use std::io::IsTerminal;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use self::state::{Then, Top};
use crate::{
    cli,
    clock::{monotonic_now, wall_now},
    decode::decode,
    host::Host,
    listeners::{
        Watch,
        command::{self, Attached},
        look,
    },
    sink,
    stop::StopSignals,
    wanted::Wanted,
};

/// Runs the command.
///
/// # Errors
/// If there is no terminal, or it fails.
pub async fn run(args: &cli::Top) -> Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("top needs a terminal; queue-trace listeners --watch 1s writes to anything");
    }
    let wanted = Wanted::of_listeners(&args.which, RECORDS)?;
    let mut signals = StopSignals::listen().context("cannot handle signals")?;
    eprintln!("attaching …");
    let (mut attached, how) = match command::begin(&args.which, &wanted) {
        Ok(attached) => {
            let how = format!("attached by {}", attached.plan.family.name());
            (Some(attached), how)
        }
        Err(error) => (None, format!("not attached: {error:#}")),
    };
    let host = Host::look();
    let notes = attached
        .as_ref()
        .map_or_else(Vec::new, |attached| attached.plan.limits());
    let mut top = Top::new(
        format!("{}  Linux {}  {how}", host.name, host.release),
        notes,
        sink::person_wants_colour(),
    );

    // Restores the terminal if we panic, too.
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let shown = show(
        &mut terminal,
        &mut top,
        &mut attached,
        &wanted,
        &mut signals,
    )
    .await;
    ratatui::restore();
    shown
}

/// Records a second from each CPU: enough for a person.
const RECORDS: u32 = 100;

async fn show(
    terminal: &mut DefaultTerminal,
    top: &mut Top,
    attached: &mut Option<Attached>,
    wanted: &Wanted,
    signals: &mut StopSignals,
) -> Result<()> {
    let mut keys = terminal_events();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            biased;
            () = signals.any() => return Ok(()),
            event = keys.recv() => match event {
                Some(Ok(TerminalEvent::Key(key))) if key.kind != KeyEventKind::Release => {
                    if top.press(key) == Then::Quit {
                        return Ok(());
                    }
                }
                // A new size: all is drawn anew below.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("cannot read the terminal"),
                // The terminal is gone.
                None => return Ok(()),
            },
            _ = tick.tick() => refresh(top, attached, wanted)?,
        }
        terminal
            .draw(|frame| view::draw(frame, top))
            .context("cannot write to the terminal")?;
    }
}

/// Takes in what happened since the last time.
fn refresh(top: &mut Top, attached: &mut Option<Attached>, wanted: &Wanted) -> Result<()> {
    let rows = match attached {
        Some(Attached { probe, watch, .. }) => {
            let offset = wall_now() - i128::from(monotonic_now());
            let records = probe.take_records().into_iter();
            top.take_events(records.filter_map(|record| decode(record, offset).ok()));
            Watch::all(watch, probe, wanted)?
        }
        None => look(wanted, None).rows,
    };
    top.take_rows(rows, wall_now());
    Ok(())
}

/// Keys and new sizes, read by a thread of their own: reading blocks.
fn terminal_events() -> UnboundedReceiver<io::Result<TerminalEvent>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    // It ends with the process.
    thread::spawn(move || {
        loop {
            let event = event::read();
            let failed = event.is_err();
            if sender.send(event).is_err() || failed {
                return;
            }
        }
    });
    receiver
}
