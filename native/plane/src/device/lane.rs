//! A bounded queue of packets from writers to one reader, who is woken once per batch and only if he
//! sleeps.
//!
//! Everything is decided under one lock, so there are few states. A reader that found nothing *arms*
//! the lane before he sleeps. A wake-up disarms it and makes the descriptor readable until he takes
//! something. So a writer makes no system call while the reader is busy.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::batch::{Batch, Gathering, Pool};
use crate::descriptor::EventFd;

/// What may wait in a lane at once. One packet always may.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Packets.
    pub packets: usize,
    /// Bytes of all packets together.
    pub bytes: usize,
}

/// The lane.
pub struct Lane {
    limits: Limits,
    pool: Arc<Pool>,
    state: Mutex<State>,
    /// Readable while the reader has to look.
    ready: EventFd,
    /// Readable once a writer that found no room can go on. Lanes of one writer share it.
    room: Arc<EventFd>,
}

struct State {
    /// What the reader takes first.
    sealed: VecDeque<Batch>,
    /// What is written behind that. None until there is something.
    open: Option<Gathering>,
    packets: usize,
    bytes: usize,
    /// Whether the reader wants to be woken by the next packet.
    armed: bool,
    /// Whether the descriptor is readable.
    signaled: bool,
    /// Whether the reader sleeps whenever nothing waits, without saying so.
    followed: bool,
    /// Whether a writer waits for room.
    short: bool,
    closed: bool,
}

/// The lane is closed.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

impl Lane {
    /// Make a lane. `room` becomes readable for writers that found no room.
    pub fn new(limits: Limits, room: Arc<EventFd>) -> io::Result<Self> {
        let state = State {
            sealed: VecDeque::new(),
            open: None,
            packets: 0,
            bytes: 0,
            armed: false,
            signaled: false,
            followed: false,
            short: false,
            closed: false,
        };
        Ok(Self { limits, pool: Arc::default(), state: Mutex::new(state), ready: EventFd::new()?, room })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begin to write. The reader is woken when the writer is dropped, if he has to be.
    pub fn writer(&self) -> Result<Writer<'_>, Closed> {
        let state = self.lock();
        if state.closed { Err(Closed) } else { Ok(Writer { lane: self, state, wakes: true }) }
    }

    /// Write one packet that lies in pieces, with `size` bytes together. Return false if there is no
    /// room. The reader isn't woken before [`Lane::wake`], unless half of the room is used.
    pub fn put<'a>(&self, size: usize, pieces: impl Iterator<Item = &'a [u8]>) -> Result<bool, Closed> {
        let mut writer = self.writer()?;
        let put = writer.put(size, pieces);
        writer.wakes = !put || self.is_half_full(&writer.state);
        Ok(put)
    }

    /// Wake the reader, if he sleeps and something waits.
    pub fn wake(&self) {
        self.wake_reader(&mut self.lock());
    }

    /// Take the packets that wait, at most `most` and at most those of one buffer. None means that
    /// nothing waits. A closed lane still hands out what it has.
    pub fn take(&self, most: usize) -> Result<Option<Batch>, Closed> {
        let mut state = self.lock();
        let taken = self.next(&mut state, most);
        if let Some(batch) = &taken {
            state.packets -= batch.len();
            state.bytes -= batch.bytes().len();
            if state.short && !self.is_half_full(&state) {
                state.short = false;
                self.room.set();
            }
        } else if state.closed {
            return Err(Closed);
        }
        let is_empty = state.packets == 0;
        if state.signaled && !state.closed && (is_empty || !state.followed) {
            state.signaled = false;
            self.ready.clear();
        }
        state.armed |= state.followed && is_empty;
        Ok(taken)
    }

    /// Have the descriptor become readable with the next packet. Return false if a packet waits, or
    /// the lane is closed.
    pub fn fall_asleep(&self) -> bool {
        let mut state = self.lock();
        if state.packets > 0 || state.closed {
            return false;
        }
        state.armed = true;
        true
    }

    /// From now on, have the descriptor be readable while packets wait. The reader needn't say that
    /// he sleeps. This costs two system calls for each time that the lane was empty.
    pub fn follow(&self) {
        let mut state = self.lock();
        state.followed = true;
        state.armed = !state.signaled;
        self.wake_reader(&mut state);
    }

    /// Let nothing more be written. Wake everybody; the descriptors stay readable.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.signaled = true;
        self.ready.set();
        self.room.set();
    }

    /// Return whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Return the descriptor that wakes the reader.
    pub fn fd(&self) -> RawFd {
        self.ready.fd()
    }

    fn next(&self, state: &mut State, most: usize) -> Option<Batch> {
        if state.sealed.is_empty() {
            let gathered = state.open.take()?;
            state.sealed.push_back(self.pool.seal(gathered));
        }
        let front = state.sealed.front_mut()?;
        if front.len() > most {
            return Some(front.split_off_front(most));
        }
        state.sealed.pop_front()
    }

    fn is_half_full(&self, state: &State) -> bool {
        state.packets > self.limits.packets / 2 || state.bytes > self.limits.bytes / 2
    }

    fn wake_reader(&self, state: &mut State) {
        if state.armed && state.packets > 0 {
            state.armed = false;
            state.signaled = true;
            self.ready.set();
        }
    }
}

