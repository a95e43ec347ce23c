//! The two clocks: the wall's, and the kernel side's.

use std::time::{SystemTime, UNIX_EPOCH};

#[cfg(target_os = "linux")]
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds in a second, of either clock.
pub const NS_PER_SECOND: i128 = 1_000_000_000;

/// Nanoseconds since 1970.
#[must_use]
pub fn wall_now() -> i128 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, the clock of the kernel side.
#[cfg(target_os = "linux")]
#[must_use]
pub fn monotonic_now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
