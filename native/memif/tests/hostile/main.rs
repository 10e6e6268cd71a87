//! What a hostile other side may do, under random input for some seconds. This runs everywhere. `make
//! fuzz` drives the same functions by coverage, and finds more.
//!
//! RUSTGUARD_FUZZ_SECONDS sets the duration of each (2 s), RUSTGUARD_FUZZ_SEED the seed.

use std::time::{Duration, Instant};

mod bodies;
#[path = "../../../transport/tests/support/dice.rs"]
mod dice;

use dice::Dice;
use memif::message::SIZE;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Call `body` with inputs that `make` returns, for some seconds.
fn drive(body: fn(&[u8]), make: impl Fn(&mut Dice) -> Vec<u8>) {
    let seed = variable("RUSTGUARD_FUZZ_SEED").unwrap_or(20_261_126);
    let until = Instant::now() + Duration::from_secs(variable("RUSTGUARD_FUZZ_SECONDS").unwrap_or(2));
    let mut dice = Dice(seed);
    let mut inputs = 0_u64;
    while Instant::now() < until {
        body(&make(&mut dice));
        inputs += 1;
    }
    println!("{inputs} inputs, seed {seed}");
}

fn random(dice: &mut Dice, longest: usize) -> Vec<u8> {
    (0..dice.below(longest)).map(|_| dice.next() as u8).collect()
}

#[test]
fn any_bytes_may_come_as_a_message() {
    drive(bodies::message, |dice| {
        let mut bytes = random(dice, SIZE);
        bytes.resize(SIZE, 0);
        bytes[..2].copy_from_slice(&(dice.below(10) as u16).to_ne_bytes());
        bytes
    });
}

#[test]
fn any_messages_may_come_in_any_order() {
    drive(bodies::conversation, |dice| {
        let mut all = Vec::new();
        for _ in 0..dice.below(8) {
            let mut bytes = random(dice, SIZE);
            bytes.resize(SIZE, 0);
            bytes[..2].copy_from_slice(&(dice.below(10) as u16).to_ne_bytes());
            all.extend(bytes);
        }
        all
    });
}

#[test]
fn the_other_side_may_write_anything_into_a_ring() {
    drive(bodies::ring, |dice| random(dice, 400));
}