/// Writes packets while it holds the lock of a lane.
pub struct Writer<'a> {
    lane: &'a Lane,
    state: MutexGuard<'a, State>,
    wakes: bool,
}

impl Writer<'_> {
    /// Write a packet that lies in pieces, with `size` bytes together. Its bytes are copied. Return
    /// false if there is no room.
    pub fn put<'a>(&mut self, size: usize, pieces: impl Iterator<Item = &'a [u8]>) -> bool {
        let (state, limits) = (&mut *self.state, self.lane.limits);
        if state.packets > 0 && (state.packets >= limits.packets || state.bytes + size > limits.bytes) {
            return false;
        }
        if state.open.as_ref().is_some_and(|open| !open.has_room(size)) {
            state.sealed.extend(state.open.take().map(|gathered| self.lane.pool.seal(gathered)));
        }
        state.open.get_or_insert_with(|| self.lane.pool.get()).add(pieces);
        state.packets += 1;
        state.bytes += size;
        true
    }

    /// Have the writer's descriptor become readable once there is room again.
    pub fn wait_for_room(&mut self) {
        self.state.short = true;
        self.lane.room.clear();
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if self.wakes {
            self.lane.wake_reader(&mut self.state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::wait;

    /// What a reader does in the model.
    #[derive(Clone, Copy, Debug)]
    struct Reader {
        most: usize,
        /// Whether he polls without saying that he sleeps.
        follows: bool,
    }

    /// A writer with three batches of packets, and a reader, taking turns as `schedule` says: true is
    /// the writer's. Return the choices that were made, and how often the reader was woken.
    ///
    /// Each method of a lane holds its lock from beginning to end. So all that threads can do to each
    /// other is what the orders of whole calls do, and this model tries all of them.
    fn run(reader: Reader, schedule: &[bool]) -> (Vec<(bool, bool)>, usize) {
        const BATCHES: [usize; 3] = [1, 2, 1];
        let lane = Lane::new(Limits { packets: 64, bytes: 1 << 16 }, Arc::new(EventFd::new().unwrap())).unwrap();
        if reader.follows {
            lane.follow();
        }
        let writes = BATCHES.iter().flat_map(|packets| std::iter::repeat_n(true, *packets).chain([false]));
        let mut writes = writes.peekable();
        let (mut asleep, mut taken, mut wakes) = (false, 0, 0);
        let mut choices = Vec::new();
        loop {
            let readable = wait([(lane.fd(), libc::POLLIN)], 0).unwrap() != 0;
            let (can_write, can_read) = (writes.peek().is_some(), !asleep || readable);
            if !can_write && !can_read {
                break;
            }
            let scheduled = schedule.get(choices.len()).copied().unwrap_or(can_write);
            let writer = scheduled && can_write || !can_read;
            choices.push((writer, can_write && can_read));
            assert!(choices.len() < 100, "{reader:?} is woken for nothing");
            if writer {
                match writes.next() {
                    Some(true) => assert_eq!(lane.put(1, [&b"x"[..]].into_iter()), Ok(true)),
                    _ => lane.wake(),
                }
            } else {
                wakes += usize::from(asleep);
                let batch = lane.take(reader.most).unwrap();
                taken += batch.as_ref().map_or(0, Batch::len);
                asleep = reader.follows || batch.is_none() && lane.fall_asleep();
            }
        }
        assert_eq!(taken, BATCHES.iter().sum::<usize>(), "{reader:?} slept on, after {choices:?}");
        (choices, wakes)
    }

    #[test]
    fn in_every_order_of_calls_the_reader_gets_everything_and_is_woken_once_per_batch() {
        for reader in [(1, false), (64, false), (1, true), (64, true)] {
            let reader = Reader { most: reader.0, follows: reader.1 };
            let (mut schedule, mut runs) = (Vec::new(), 0);
            loop {
                let (choices, wakes) = run(reader, &schedule);
                runs += 1;
                // A reader that follows is woken again for what he left.
                assert!(wakes <= 3 || reader.follows && reader.most == 1, "{wakes} wake-ups, after {choices:?}");
                // The next schedule: the last turn that was the writer's by choice goes to the reader.
                let Some(last) = choices.iter().rposition(|(writer, free)| *writer && *free) else { break };
                schedule = choices[..last].iter().map(|(writer, _)| *writer).chain([false]).collect();
            }
            assert!(runs > 20, "{runs} orders");
        }
    }

    #[test]
    fn a_busy_reader_costs_the_writer_no_system_call() {
        let lane = Lane::new(Limits { packets: 64, bytes: 1 << 16 }, Arc::new(EventFd::new().unwrap())).unwrap();
        for _ in 0..100 {
            lane.put(1, [&b"x"[..]].into_iter()).unwrap();
            lane.wake();
            assert!(lane.take(64).unwrap().is_some());
            assert!(lane.take(64).unwrap().is_none());
        }
        assert!(!lane.ready.clear(), "the descriptor was touched");
        assert!(lane.fall_asleep());
        for _ in 0..3 {
            lane.put(1, [&b"x"[..]].into_iter()).unwrap();
            lane.wake();
        }
        let mut wakes = 0_u64;
        // SAFETY: the kernel writes the 8 bytes of `wakes`.
        assert_eq!(unsafe { libc::read(lane.fd(), (&raw mut wakes).cast(), 8) }, 8);
        assert_eq!(wakes, 1);
    }
}
