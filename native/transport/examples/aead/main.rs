//! Measures nanoseconds and cycles to seal and to open batches, with ring and with the lanes, for
//! the sizes and counts of a tunnel:
//!
//! ```text
//! cargo run --release -p transport --example aead                  # ring against the lanes
//! cargo run --release -p transport --example aead -- against OLD   # another build's lanes against these
//! ```
//!
//! With `RUSTGUARD_AEAD=lanes8` the lanes are the eight with AVX2, else the sixteen where the
//! processor has AVX-512.
//!
//! It is fair on a machine that isn't quiet. What is compared takes turns in short runs of
//! processor time, and figures are medians of many. Cycles are counted by the processor's clock in
//! a run, over that of a chain of additions before and after it, which take a cycle each. Runs
//! between which the two chains differ don't count.

#[cfg(lanes)]
mod clock;
#[cfg(lanes)]
mod compare;
#[cfg(lanes)]
mod turns;

fn main() {
    #[cfg(lanes)]
    if transport::lanes::eight::are_available() {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => compare::table(),
            ["rows"] => compare::rows(),
            ["against", other] => turns::against(other),
            _ => eprintln!("Usage: aead [rows | against BINARY]"),
        }
        return;
    }
    println!("This processor or this compiler has no lanes, so there is nothing to compare.");
}
