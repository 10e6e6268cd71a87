//! Sentences about what the plane does without, for people to read.

use std::sync::{Mutex, PoisonError};

/// What the plane does without, each said once.
#[derive(Default)]
pub struct Notes(Mutex<Vec<String>>);

impl Notes {
    /// Note a sentence; false if it was noted before.
    pub fn add(&self, note: &str) -> bool {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = !notes.iter().any(|one| one == note);
        if fresh {
            notes.push(note.to_owned());
        }
        fresh
    }

    /// Those so far.
    pub fn read(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
