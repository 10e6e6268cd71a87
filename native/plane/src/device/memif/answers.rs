//! The addresses that a memif's queues answered for, and a descriptor that tells of them.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use neighbours::answered::Answered;
use transport::contract::{Address, Seconds};

use crate::descriptor::EventFd;

/// What is shared by the queues and who asks.
pub struct Answers {
    answered: Mutex<Answered>,
    bell: EventFd,
}

impl Answers {
    pub fn new() -> io::Result<Self> {
        Ok(Self { answered: Mutex::default(), bell: EventFd::new()? })
    }

    /// Note that an address was answered for.
    pub fn note(&self, address: Address, now: Seconds) {
        let mut answered = self.answered();
        // Under the lock, so that the bell never tells of what was taken already.
        if answered.note(address, now) {
            self.bell.set();
        }
    }

    /// Return the addresses since the last call.
    pub fn take(&self) -> Vec<Address> {
        let mut answered = self.answered();
        self.bell.clear();
        answered.take()
    }

    fn answered(&self) -> MutexGuard<'_, Answered> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fd(&self) -> RawFd {
        self.bell.fd()
    }
}
