//! Measures nanoseconds per packet to seal and to open batches, with ring and with the lanes, for
//! the sizes and counts of a tunnel: `cargo run --release -p transport --example aead`. Each figure
//! is the median of rounds in which the two take turns.

#[cfg(avx512)]
mod compare;

fn main() {
    #[cfg(avx512)]
    if transport::lanes::are_available() {
        return compare::run();
    }
    println!("This processor or this compiler has no lanes, so there is nothing to compare.");
}
