//! The workers over plain system calls, which run everywhere.

mod backlog;
mod inward;
mod outlet;
mod outward;
mod pace;
mod source;

pub use inward::{gate, run as inward};
pub use outward::{Sender, run as out, run_with as out_with};
