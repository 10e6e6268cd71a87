//! Ring against the lanes.

use std::hint::black_box;

use crate::clock::{Taken, take};
use transport::aead::{Aead, RingCipher};
use transport::body::Body;
use transport::lanes::{Lanes, eight::Eight};

const SIZES: [usize; 5] = [64, 128, 256, 512, 1420];
const COUNTS: [usize; 9] = [1, 2, 3, 4, 8, 13, 16, 45, 64];
const ROUNDS: usize = 61;
/// Bytes that a run seals or opens, about.
const RUN: usize = 200_000;

/// What is measured, in turn: sealing with ring and with the lanes, opening with both, and the copy
/// of what is opened.
const STEPS: usize = 5;

/// A batch of packets of these sizes, at places as in a message of datagrams.
struct Case {
    bodies: Vec<Body>,
    sealed: Vec<u8>,
    opened: Vec<u8>,
    held: Vec<bool>,
    ring: RingCipher,
    lanes: Either,
}

/// The lanes that are measured.
enum Either {
    Sixteen(Lanes),
    Eight(Eight),
}

impl Either {
    fn new(key: &[u8; 32]) -> Self {
        let eight = || Self::Eight(Eight::new(key).expect("main has checked for lanes"));
        if is_eight() { eight() } else { Lanes::new(key).map_or_else(eight, Self::Sixteen) }
    }

    fn seal(&self, buffer: &mut [u8], bodies: &[Body]) {
        match self {
            Self::Sixteen(lanes) => lanes.seal(buffer, bodies),
            Self::Eight(lanes) => lanes.seal(buffer, bodies),
        }
    }

    fn open(&self, buffer: &mut [u8], bodies: &[Body], held: &mut Vec<bool>) {
        match self {
            Self::Sixteen(lanes) => lanes.open(buffer, bodies, held),
            Self::Eight(lanes) => lanes.open(buffer, bodies, held),
        }
    }
}

fn is_eight() -> bool {
    std::env::var_os("RUSTGUARD_AEAD").is_some_and(|name| name == "lanes8")
}

impl Case {
    fn new(sizes: &[usize]) -> Self {
        let key = [7; 32];
        let (ring, lanes) = (RingCipher::new(&key), Either::new(&key));
        let mut at = 0;
        let mut body = |(counter, size): (u64, &usize)| {
            let body = Body { at: at + 16, size: size + 16, counter };
            at += size + 32;
            body
        };
        let bodies: Vec<Body> = (0..).zip(sizes).map(&mut body).collect();
        let opened = vec![1; at];
        let mut sealed = opened.clone();
        ring.seal_batch(&mut sealed, &bodies);
        Self { bodies, sealed, opened, held: vec![], ring, lanes }
    }

    fn step(&mut self, step: usize) {
        let Self { bodies, sealed, opened, held, ring, lanes } = self;
        if step >= 2 {
            opened.copy_from_slice(black_box(sealed));
            held.clear();
        }
        match step {
            0 => ring.seal_batch(black_box(opened), bodies),
            1 => lanes.seal(black_box(opened), bodies),
            2 => ring.open_batch(black_box(opened), bodies, held),
            3 => lanes.open(black_box(opened), bodies, held),
            _ => _ = black_box(opened),
        }
        assert!(held.iter().all(|held| *held));
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Return nanoseconds and cycles per packet to seal with ring and with the lanes, and to open with
/// both.
fn measure(sizes: &[usize]) -> [[f64; 2]; 4] {
    let mut case = Case::new(sizes);
    let count = (RUN / case.sealed.len()).max(1);
    let mut rounds: [Vec<Taken>; STEPS] = Default::default();
    for _ in 0..ROUNDS {
        for (step, taken) in rounds.iter_mut().enumerate() {
            taken.push(take(count, || case.step(step)));
        }
    }
    let [medians @ .., copy] = rounds.map(|taken| {
        let nanoseconds = median(taken.iter().map(|taken| taken.nanoseconds).collect());
        [nanoseconds, median(taken.iter().filter_map(|taken| taken.cycles).collect())]
    });
    let mut step = 0;
    medians.map(|median| {
        step += 1;
        let without = |unit: usize| median[unit] - if step > 2 { copy[unit] } else { 0.0 };
        [without(0), without(1)].map(|taken| taken / sizes.len() as f64)
    })
}

fn cases() -> impl Iterator<Item = (String, Vec<usize>)> {
    let same = SIZES
        .into_iter()
        .flat_map(|size| COUNTS.into_iter().map(move |count| (format!("{count} of {size}"), vec![size; count])));
    let mixed = [(1, 3), (1, 7), (1, 15), (4, 12), (8, 8), (12, 4)]
        .into_iter()
        .map(|(big, small)| (format!("{big} of 1420, {small} of 64"), [vec![1420; big], vec![64; small]].concat()));
    same.chain(mixed)
}

/// Print a table for people.
pub fn table() {
    println!("{:>22} | seal: ring, lanes, ratio, cycles a byte | open: the same (ns per packet)", "packets of bytes");
    for (name, sizes) in cases() {
        let bytes = sizes.iter().sum::<usize>() as f64 / sizes.len() as f64;
        let [ring_seal, lanes_seal, ring_open, lanes_open] = measure(&sizes);
        let half = |ring: [f64; 2], lanes: [f64; 2]| {
            format!("{:6.0} {:6.0} {:5.2} {:6.2}", ring[0], lanes[0], lanes[0] / ring[0], lanes[1] / bytes)
        };
        println!("{name:>22} | {} | {}", half(ring_seal, lanes_seal), half(ring_open, lanes_open));
    }
}

/// Print a line per case for `turns`: the lanes' nanoseconds to seal and to open, then cycles.
pub fn rows() {
    for (name, sizes) in cases() {
        let [_, seal, _, open] = measure(&sizes);
        println!("{name}\t{}\t{}\t{}\t{}", seal[0], open[0], seal[1], open[1]);
    }
}
