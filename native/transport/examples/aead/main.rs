//! Measures nanoseconds and cycles to seal and to open batches, with ring and with the lanes, for
//! the sizes and counts of a tunnel:
//!
//! ```text
//! cargo run --release -p transport --example aead                  # ring against the lanes
//! cargo run --release -p transport --example aead -- against OLD   # another build's lanes against these
//! ```
//!
//! It is fair on a machine that isn't quiet. What is compared takes turns in short runs of
//! processor time, and figures are medians of many. Cycles are counted by the processor's clock in
//! a run, over that of a chain of additions before and after it, which take a cycle each. Runs
//! between which the two chains differ don't count.

#[cfg(avx512)]
mod clock;
#[cfg(avx512)]
mod compare;
#[cfg(avx512)]
mod turns;

fn main() {
    #[cfg(avx512)]
    if transport::lanes::are_available() {
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
