//! What the service manager is told: that the agent is ready, what it does, that its loop
//! turns. Where there is none, nothing is told.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Tells the service manager. That it cannot be told is no reason to stop.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::info!("the service manager cannot be told: {error}");
    }
}

/// It is attached.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It reads its settings again.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => log::info!("the monotonic clock cannot be read: {error}"),
    }
}

/// It stops.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says that the loop turns, where the service manager waits for it.
#[derive(Debug)]
pub struct Watchdog {
    every: Option<Duration>,
    told: Instant,
}

impl Watchdog {
    /// As the service manager asks for.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            // In good time before it loses patience.
            every: sd_notify::watchdog_enabled().map(|patience| patience / 3),
            told: Instant::now(),
        }
    }

    /// The loop turned.
    pub fn turn(&mut self) {
        if self.every.is_some_and(|every| self.told.elapsed() >= every) {
            self.told = Instant::now();
            tell(&[NotifyState::Watchdog]);
        }
    }
}
