//! ChaCha20-Poly1305 (RFC 8439 section 2.8) with eight blocks of key stream at once, for x86-64
//! with AVX2.
//!
//! The blocks of a batch form a queue: for each packet the one with the key of its tag, then those
//! of its text. Eight at a time are computed, of as many packets as they happen to belong to.
//! Meanwhile the eight before are added to the tags.
//!
//! Branches and indices depend only on lengths, counters and verdicts. Tags are compared in constant
//! time. Texts are decrypted while their tags are computed; what turns out to have a wrong tag is
//! encrypted again before [`Eight::open`] returns. The key is wiped when the batch is done. The key
//! stream on the stack is not, but the next batch overwrites it.

pub(super) mod chacha20;
pub(super) mod poly1305;
mod vector;

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;
use std::mem::swap;
use std::ops::Range;

use ctutils::CtEq;
use zeroize::Zeroizing;

use super::batch::{nonce, text_size};
use super::chacha20::{BLOCK_SIZE, Key, key_words};
use crate::body::Body;
use crate::wire::TAG_SIZE;
use chacha20::{Blocks, LANES, Stream};
use poly1305::Mac;

/// A key. It exists only on processors with the required features.
pub struct Eight(Zeroizing<Key>);

/// Return whether this processor and the system have the required features.
pub fn are_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2")
}

impl Eight {
    /// Make it from a 32-byte key. Return None if the processor lacks a feature.
    pub fn new(key: &[u8; 32]) -> Option<Self> {
        are_available().then(|| Self(key_words(key)))
    }

    /// Seal bodies in place. Panics if one isn't in the buffer.
    pub fn seal(&self, buffer: &mut [u8], bodies: &[Body]) {
        // SAFETY: there is no `Eight` on a processor that lacks a feature.
        unsafe { Pass::<true>::new(&self.0, buffer, bodies).run(&mut vec![]) };
    }

    /// Open bodies in place. Push for each whether its tag is right. A body with a wrong tag stays
    /// unchanged.
    pub fn open(&self, buffer: &mut [u8], bodies: &[Body], held: &mut Vec<bool>) {
        let first = held.len();
        // SAFETY: there is no `Eight` on a processor that lacks a feature.
        unsafe { Pass::<false>::new(&self.0, buffer, bodies).run(held) };
        for (body, held) in bodies.iter().zip(&held[first..]) {
            if !held {
                self.close(buffer, body);
            }
        }
    }

    /// Seal a body again that was opened although its tag is wrong, and leave it its tag.
    #[cold]
    fn close(&self, buffer: &mut [u8], body: &Body) {
        let tag = body.at + text_size(body)..body.at + body.size;
        let mut claimed = [0; TAG_SIZE];
        claimed.copy_from_slice(&buffer[tag.clone()]);
        self.seal(buffer, &[*body]);
        buffer[tag].copy_from_slice(&claimed);
    }
}

/// What a block of the key stream is for.
#[derive(Clone, Copy, Default)]
struct Use {
    /// The index of the body.
    body: usize,
    /// The block counter. 0 has the key of the tag.
    counter: usize,
}

/// Up to eight blocks, and what they are for.
struct Group {
    uses: [Use; LANES],
    count: usize,
    stream: Stream,
}

/// Return the place of what a block with this counter, above 0, encrypts.
#[inline]
fn part(body: &Body, counter: usize) -> Range<usize> {
    let start = (counter - 1) * BLOCK_SIZE;
    body.at + start..body.at + text_size(body).min(start + BLOCK_SIZE)
}

/// A batch that is sealed or opened.
struct Pass<'a, const SEAL: bool> {
    key: &'a Key,
    buffer: &'a mut [u8],
    bodies: &'a [Body],
    /// What the next block is for.
    next: Use,
    /// The accumulator of the body whose block was added last.
    mac: Mac,
}

impl<'a, const SEAL: bool> Pass<'a, SEAL> {
    fn new(key: &'a Key, buffer: &'a mut [u8], bodies: &'a [Body]) -> Self {
        for body in bodies {
            let fits = body.at <= buffer.len() && body.size <= buffer.len() - body.at;
            assert!(fits && body.size >= TAG_SIZE, "a body is outside of the buffer");
        }
        Self { key, buffer, bodies, next: Use::default(), mac: Mac::new([0; 4]) }
    }

