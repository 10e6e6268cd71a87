//! The cipher against an independent one, and batches against single packets.

use super::*;
use crate::body::Body;
use crate::wire::TAG_SIZE;

/// The key and the text are RFC 7539's. The nonce is WireGuard's for counter 0x0706050403020100. An
/// independent implementation makes the expected result.
#[test]
fn sealing_is_chacha20poly1305_with_the_counter_as_nonce() {
    use chacha20poly1305::aead::{Aead as _, KeyInit};
    let key: [u8; 32] = std::array::from_fn(|n| 0x80 + n as u8);
    let counter = 0x0706_0504_0302_0100_u64;
    let text = b"Ladies and Gentlemen of the class of '99";
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    let other = chacha20poly1305::ChaCha20Poly1305::new(&key.into());
    let expected = other.encrypt(&nonce.into(), &text[..]).unwrap();

    let mut body = vec![0; text.len() + TAG_SIZE];
    let ours = RingCipher::new(&key);
    body[..text.len()].copy_from_slice(text);
    ours.seal(counter, &mut body);
    assert_eq!(body, expected);
    assert!(ours.open(counter, &mut body));
    assert_eq!(&body[..text.len()], text);
}

#[test]
fn batches_of_any_count_are_rings() {
    println!("AEAD tested: {}", description());
    let (cipher, ring) = (Cipher::new(&[5; 32]), RingCipher::new(&[5; 32]));
    for count in 0..=if cfg!(miri) { 6 } else { 64 } {
        let body = |n: usize| Body { at: 90 * n, size: 90 - n % 3, counter: n as u64 };
        let bodies: Vec<Body> = (0..count).map(body).collect();
        let (mut buffer, mut expected) = (vec![3; 90 * count], vec![3; 90 * count]);
        cipher.seal_batch(&mut buffer, &bodies);
        ring.seal_batch(&mut expected, &bodies);
        assert_eq!(buffer, expected);
        buffer.iter_mut().step_by(7 * 90).for_each(|byte| *byte ^= 1);
        let mut held = vec![];
        cipher.open_batch(&mut buffer, &bodies, &mut held);
        assert_eq!(held, (0..count).map(|n| n % 7 != 0).collect::<Vec<_>>());
        for (body, held) in bodies.iter().zip(held) {
            assert!(!held || buffer[body.at..body.at + body.size - TAG_SIZE].iter().all(|byte| *byte == 3));
        }
    }
}

#[test]
fn any_flipped_bit_or_other_counter_is_refused() {
    let cipher = RingCipher::new(&[7; 32]);
    let mut sealed = [0; 64];
    cipher.seal(5, &mut sealed);
    for bit in (0..64 * 8).step_by(if cfg!(miri) { 41 } else { 1 }) {
        let mut forged = sealed;
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(!cipher.open(5, &mut forged));
    }
    assert!(!cipher.open(6, &mut sealed.clone()));
    assert!(cipher.open(5, &mut sealed));
}

/// Each of these is divided differently between ring and the lanes.
#[test]
fn batches_of_any_lengths_are_rings() {
    let (cipher, ring) = (Cipher::new(&[5; 32]), RingCipher::new(&[5; 32]));
    let lengths: [&[usize]; 8] = [
        &[64, 64],
        &[1420, 64],
        &[128, 129, 64],
        &[600, 500, 512, 400],
        &[0, 0, 0, 0, 1420],
        &[64; 18],
        &[1420; 17],
        &[0; 34],
    ];
    for lengths in lengths {
        let mut at = 0;
        let mut body = |(counter, length): (u64, &usize)| {
            let body = Body { at, size: length + TAG_SIZE, counter };
            at += body.size;
            body
        };
        let bodies: Vec<Body> = (0..).zip(lengths).map(&mut body).collect();
        let (mut buffer, mut expected) = (vec![3; at], vec![3; at]);
        cipher.seal_batch(&mut buffer, &bodies);
        ring.seal_batch(&mut expected, &bodies);
        assert_eq!(buffer, expected);
        let last = at - 1;
        buffer[last] ^= 1;
        let mut held = vec![];
        cipher.open_batch(&mut buffer, &bodies, &mut held);
        assert_eq!(held, (1..=lengths.len()).map(|n| n < lengths.len()).collect::<Vec<_>>());
    }
}
