//! WireGuard's data plane without sockets, clocks or threads: inner packets, datagrams and `now` in; datagrams,
//! inner packets and events out.
//!
//! [`Transport`] has the rules. [`outbound`] and [`inbound`] apply them to the batches that the kernel gives. The
//! readable twin of all this is `rustguard_py/planes`; for the same script of events both decide the same.
//!
//! Everything is shared by reference: routes and sessions are read from snapshots, each peer has its own lock, taken
//! once a batch. There is no lock that two peers' packets share.

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
pub mod ethernet;
pub mod gate;
pub mod inbound;
pub mod indices;
mod ip;
pub mod keypairs;
#[cfg(avx512)]
pub mod lanes;
pub mod liveness;
mod locks;
pub mod outbound;
pub mod peers;
pub mod segment;
pub mod sink;
pub mod snapshot;
mod transport;
pub mod vnet;
pub mod window;
pub mod wire;

pub use transport::Transport;