    /// Seal or open. When opening, push for each body whether its tag is right.
    ///
    /// Texts that are opened are decrypted a group later than their blocks are computed, because the
    /// tags need them as they came.
    #[target_feature(enable = "avx2,bmi2")]
    fn run(mut self, held: &mut Vec<bool>) {
        let mut groups = [(); 2].map(|()| Group {
            uses: [Use::default(); LANES],
            count: 0,
            stream: [[_mm256_setzero_si256(); 2]; LANES],
        });
        let [mut before, mut group] = groups.each_mut();
        while self.next.body < self.bodies.len() {
            let blocks = self.fill(group);
            let initial = chacha20::initial(self.key, &blocks);
            let mut state = initial;
            for round in 0..10 {
                match self.whole(before, round) {
                    Some(blocks) => {
                        let mut mac = self.mac;
                        chacha20::double_round(&mut state, |n| mac.block(u128::from_le_bytes(blocks[n])));
                        self.mac = mac;
                        self.end(before.uses[round], held);
                    }
                    None => {
                        chacha20::double_round(&mut state, |_| {});
                        if round < before.count {
                            self.absorb(before, round, held);
                        }
                    }
                }
            }
            group.stream = chacha20::stream(state, initial);
            self.xor(if SEAL { group } else { before });
            swap(&mut before, &mut group);
        }
        for lane in 0..before.count {
            self.absorb(before, lane, held);
        }
        if !SEAL {
            self.xor(before);
        }
    }

    /// Take the next blocks from the queue, and return them.
    #[inline]
    fn fill(&mut self, group: &mut Group) -> Blocks {
        let mut blocks = Blocks { counters: [0; LANES], nonces: [[0; LANES]; 3] };
        group.count = 0;
        for (lane, place) in group.uses.iter_mut().enumerate() {
            let Some(body) = self.bodies.get(self.next.body) else { break };
            *place = self.next;
            blocks.counters[lane] = self.next.counter as u32;
            let [_, low, high] = nonce(body);
            (blocks.nonces[1][lane], blocks.nonces[2][lane]) = (low, high);
            group.count += 1;
            if self.next.counter * BLOCK_SIZE < text_size(body) {
                self.next.counter += 1;
            } else {
                self.next = Use { body: self.next.body + 1, counter: 0 };
            }
        }
        blocks
    }

    /// Start a tag with the key in a block, or add what the block is for.
    #[inline]
    #[target_feature(enable = "avx2,bmi2")]
    fn absorb(&mut self, group: &Group, lane: usize, held: &mut Vec<bool>) {
        let place = group.uses[lane];
        if place.counter == 0 {
            self.mac = Mac::new(vector::to_longs(group.stream[lane][0]));
        } else {
            let part = part(&self.bodies[place.body], place.counter);
            self.mac.padded(&self.buffer[part]);
        }
        self.end(place, held);
    }

    /// Return the blocks for the tag of a lane whose text has 64 bytes.
    #[inline]
    #[target_feature(enable = "avx2,bmi2")]
    fn whole(&self, group: &Group, lane: usize) -> Option<&[[u8; poly1305::SIZE]]> {
        let place = group.uses.get(lane).filter(|place| lane < group.count && place.counter > 0)?;
        let part = self.buffer[part(&self.bodies[place.body], place.counter)].first_chunk::<BLOCK_SIZE>()?;
        Some(part.as_chunks().0)
    }

    /// Write or compare the tag if this was the last of its body's blocks.
    #[inline]
    #[target_feature(enable = "avx2,bmi2")]
    fn end(&mut self, place: Use, held: &mut Vec<bool>) {
        let body = &self.bodies[place.body];
        let size = text_size(body);
        if place.counter * BLOCK_SIZE >= size {
            self.mac.block((size as u128) << 64);
            let tag = self.mac.tag();
            let claimed = self.buffer[body.at + size..].first_chunk_mut().expect("a body ends with a tag");
            if SEAL {
                *claimed = tag.to_le_bytes();
            } else {
                held.push(tag.ct_eq(&u128::from_le_bytes(*claimed)).to_bool());
            }
        }
    }

    /// XOR the texts with a group's blocks.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn xor(&mut self, group: &Group) {
        for (place, stream) in group.uses[..group.count].iter().zip(&group.stream) {
            if place.counter == 0 {
                continue;
            }
            let part = &mut self.buffer[part(&self.bodies[place.body], place.counter)];
            if let Some(block) = part.first_chunk_mut() {
                vector::xor(block, stream);
                continue;
            }
            let mut block = [0; BLOCK_SIZE];
            block[..part.len()].copy_from_slice(part);
            vector::xor(&mut block, stream);
            part.copy_from_slice(&block[..part.len()]);
        }
    }
}
