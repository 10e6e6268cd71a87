//! Locking that survives a panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lock a mutex, even after another thread panicked while it held the lock.
///
/// Such a panic has already ended the plane. What the lock guards is then only read for statistics and torn down.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
