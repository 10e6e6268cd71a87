//! Latencies, counted as HdrHistogram does.

use hdrhistogram::Histogram;

/// The longest latency that is recorded: a minute, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;

/// Return a histogram of nanoseconds with three significant digits.
pub fn new() -> Histogram<u64> {
    // The bounds are constants that the crate accepts.
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds of the histogram are valid")
}

/// Return what a histogram has counted: the highest value that counts as the same, and its count.
pub fn pairs(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram
        .iter_recorded()
        .map(|step| (histogram.highest_equivalent(step.value_iterated_to()), step.count_at_value()))
        .collect()
}
