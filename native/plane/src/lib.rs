//! The native plane: WireGuard's data path in threads of its own, behind `rustguard_py/planes/contract.py`.
//!
//! Two threads a queue move packets (`worker`, or over io_uring `uring`), one more waits for timers. The rules are the crate `transport`'s;
//! here are its sockets, its devices and its Python. No thread of ours ever takes Python's lock: commands come in as
//! calls from Python's threads, events go out through a bounded queue behind a descriptor (`events`).

mod convert;
mod counters;
mod descriptor;
mod events;
mod foreign;
mod plane;
mod python;
mod ristretto;
mod spin;
mod steering;
mod tun;
mod udp;
mod uring;
mod worker;
mod xdp;
