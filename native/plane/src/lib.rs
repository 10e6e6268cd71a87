//! The native plane: WireGuard's data path in threads of its own, behind `rustguard_py/planes/contract.py`.
//!
//! Two threads a queue move packets (`worker`, or over io_uring `uring`), one more waits for timers. The rules are the crate `transport`'s;
//! here are its sockets, its devices and its Python. No thread of ours ever takes Python's lock: commands come in as
//! calls from Python's threads, events go out through a bounded queue behind a descriptor (`events`).

mod alarm;
mod counters;
mod delivering;
mod descriptor;
mod events;
mod foreign;
mod io;
mod kernel;
mod notes;
mod plane;
mod python;
mod sending;
mod spin;
mod steering;
mod syscalls;
mod tun;
mod udp;
mod udp_side;
mod uring;
mod worker;
mod xdp;
