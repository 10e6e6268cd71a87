//! Measures what waking costs: of one thread by another, and of a tunnel that does nothing else.
//!
//! - `waking pair WAKER SLEEPER PAUSE TIMES`: a thread on core WAKER wakes one on core SLEEPER, so
//!   many times, PAUSE microseconds apart.
//! - `waking tunnel NAME LAYOUT PORT REMOTE [CORE]`: a tunnel without cryptography. It makes the
//!   interface NAME, and sends each packet as a datagram to REMOTE as it is.
//!
//! `bench/waking.py` starts both.

use std::env;
use std::io::{Error, Result};
use std::process::exit;

mod pair;
mod system;
mod tunnel;

fn main() -> Result<()> {
    let given: Vec<String> = env::args().skip(1).collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    match given[..] {
        ["pair", waker, sleeper, pause, times] => {
            pair::run(number(waker)?, number(sleeper)?, number(pause)? as u64, number(times)?)
        }
        ["tunnel", name, layout, port, remote] => tunnel::run(name, layout, number(port)? as u16, remote, None),
        ["tunnel", name, layout, port, remote, core] => {
            tunnel::run(name, layout, number(port)? as u16, remote, Some(number(core)?))
        }
        _ => {
            eprintln!("usage: waking pair WAKER SLEEPER PAUSE TIMES | waking tunnel NAME LAYOUT PORT REMOTE [CORE]");
            exit(2)
        }
    }
}

fn number(text: &str) -> Result<usize> {
    text.parse().map_err(Error::other)
}
