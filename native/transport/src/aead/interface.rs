//! What every implementation of the AEAD does.

use crate::body::Body;

/// One direction of one session.
pub trait Aead {
    /// Make it of a 32-byte key.
    fn new(key: &[u8; 32]) -> Self;

    /// Seal in place: all but the last 16 bytes of `body` are the packet, the tag goes there.
    fn seal(&self, counter: u64, body: &mut [u8]);

    /// Open in place; false, with `body` of no use, if the tag doesn't hold. At least 16 bytes.
    fn open(&self, counter: u64, body: &mut [u8]) -> bool;

    /// Seal bodies that don't overlap, in place.
    fn seal_batch(&self, buffer: &mut [u8], bodies: &[Body]) {
        for body in bodies {
            self.seal(body.counter, &mut buffer[body.at..body.at + body.size]);
        }
    }

    /// Open bodies that don't overlap, in place; push for each whether its tag holds.
    fn open_batch(&self, buffer: &mut [u8], bodies: &[Body], held: &mut Vec<bool>) {
        held.extend(bodies.iter().map(|body| self.open(body.counter, &mut buffer[body.at..body.at + body.size])));
    }
}
