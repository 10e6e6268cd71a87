//! Measures nanoseconds per packet of a message's way: a superpacket cut and sealed, and its
//! datagrams opened and merged, as the plane's threads do it but without system calls:
//!
//! ```text
//! cargo run --release -p transport --example way
//! cargo run --release -p transport --example way -- against OLD   # another build against this
//! ```
//!
//! As in the example `aead`, short runs of processor time count, so it is fair on a machine that
//! isn't quiet.

#[cfg(lanes)]
#[path = "../aead/clock.rs"]
mod clock;
#[cfg(lanes)]
mod compare;
#[cfg(lanes)]
#[path = "../aead/turns.rs"]
mod turns;

fn main() {
    #[cfg(lanes)]
    {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => compare::table(),
            ["rows"] => compare::rows(),
            ["against", other] => turns::against(other),
            _ => eprintln!("Usage: way [rows | against BINARY]"),
        }
    }
    #[cfg(not(lanes))]
    println!("Cycles are counted on x86-64 only.");
}
