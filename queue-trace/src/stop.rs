//! What ends a run from outside: a signal, or a reader that went away.

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;

#[cfg(target_os = "linux")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a run in good order.
#[cfg(unix)]
#[derive(Debug)]
pub struct StopSignals([Signal; 3]);

#[cfg(unix)]
impl StopSignals {
    /// Begins to handle them.
    ///
    /// # Errors
    /// If the process cannot.
    pub fn listen() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    /// Waits for one.
    pub async fn any(&mut self) {
        let Self([interrupt, terminate, hangup]) = self;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Ctrl-C, where there are no signals.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct StopSignals(());

#[cfg(not(unix))]
impl StopSignals {
    /// Begins to handle it.
    ///
    /// # Errors
    /// None: it is like where there are signals.
    pub fn listen() -> io::Result<Self> {
        Ok(Self(()))
    }

    /// Waits for it.
    pub async fn any(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether standard output is a pipe that nobody reads any more. Without this a quiet
/// listener would keep us attached until the next refusal.
#[cfg(target_os = "linux")]
#[must_use]
pub fn reader_is_gone() -> bool {
    let stdout = io::stdout();
    let mut fds = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
        && fds[0].revents().contains(PollFlags::ERR)
}
