//! Moves bytes both ways between pairs of connected stream sockets, for the proxy of
//! `rustguard_py/proxy/`.
//!
//! The two sockets of a connection are its *first* and its *second*, and the two directions are
//! *forth* (first to second) and *back*. A thread waits in epoll(7) for many connections. Bytes go
//! by splice(2) from a socket into a pipe and on to the other socket, so they are never copied into
//! this process. A direction has a pipe only while bytes wait in it, so idle connections cost two
//! descriptors. Where no pipe can be had, bytes go through a buffer.
//!
//! A thread reads more of a direction only when all it read before is written: a slow reader stops
//! its writer. What ends on one side ends on the other: the end of a stream is passed on as
//! shutdown(2), direction by direction, and a reset as a reset.

mod connection;
mod counters;
mod direction;
mod pipes;
mod relay;
mod system;
#[cfg(test)]
mod tests;
mod worker;

pub use connection::{End, Ended};
pub use counters::Statistics;
pub use relay::{Relay, Settings};
