//! `queue-trace top`: the listeners in a terminal, those in trouble first, for an incident.
//!
//! What is shown comes from a `Source`: `live`, this machine's kernel, or `recorded`, a
//! recording with a time cursor. `seen` is what became known until a moment, `state` what
//! is shown of it and what keys do, `view` draws that; these three are pure. This file has
//! the terminal and the clock.

#[cfg(target_os = "linux")]
mod live;
mod recorded;
mod seen;
mod state;
mod view;

use std::{
    io::{self, IsTerminal},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event as TerminalEvent, KeyEventKind},
};
use tokio::sync::mpsc::{self, UnboundedReceiver};

#[cfg(target_os = "linux")]
use self::live::Live;
use self::{
    recorded::Recorded,
    seen::Seen,
    state::{Step, Then, Top},
};
use crate::{cli, sink, stop::StopSignals};

/// Where what is shown comes from. Each method gives what is to be shown from now on, or
/// `None` if that is as before.
trait Source {
    /// A second has passed.
    fn tick(&mut self, paused: bool) -> Result<Option<Seen>>;
    /// To another moment.
    fn go(&mut self, step: Step) -> Result<Option<Seen>>;
}

/// Shows this machine's listeners.
///
/// # Errors
/// If there is no terminal, or it fails.
#[cfg(target_os = "linux")]
pub async fn watch(args: &cli::Top) -> Result<()> {
    need_terminal("queue-trace listeners --watch 1s")?;
    let signals = StopSignals::listen().context("cannot handle signals")?;
    eprintln!("attaching …");
    let live = Live::begin(args)?;
    let top = Top::new(live.title(), live.notes(), sink::person_wants_colour());
    on_terminal(top, live, signals).await
}

/// Shows the listeners of a recording.
///
/// # Errors
/// If the recording cannot be read, or there is no terminal, or it fails.
pub async fn replay(args: &cli::Top) -> Result<()> {
    need_terminal("queue-trace replay FILE")?;
    eprintln!("reading …");
    // Until it is read a signal ends the program as ever.
    let recorded = Recorded::open(args)?;
    let signals = StopSignals::listen().context("cannot handle signals")?;
    let mut top = Top::new(
        recorded.title(),
        recorded.notes(),
        sink::person_wants_colour(),
    );
    top.span = Some(recorded.span());
    on_terminal(top, recorded, signals).await
}

fn need_terminal(otherwise: &str) -> Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("top needs a terminal; {otherwise} writes to anything");
    }
    Ok(())
}

async fn on_terminal(
    mut top: Top,
    mut source: impl Source,
    mut signals: StopSignals,
) -> Result<()> {
    // Restores the terminal if we panic, too.
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let shown = show(&mut terminal, &mut top, &mut source, &mut signals).await;
    ratatui::restore();
    shown
}

async fn show(
    terminal: &mut DefaultTerminal,
    top: &mut Top,
    source: &mut impl Source,
    signals: &mut StopSignals,
) -> Result<()> {
    let mut keys = terminal_events();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        let news = tokio::select! {
            biased;
            () = signals.any() => return Ok(()),
            event = keys.recv() => match event {
                Some(Ok(TerminalEvent::Key(key))) if key.kind != KeyEventKind::Release => {
                    match top.press(key) {
                        Then::GoOn => None,
                        Then::Quit => return Ok(()),
                        Then::Step(step) => {
                            // A whole second from here to the next.
                            tick.reset();
                            source.go(step)?
                        }
                    }
                }
                // A new size: all is drawn anew below.
                Some(Ok(_)) => None,
                Some(Err(error)) => return Err(error).context("cannot read the terminal"),
                // The terminal is gone.
                None => return Ok(()),
            },
            _ = tick.tick() => source.tick(top.paused)?,
        };
        if let Some(seen) = news {
            top.show(seen);
        }
        terminal
            .draw(|frame| view::draw(frame, top))
            .context("cannot write to the terminal")?;
    }
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
