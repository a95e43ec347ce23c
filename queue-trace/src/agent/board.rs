//! What the stream's loop and the server share: the state that metrics are told from. The loop
//! writes, whoever scrapes reads; a scrape asks the kernel nothing.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{exposition::Exposition, host::HostSeries, series::Fleet};
use crate::model::{
    clock::{monotonic_now, wall_now},
    snapshot::Snapshot,
};

/// The state.
#[derive(Debug)]
pub struct BoardState {
    /// The series of listeners.
    pub fleet: Fleet,
    /// The machine and the agent.
    pub host: HostSeries,
    /// The listeners as they were at the last look.
    pub listeners: Arc<[Arc<Snapshot>]>,
    /// Why it is not ready; `None`: it is.
    pub not_ready: Option<String>,
}

/// The state, shared.
#[derive(Debug)]
pub struct Board {
    state: Mutex<BoardState>,
    /// When the loop turned last, by the monotonic clock, nanoseconds.
    turned: AtomicU64,
    /// Since when it counts, nanoseconds since 1970.
    since: u64,
}

/// The loop turns once a second; if it has not for so long, it hangs.
const HANGS: Duration = Duration::from_secs(10);

impl Board {
    /// Counts from now on.
    #[must_use]
    pub fn new(state: BoardState) -> Self {
        Self {
            state: Mutex::new(state),
            turned: AtomicU64::new(monotonic_now()),
            since: now(),
        }
    }

    /// The state, for reading and writing. Whoever holds it waits for nothing.
    pub fn state(&self) -> MutexGuard<'_, BoardState> {
        // A panic elsewhere left counts that are right, or will be told as they are.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop turned.
    pub fn turn(&self) {
        self.turned.store(monotonic_now(), Ordering::Relaxed);
    }

    /// Whether the loop turns; if not, since when.
    ///
    /// # Errors
    /// For how long it has not.
    pub fn is_alive(&self) -> Result<(), Duration> {
        let turned = self.turned.load(Ordering::Relaxed);
        let still = Duration::from_nanos(monotonic_now().saturating_sub(turned));
        if still > HANGS { Err(still) } else { Ok(()) }
    }

    /// All metrics as they are now.
    #[must_use]
    pub fn exposition(&self) -> Exposition {
        let mut exposition = Exposition::new(now(), self.since);
        let state = self.state();
        state.fleet.tell(&mut exposition);
        state.host.tell(state.fleet.host(), &mut exposition);
        exposition
    }
}

fn now() -> u64 {
    u64::try_from(wall_now()).unwrap_or(0)
}
