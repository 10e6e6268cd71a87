//! WireGuard's data plane without sockets, clocks or threads. Inner packets, datagrams and `now` go
//! in. Datagrams, inner packets and events come out.
//!
//! [`Transport`] has the rules. [`outbound`] and [`inbound`] apply them to batches.
//! `rustguard_py/planes` has the readable twin. For the same script of events both decide the same.
//!
//! Everything is shared by reference. Routes and sessions are read from snapshots. Each peer has
//! its own lock, taken per batch. Packets of two peers never share a lock.

#![deny(unsafe_code)]

pub mod aead;
pub mod allowed_ips;
pub mod body;
pub mod checksum;
pub mod coalesce;
pub mod contract;
pub mod cookie;
mod draft;
pub mod drops;
pub mod ecn;
pub mod ethernet;
pub mod event_queue;
pub mod fair_queue;
pub mod foreign;
pub mod gate;
pub mod inbound;
pub mod indices;
mod ip;
pub mod keypairs;
#[cfg(lanes)]
pub mod lanes;
pub mod liveness;
mod locks;
pub mod outbound;
pub mod pairing;
pub mod peers;
pub mod segment;
pub mod sink;
pub mod snapshot;
mod transport;
pub mod unreachable;
pub mod vnet;
pub mod window;
pub mod wire;

pub use transport::Transport;
