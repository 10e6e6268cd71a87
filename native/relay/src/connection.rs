//! A connection: two sockets, two directions, and how it ends.

use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::direction::{Direction, Side, Tools, Turn};
use crate::pipes::Pipes;
use crate::system::{has_error, reset_at_close};

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both streams came to their end.
    Finished,
    /// One side reset the connection or was lost, and so it was reset on the other too.
    Reset,
    /// Nothing moved for the idle time.
    Idle,
}

/// A connection that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The number that `add` returned.
    pub number: u64,
    /// How.
    pub end: End,
    /// Bytes moved from first to second.
    pub forth: u64,
    /// Bytes moved from second to first.
    pub back: u64,
}

/// What a connection wants after its turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Wait,
    Turn,
    End(End),
}

/// A connection. `sides[0]` is its first socket, and `ways[0]` leads away from it.
pub struct Connection {
    pub number: u64,
    pub sides: [Side; 2],
    pub ways: [Direction; 2],
    /// The side that is lost. What it sent before is still passed on.
    lost: Option<usize>,
    /// When bytes last moved.
    pub active_at: Instant,
    /// Whether it stands among those that have a turn.
    pub is_queued: bool,
}

impl Connection {
    /// Make a connection. `early` was read from the first socket before.
    pub fn new(number: u64, sockets: [OwnedFd; 2], early: Box<[u8]>, now: Instant) -> Self {
        let sides = sockets.map(|socket| Side { socket, readable: false, writable: false });
        let ways = [Direction::new(early), Direction::default()];
        Self { number, sides, ways, lost: None, active_at: now, is_queued: false }
    }

    /// Note what epoll reported of a side.
    pub fn heard(&mut self, side: usize, events: u32) {
        let has = |wanted: libc::c_int| events & wanted as u32 != 0;
        let hung_up = has(libc::EPOLLERR | libc::EPOLLHUP);
        self.sides[side].readable |= hung_up || has(libc::EPOLLIN | libc::EPOLLRDHUP);
        self.sides[side].writable |= hung_up || has(libc::EPOLLOUT);
        // Reading finds the error behind the bytes that came before it. Nobody reads behind an end.
        if has(libc::EPOLLERR) && self.ways[side].has_ended() && has_error(&self.sides[side].socket) {
            self.lost.get_or_insert(side);
        }
    }

    /// Move what can be moved.
    pub fn turn(&mut self, tools: &mut Tools<'_>) -> Next {
        let mut next = Next::Wait;
        // A loss found in the second direction changes what the first one has to do.
        for way in [0, 1, 0] {
            if self.ways[way].is_done() || self.lost == Some(1 - way) {
                continue;
            }
            match self.turn_way(way, tools) {
                Turn::Waits | Turn::Done => {}
                Turn::More => next = Next::Turn,
                Turn::SenderFailed => {
                    self.lost.get_or_insert(way);
                }
                Turn::ReceiverFailed if self.lost.is_some() => return Next::End(End::Reset),
                Turn::ReceiverFailed => self.lost = Some(1 - way),
            }
        }
        let Some(lost) = self.lost else {
            let both = self.ways.iter().all(Direction::is_done);
            return if both { Next::End(End::Finished) } else { next };
        };
        let way = &self.ways[lost];
        let has_passed_on = way.is_done() || (!way.holds() && !self.sides[lost].readable);
        if has_passed_on { Next::End(End::Reset) } else { next }
    }

    fn turn_way(&mut self, way: usize, tools: &mut Tools<'_>) -> Turn {
        let [first, second] = &mut self.sides;
        let (from, to) = if way == 0 { (first, second) } else { (second, first) };
        self.ways[way].turn(from, to, self.lost == Some(way), tools)
    }

    /// Make the close of both sockets a reset, so that nobody takes what they got for everything.
    pub fn reset(&self) {
        for side in &self.sides {
            reset_at_close(&side.socket);
        }
    }

    /// Return whether bytes wait in it, and so are lost if it is closed.
    pub fn holds(&self) -> bool {
        self.ways.iter().any(Direction::holds)
    }

    /// Give up what it holds.
    pub fn discard(&mut self, pipes: &Pipes<'_>) {
        for way in &mut self.ways {
            way.discard(pipes);
        }
    }
}
