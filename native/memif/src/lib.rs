//! memif, the shared memory packet interface of VPP, version 2.0 of its protocol.
//!
//! Two programs share memory and a control channel, a SEQPACKET socket. The *client* connects. It
//! makes the memory: regions with rings and buffers. The *server* listens and maps them. A ring
//! carries packets one way: c2s from the client to the server, s2c back.
//!
//! - [`message`]: the messages of the control channel.
//! - [`handshake`]: which message follows which, for both roles. No sockets.
//! - [`socket`]: sends and receives one message with its descriptor.
//! - [`memory`]: regions, made or mapped.
//! - [`layout`]: where rings and buffers lie in a region that we make.
//! - [`ring`]: moving packets over the rings.
//! - [`slots`]: a ring in a region.
//!
//! Nothing that the other side writes is trusted. Messages are parsed strictly. Every index, region,
//! offset and length from a ring is read once and checked before use. A region is mapped only if it
//! can't shrink, so no access faults.

pub mod handshake;
pub mod layout;
pub mod memory;
pub mod message;
pub mod ring;
pub mod slots;
pub mod socket;
mod sync;
