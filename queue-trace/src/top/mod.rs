//! `queue-trace top`: the listeners in a terminal, those in trouble first, for an incident.
//!
//! What is shown comes from a `Source`: `live`, this machine's kernel, or `recorded`, a
//! recording with a time cursor. `seen` is what became known until a moment, `state` what
//! is shown of it and what keys do, `view` draws that; these three are pure. This file has
//! the terminal and the clock.

pub(crate) mod recorded;
pub(crate) mod seen;
pub(crate) mod state;
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

use self::{
    seen::Seen,
    state::{Jump, Then, Top},
};
use crate::stop::{Pause, StopSignals};

/// Where what is shown comes from. Each method gives what is to be shown from now on, or
/// `None` if that is as before.
pub(crate) trait Source {
    /// A second has passed.
    fn tick(&mut self, paused: bool) -> Result<Option<Seen>>;
    /// Waits for what takes its time: keys and signals are heard meanwhile.
    async fn arrived(&mut self) -> Result<Seen> {
        std::future::pending().await
    }
    /// To another moment.
    fn go(&mut self, step: Jump) -> Result<Option<Seen>>;
}

pub(crate) fn need_terminal(otherwise: &str) -> Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("top needs a terminal; {otherwise} writes to anything");
    }
    Ok(())
}

pub(crate) async fn on_terminal(
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
    let mut pause = Pause::listen().context("cannot handle signals")?;
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        let news = tokio::select! {
            biased;
            () = signals.any() => return Ok(()),
            () = pause.asked() => {
                ratatui::restore();
                Pause::until_continued();
                *terminal = ratatui::try_init().context("cannot use the terminal")?;
                None
            }
            event = keys.recv() => match event {
                Some(Ok(TerminalEvent::Key(key))) if key.kind != KeyEventKind::Release => {
                    match top.press(key) {
                        Then::GoOn => None,
                        Then::Quit => return Ok(()),
                        Then::Jump(step) => {
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
            seen = source.arrived() => Some(seen?).filter(|_| !top.paused),
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
