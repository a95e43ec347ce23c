//! Whether a signal asked the program to end, for work that cannot wait for one while it is
//! under way: attaching, and writing to a reader that does not read.

use std::{
    io,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Notes from now on when this signal comes. Others may handle it as well.
///
/// # Errors
/// If it cannot be handled.
pub fn note(signal: i32) -> io::Result<()> {
    signal_hook::flag::register(signal, Arc::clone(&ASKED)).map(drop)
}

/// Whether one came that is noted.
#[must_use]
pub fn is_asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
