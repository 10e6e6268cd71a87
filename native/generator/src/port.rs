//! Where the packets go in, and where they come out.

use std::io;
use std::time::Duration;

/// Takes packets.
pub trait Inlet: Send {
    /// Take as many of the packets as there is room for, and return their number. It doesn't wait.
    fn put(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize>;

    /// Wait until there is room, or a moment.
    fn wait(&mut self) -> io::Result<()>;
}

/// Hands out packets.
pub trait Outlet: Send {
    /// Call `each` with the UDP payload of every packet that waits, up to some number, once all of
    /// them are there. None: the packet has none. Return how many there were.
    fn take(&mut self, each: &mut dyn FnMut(Option<&[u8]>)) -> io::Result<usize>;

    /// Wait for packets, for at most this long.
    fn wait(&mut self, most: Duration) -> io::Result<()>;
}

impl Inlet for Box<dyn Inlet> {
    fn put(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        (**self).put(packets)
    }

    fn wait(&mut self) -> io::Result<()> {
        (**self).wait()
    }
}

impl Outlet for Box<dyn Outlet> {
    fn take(&mut self, each: &mut dyn FnMut(Option<&[u8]>)) -> io::Result<usize> {
        (**self).take(each)
    }

    fn wait(&mut self, most: Duration) -> io::Result<()> {
        (**self).wait(most)
    }
}
