//! The turns of the seconds, told by one timer of the kernel: a process that has nothing to do is
//! woken once for each. The event loop's own timers wake it two or three times, as they are first
//! kept in coarser steps of time, and being woken is most of what a turn takes.

#![expect(
    unsafe_code,
    reason = "the event loop is to be given a descriptor that stays open"
)]

use std::{io, os::fd::OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// The timer.
#[derive(Debug)]
pub struct Seconds(AsyncFd<OwnedFd>);

impl Seconds {
    /// The first turn is now.
    ///
    /// # Errors
    /// If there can be no timer, or no event loop runs.
    pub fn begin() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let each = Itimerspec {
            it_interval: Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            },
            // Zero would be never.
            it_value: Timespec {
                tv_sec: 0,
                tv_nsec: 1,
            },
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &each)?;
        // SAFETY: an OwnedFd stays open and the same for as long as it lives, and the AsyncFd, which
        // owns it, gives nobody a way to put another one in its place.
        Ok(Self(unsafe { AsyncFd::register(timer) }?))
    }

    /// Waits for a turn. Turns that were missed are one with it. None is lost if the wait is
    /// given up.
    ///
    /// # Errors
    /// If the timer cannot be read.
    pub async fn turn(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut turns = [0; size_of::<u64>()];
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut turns)?));
            if let Ok(read) = read {
                return read.map(drop);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn the_first_is_now_and_missed_ones_are_one() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let began = Instant::now();
            let seconds = Seconds::begin().unwrap();
            seconds.turn().await.unwrap();
            let given_up = tokio::time::timeout(Duration::from_millis(1), seconds.turn()).await;
            given_up.unwrap_err();
            seconds.turn().await.unwrap();
            assert!(began.elapsed() >= Duration::from_secs(1));
            thread::sleep(Duration::from_millis(2100));
            seconds.turn().await.unwrap();
            let again = tokio::time::timeout(Duration::from_millis(1), seconds.turn()).await;
            again.unwrap_err();
        });
    }
}
