//! Notes: sentences that tell people what the plane does without.

use std::sync::{Mutex, PoisonError};

/// The notes so far, each of them once.
#[derive(Default)]
pub struct Notes(Mutex<Vec<String>>);

impl Notes {
    /// Add a note. Return false if it was there already.
    pub fn add(&self, note: &str) -> bool {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = !notes.iter().any(|one| one == note);
        if fresh {
            notes.push(note.to_owned());
        }
        fresh
    }

    /// Return the notes so far.
    pub fn read(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
