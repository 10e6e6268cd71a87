//! What every implementation of the AEAD does.

use crate::body::Body;

/// The cipher of one direction of one session.
pub trait Aead {
    /// Make it from a 32-byte key.
    fn new(key: &[u8; 32]) -> Self;

    /// Seal in place. The packet is `body` without its last 16 bytes, where the tag goes.
    fn seal(&self, counter: u64, body: &mut [u8]);

    /// Open in place. `body` has at least 16 bytes. Return false if the tag is wrong; the content
    /// of `body` is then undefined.
    fn open(&self, counter: u64, body: &mut [u8]) -> bool;

    /// Seal bodies in place. They must not overlap.
    fn seal_batch(&self, buffer: &mut [u8], bodies: &[Body]) {
        for body in bodies {
            self.seal(body.counter, &mut buffer[body.at..body.at + body.size]);
        }
    }

    /// Open bodies in place. They must not overlap. Push for each whether its tag is right.
    fn open_batch(&self, buffer: &mut [u8], bodies: &[Body], held: &mut Vec<bool>) {
        held.extend(bodies.iter().map(|body| self.open(body.counter, &mut buffer[body.at..body.at + body.size])));
    }
}
