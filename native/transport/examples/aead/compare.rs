//! The comparison, for processors that have lanes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use transport::aead::{Aead, RingCipher};
use transport::body::Body;
use transport::lanes::Lanes;

const SIZES: [usize; 3] = [64, 512, 1420];
const COUNTS: [usize; 15] = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 32, 45, 64];
const ROUNDS: usize = 41;
const ROUND: Duration = Duration::from_micros(500);

/// Return nanoseconds per packet, from as many batches as a round has time for.
fn time(packets: usize, mut batch: impl FnMut()) -> f64 {
    let (start, mut batches) = (Instant::now(), 0);
    while start.elapsed() < ROUND {
        (0..8).for_each(|_| batch());
        batches += 8;
    }
    start.elapsed().as_nanos() as f64 / (batches * packets) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measure sealing with ring and with the lanes, then opening with both. Opening includes the copy
/// of what is opened.
fn measure(sizes: &[usize]) -> [f64; 4] {
    let key = [7; 32];
    let (ring, lanes) = (RingCipher::new(&key), Lanes::new(&key).expect("main has checked for lanes"));
    let mut at = 0;
    let mut body = |(counter, size): (u64, &usize)| {
        let body = Body { at: at + 16, size: size + 16, counter };
        at += size + 32;
        body
    };
    let bodies: Vec<Body> = (0..).zip(sizes).map(&mut body).collect();
    let mut buffer = vec![1; at];
    let (mut sealed, mut held) = (buffer.clone(), Vec::with_capacity(sizes.len()));
    ring.seal_batch(&mut sealed, &bodies);
    let mut rounds: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        rounds[0].push(time(sizes.len(), || ring.seal_batch(black_box(&mut buffer), &bodies)));
        rounds[1].push(time(sizes.len(), || lanes.seal(black_box(&mut buffer), &bodies)));
        rounds[2].push(time(sizes.len(), || {
            buffer.copy_from_slice(&sealed);
            held.clear();
            ring.open_batch(black_box(&mut buffer), &bodies, &mut held);
        }));
        rounds[3].push(time(sizes.len(), || {
            buffer.copy_from_slice(&sealed);
            held.clear();
            lanes.open(black_box(&mut buffer), &bodies, &mut held);
        }));
        assert!(held.iter().all(|held| *held));
    }
    rounds.map(median)
}

fn print(what: &str, [ring_seal, lanes_seal, ring_open, lanes_open]: [f64; 4]) {
    println!(
        "{what:>24} | {ring_seal:6.0} {lanes_seal:6.0} {:5.2} | {ring_open:6.0} {lanes_open:6.0} {:5.2}",
        lanes_seal / ring_seal,
        lanes_open / ring_open
    );
}

/// Print the table.
pub fn run() {
    println!("{:>24} | seal: ring, lanes, ratio | open: ring, lanes, ratio (ns per packet)", "packets of bytes");
    for size in SIZES {
        for count in COUNTS {
            print(&format!("{count} of {size}"), measure(&vec![size; count]));
        }
    }
    let mixed = |big: usize, small: usize| [vec![1420; big], vec![64; small]].concat();
    for (big, small) in [(1, 3), (1, 7), (1, 15), (2, 14), (4, 12), (8, 8), (12, 4)] {
        print(&format!("{big} of 1420, {small} of 64"), measure(&mixed(big, small)));
    }
}
