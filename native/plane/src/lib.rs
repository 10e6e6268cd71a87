//! The native plane: WireGuard's data path in its own threads, behind
//! `rustguard_py/planes/contract.py`.
//!
//! Each queue has two threads that move packets, over `syscalls` or over `uring`. One more thread
//! (`worker`) waits for timers. The rules are in the crate `transport`. This crate has the devices
//! (`device`), the UDP sides (`udp`, `xdp`) and the Python module (`python`). For the whole process,
//! `seccomp` refuses system calls, and `writing` to write elsewhere.
//!
//! No thread of ours takes Python's lock. Commands are calls from Python's threads. Events go out
//! through a bounded queue behind a descriptor (`events`).

mod alarm;
mod counters;
mod delivering;
mod descriptor;
mod device;
mod events;
mod io;
mod memory;
mod netlink;
mod notes;
mod offloads;
mod plane;
mod pump;
mod python;
mod ristretto;
mod roll_call;
mod seccomp;
mod sending;
mod slice;
mod sources;
mod spin;
mod steering;
mod syscalls;
mod udp;
mod udp_side;
mod uring;
mod worker;
mod writing;
mod xdp;
