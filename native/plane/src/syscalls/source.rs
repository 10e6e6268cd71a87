//! Where datagrams come from: a socket, or a channel of AF_XDP.

use std::io;
use std::os::fd::RawFd;

use crate::udp::Udp;
use crate::udp_side::Receiver;
use crate::xdp::{Channel, Xdp};

/// A source of datagrams.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    Socket(&'a Udp),
    Channel(&'a Xdp, &'a Channel),
}

impl Source<'_> {
    /// Return the descriptor to poll, or -1 if the source is gone.
    pub fn fd(&self) -> RawFd {
        match self {
            Self::Socket(socket) => socket.fd(),
            Self::Channel(xdp, _) if xdp.is_gone() => -1,
            Self::Channel(_, channel) => channel.fd(),
        }
    }

    /// Have the kernel deliver each datagram by itself. Return false if it does so already.
    pub fn end_merging(&self) -> bool {
        matches!(self, Self::Socket(socket) if socket.end_merging())
    }

    /// Take the messages that wait. The error is `WouldBlock` if there are none.
    pub fn receive(&self, into: &mut Receiver) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.receive(into),
            Self::Channel(xdp, channel) if xdp.receive(channel, into) => Ok(()),
            Self::Channel(..) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
