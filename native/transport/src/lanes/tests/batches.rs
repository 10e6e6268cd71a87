//! Batches against ring, and batches that must not pass.

use super::dice::Dice;
use super::subject::Subject;
use crate::aead::{Aead, RingCipher};
use crate::body::Body;
use crate::wire::TAG_SIZE;

fn fill(dice: &mut Dice, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&dice.next().to_le_bytes()[..chunk.len()]);
    }
}

/// Return up to 64 bodies at odd places of a random buffer: of one length, of one length but the
/// last, or of any.
fn random_batch(dice: &mut Dice) -> (Vec<u8>, Vec<Body>) {
    let (count, same, kind) = (1 + dice.below(64), dice.below(1500), dice.below(3));
    let mut counter = dice.next() >> dice.below(64);
    let (mut bodies, mut at) = (Vec::new(), dice.below(4));
    for number in 0..count {
        let text = match kind {
            0 => same,
            1 if number + 1 < count => same,
            1 => dice.below(same + 1),
            _ => dice.below(1500),
        };
        bodies.push(Body { at, size: text + TAG_SIZE, counter });
        at += text + TAG_SIZE + dice.below(4);
        counter = if dice.below(20) == 0 { dice.next() } else { counter.wrapping_add(1) };
    }
    let mut buffer = vec![0; at + 3];
    fill(dice, &mut buffer);
    (buffer, bodies)
}

/// Flip a bit, move the counter, or leave the body as it is.
fn tamper(dice: &mut Dice, buffer: &mut [u8], body: &mut Body) {
    match dice.below(8) {
        0 => buffer[body.at + dice.below(body.size)] ^= 1 << dice.below(8),
        1 => buffer[body.at + body.size - 1 - dice.below(TAG_SIZE)] ^= 1 << dice.below(8),
        2 => body.counter = body.counter.wrapping_add(1),
        _ => {}
    }
}

fn compare<S: Subject>(dice: &mut Dice) {
    let mut key = [0; 32];
    fill(dice, &mut key);
    let (lanes, ring) = (S::make(&key).unwrap(), RingCipher::new(&key));
    let (mut buffer, mut bodies) = random_batch(dice);
    let mut expected = buffer.clone();
    lanes.seal(&mut buffer, &bodies);
    ring.seal_batch(&mut expected, &bodies);
    assert!(buffer == expected, "sealed {bodies:?}");

    if dice.below(4) > 0 {
        bodies.iter_mut().for_each(|body| tamper(dice, &mut buffer, body));
    }
    expected.copy_from_slice(&buffer);
    let sealed = buffer.clone();
    let (mut held, mut expected_held) = (vec![], vec![]);
    lanes.open(&mut buffer, &bodies, &mut held);
    ring.open_batch(&mut expected, &bodies, &mut expected_held);
    assert_eq!(held, expected_held, "opened {bodies:?}");
    // ring may leave anything in a body that it refused. The lanes leave the body unchanged.
    for (body, held) in bodies.iter().zip(held) {
        let place = body.at..body.at + body.size;
        if !held {
            expected[place.clone()].copy_from_slice(&sealed[place]);
        }
    }
    assert!(buffer == expected, "opened {bodies:?}");
}

/// With RUSTGUARD_SOAK=1: 10⁷ batches, about 20 minutes of `cargo test --release`.
pub fn random_batches_are_rings<S: Subject>() {
    if !S::is_available() {
        return;
    }
    let soak = std::env::var_os("RUSTGUARD_SOAK").is_some();
    let batches = if soak { 10_000_000 } else { 300 };
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    for batch in 0..batches {
        compare::<S>(&mut dice);
        if soak && batch % 1_000_000 == 0 {
            println!("{batch} batches");
        }
    }
    println!("{batches} batches");
}

pub fn a_body_that_does_not_hold_stays_sealed_and_the_others_open<S: Subject>() {
    if !S::is_available() {
        return;
    }
    let lanes = S::make(&[3; 32]).unwrap();
    for size in [20, 84, 300, 1436] {
        let bodies: Vec<Body> = (0..16).map(|n| Body { at: size * n, size, counter: n as u64 }).collect();
        let mut buffer = vec![1; 16 * size];
        lanes.seal(&mut buffer, &bodies);
        buffer[5 * size + size - 1] ^= 1;
        buffer[8 * size] ^= 1;
        let sealed = buffer.clone();
        let mut held = vec![];
        lanes.open(&mut buffer, &bodies, &mut held);
        for (n, held) in held.into_iter().enumerate() {
            let text = size * n..size * (n + 1) - TAG_SIZE;
            assert_eq!(held, n != 5 && n != 8);
            let (now, before) = (&buffer[text.clone()], &sealed[text]);
            assert!(if held { now.iter().all(|byte| *byte == 1) } else { now == before }, "{n} of {size}");
        }
    }
}

pub fn a_body_outside_of_the_buffer_is_refused<S: Subject>() {
    if !S::is_available() {
        return;
    }
    let lanes = S::make(&[3; 32]).unwrap();
    for (count, size) in [(1, 40), (5, 200), (16, 40), (16, 200), (16, 1436)] {
        for at in [count * size - size + 1, count * size, usize::MAX / 2, usize::MAX - size] {
            let mut bodies: Vec<Body> = (0..count).map(|n| Body { at: size * n, size, counter: n as u64 }).collect();
            bodies[count / 2].at = at;
            let seal = || lanes.seal(&mut vec![1; count * size], &bodies);
            assert!(std::panic::catch_unwind(seal).is_err(), "{at} with {count} of {size}");
            let open = || lanes.open(&mut vec![1; count * size], &bodies, &mut vec![]);
            assert!(std::panic::catch_unwind(open).is_err(), "{at} with {count} of {size}");
        }
    }
}
