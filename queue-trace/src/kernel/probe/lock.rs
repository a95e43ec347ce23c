//! Taking what several threads share.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a thread that panicked left behind is still good: nothing of it is ever half done.
pub(super) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
