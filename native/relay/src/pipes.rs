//! The pipes of a relay: each is lent to a direction while bytes wait in it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::system::{grow, pipe};

/// The room asked for in a pipe, bytes.
const ROOM: libc::c_int = 1 << 18;
/// Pipes that a thread keeps although nobody needs them now.
const KEPT: usize = 16;

/// An empty pipe, or one that a direction has put bytes into.
pub struct Pipe {
    pub read: OwnedFd,
    pub write: OwnedFd,
    pub room: usize,
}

/// How many more pipes all threads may make.
pub struct Allowance(AtomicUsize);

impl Allowance {
    pub fn new(pipes: usize) -> Self {
        Self(AtomicUsize::new(pipes))
    }

    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn give_back(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A thread's pipes that are empty now.
pub struct Pipes<'a> {
    allowance: &'a Allowance,
    free: Vec<Pipe>,
}

impl<'a> Pipes<'a> {
    pub fn new(allowance: &'a Allowance) -> Self {
        Self { allowance, free: Vec::new() }
    }

    /// Lend an empty pipe. None if there may be no more, or the kernel refuses another.
    pub fn take(&mut self) -> Option<Pipe> {
        self.free.pop().or_else(|| {
            if !self.allowance.take() {
                return None;
            }
            let made = pipe().and_then(|(read, write)| {
                let room = grow(&write, ROOM)?;
                Ok(Pipe { read, write, room })
            });
            if made.is_err() {
                self.allowance.give_back();
            }
            made.ok()
        })
    }

    /// Take an empty pipe back.
    pub fn give_back(&mut self, pipe: Pipe) {
        if self.free.len() < KEPT {
            self.free.push(pipe);
        } else {
            self.discard(pipe);
        }
    }

    /// Close a pipe, with what may be in it.
    pub fn discard(&self, pipe: Pipe) {
        drop(pipe);
        self.allowance.give_back();
    }
}
