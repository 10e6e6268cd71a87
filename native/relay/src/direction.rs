//! One direction of a connection: what was read of one socket and isn't written to the other yet.

use std::io;
use std::mem::take;
use std::os::fd::OwnedFd;

use crate::pipes::{Pipe, Pipes};
use crate::system::{end_stream, is_nothing, receive, send, splice};

/// Bytes moved before other connections have their turn.
const TURN: usize = 1 << 20;
/// Bytes read at once where there is no pipe, and so the most that a direction then keeps.
pub const COPIED_AT_ONCE: usize = 1 << 16;

/// A socket, and what is known of it: both are true until a call has found nothing to do.
pub struct Side {
    pub socket: OwnedFd,
    pub readable: bool,
    pub writable: bool,
}

/// What a thread lends to the direction whose turn it is.
pub struct Tools<'a> {
    pub pipes: Pipes<'a>,
    pub buffer: Box<[u8]>,
    pub copied: u64,
}

/// What waits to be written.
#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    /// A pipe with so many bytes in it.
    Pipe(Pipe, usize),
    /// Bytes, of which so many are written.
    Bytes(Box<[u8]>, usize),
}

/// How a turn ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// One of the sockets isn't ready.
    Waits,
    /// There is more to do at once.
    More,
    /// The stream's end was read and passed on.
    Done,
    /// Reading failed: the sender is gone. What it sent before may still be held.
    SenderFailed,
    /// Writing failed: the receiver is gone.
    ReceiverFailed,
}

/// One direction of a connection.
#[derive(Default)]
pub struct Direction {
    held: Held,
    /// The sender's stream has ended.
    ended: bool,
    /// The receiver was told so.
    done: bool,
    /// The kernel can't splice from this socket.
    copies: bool,
    /// Bytes written so far.
    pub moved: u64,
}

impl Direction {
    /// Make a direction that begins with bytes read before.
    pub fn new(early: Box<[u8]>) -> Self {
        let held = if early.is_empty() { Held::Nothing } else { Held::Bytes(early, 0) };
        Self { held, ..Self::default() }
    }

    /// Return whether bytes wait to be written.
    pub fn holds(&self) -> bool {
        !matches!(self.held, Held::Nothing)
    }

    /// Return whether the sender's stream was read to its end.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Move bytes until a socket isn't ready, or others should have their turn.
    ///
    /// `is_lost`: the sender is gone. What it sent before is passed on, but not the end of its
    /// stream: behind an error that a write has taken, the kernel shows an end.
    pub fn turn(&mut self, from: &mut Side, to: &mut Side, is_lost: bool, tools: &mut Tools<'_>) -> Turn {
        let goal = self.moved + TURN as u64;
        loop {
            if self.holds() {
                if !to.writable {
                    return Turn::Waits;
                }
                match self.write(&to.socket, tools) {
                    Ok(()) => {}
                    Err(error) if is_nothing(&error) => {
                        to.writable = false;
                        return Turn::Waits;
                    }
                    Err(_) => return Turn::ReceiverFailed,
                }
            } else if self.ended {
                if !self.done && !is_lost {
                    end_stream(&to.socket);
                }
                self.done = true;
                return Turn::Done;
            } else if !from.readable {
                return Turn::Waits;
            } else if self.moved >= goal {
                return Turn::More;
            } else {
                match self.read(&from.socket, tools) {
                    Ok(()) => {}
                    Err(error) if is_nothing(&error) => from.readable = false,
                    Err(_) => {
                        from.readable = false;
                        return Turn::SenderFailed;
                    }
                }
            }
        }
    }

    /// Read what waits at the sender. Only called while nothing is held, so that a pipe that takes
    /// nothing can't be mistaken for a socket that has nothing.
    fn read(&mut self, from: &OwnedFd, tools: &mut Tools<'_>) -> io::Result<()> {
        let lent = if self.copies { None } else { tools.pipes.take() };
        let Some(pipe) = lent else {
            return self.copy(from, tools);
        };
        match splice(from, &pipe.write, pipe.room) {
            Ok(0) => {
                tools.pipes.give_back(pipe);
                self.ended = true;
                Ok(())
            }
            Ok(count) => {
                self.held = Held::Pipe(pipe, count);
                Ok(())
            }
            Err(error) => {
                tools.pipes.give_back(pipe);
                // A socket that can't, a kernel that can't, or a filter of system calls.
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)) {
                    self.copies = true;
                    return self.copy(from, tools);
                }
                Err(error)
            }
        }
    }

    fn copy(&mut self, from: &OwnedFd, tools: &mut Tools<'_>) -> io::Result<()> {
        let count = receive(from, &mut tools.buffer)?;
        if count == 0 {
            self.ended = true;
        } else {
            tools.copied += count as u64;
            self.held = Held::Bytes(tools.buffer[..count].into(), 0);
        }
        Ok(())
    }

    /// Write some of what is held.
    fn write(&mut self, to: &OwnedFd, tools: &mut Tools<'_>) -> io::Result<()> {
        let (count, is_empty) = match &mut self.held {
            Held::Nothing => return Ok(()),
            Held::Pipe(pipe, left) => {
                let count = splice(&pipe.read, to, *left)?;
                *left -= count;
                (count, *left == 0)
            }
            Held::Bytes(bytes, written) => {
                let count = send(to, &bytes[*written..])?;
                *written += count;
                (count, *written == bytes.len())
            }
        };
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.moved += count as u64;
        if is_empty {
            if let Held::Pipe(pipe, _) = take(&mut self.held) {
                tools.pipes.give_back(pipe);
            }
        }
        Ok(())
    }

    /// Give up what is held.
    pub fn discard(&mut self, pipes: &Pipes<'_>) {
        if let Held::Pipe(pipe, _) = take(&mut self.held) {
            pipes.discard(pipe);
        }
    }
}
