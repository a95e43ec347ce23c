//! What ends a run from outside: a signal, or a reader that went away.

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
#[cfg(unix)]
use std::{future::poll_fn, task::Poll};

#[cfg(target_os = "linux")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a run in good order.
#[cfg(unix)]
#[derive(Debug)]
pub struct StopSignals(Vec<Signal>);

/// Handles a signal, and notes it for work that cannot wait for one.
#[cfg(unix)]
fn heard(kind: SignalKind) -> io::Result<Signal> {
    #[cfg(target_os = "linux")]
    crate::stopping::note(kind.as_raw_value())?;
    signal(kind)
}

#[cfg(unix)]
impl StopSignals {
    /// Begins to handle those that ask a program to end. One that is ignored stays ignored: who
    /// started the program said so, as nohup does, and a shell for what runs in the background.
    ///
    /// # Errors
    /// If the process cannot.
    pub fn listen() -> io::Result<Self> {
        let mut signals = Self::but_hangup()?;
        signals.add(&[SignalKind::hangup()])?;
        Ok(signals)
    }

    /// Begins to handle all but SIGHUP, which means something else to the agent.
    ///
    /// # Errors
    /// If the process cannot.
    pub fn but_hangup() -> io::Result<Self> {
        let mut signals = Self(Vec::new());
        signals.add(&[
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::quit(),
        ])?;
        Ok(signals)
    }

    /// Begins to handle all that end a program and can be handled, for one that must not leave
    /// the terminal as it is.
    ///
    /// # Errors
    /// If the process cannot.
    pub fn listen_to_all() -> io::Result<Self> {
        let mut signals = Self::listen()?;
        signals.add(&[
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::alarm(),
        ])?;
        Ok(signals)
    }

    fn add(&mut self, kinds: &[SignalKind]) -> io::Result<()> {
        for kind in kinds.iter().filter(|kind| !is_ignored(**kind)) {
            self.0.push(heard(*kind)?);
        }
        Ok(())
    }

    /// Waits for one.
    pub async fn any(&mut self) {
        poll_fn(|context| {
            let came = self
                .0
                .iter_mut()
                .any(|signal| signal.poll_recv(context).is_ready());
            if came { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Whether a signal was ignored when the program was started.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no safe crate tells what a signal does now")]
fn is_ignored(kind: SignalKind) -> bool {
    // SAFETY: a null new action changes nothing; the old one is written to a place that is
    // large enough, and all zeros are a value of it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let asked = libc::sigaction(kind.as_raw_value(), std::ptr::null(), &raw mut action);
        asked == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
fn is_ignored(_: SignalKind) -> bool {
    false
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

    /// The same.
    ///
    /// # Errors
    /// None, likewise.
    pub fn listen_to_all() -> io::Result<Self> {
        Self::listen()
    }

    /// Waits for it.
    pub async fn any(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The signal by which a shell's user puts a program aside, for one that has to give the terminal
/// back first.
#[derive(Debug)]
pub struct Pause(#[cfg(target_os = "linux")] Option<Signal>);

#[cfg(target_os = "linux")]
impl Pause {
    /// Begins to handle it, unless it is ignored.
    ///
    /// # Errors
    /// If the process cannot.
    pub fn listen() -> io::Result<Self> {
        let kind = SignalKind::from_raw(rustix::process::Signal::TSTP.as_raw());
        let heard = (!is_ignored(kind)).then(|| signal(kind));
        Ok(Self(heard.transpose()?))
    }

    /// Waits for it.
    pub async fn asked(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }

    /// Stops this process, until somebody lets it go on.
    pub fn until_continued() {
        use rustix::process::{Signal, getpid, kill_process};
        // If that is refused it just goes on.
        let _ = kill_process(getpid(), Signal::STOP);
    }
}

#[cfg(not(target_os = "linux"))]
impl Pause {
    /// Nothing to handle.
    ///
    /// # Errors
    /// None: it is like where there is one.
    pub fn listen() -> io::Result<Self> {
        Ok(Self())
    }

    /// Never comes.
    pub async fn asked(&mut self) {
        std::future::pending().await
    }

    /// Does nothing.
    pub fn until_continued() {}
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
