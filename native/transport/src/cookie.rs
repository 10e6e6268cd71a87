//! MAC1, MAC2 and cookies, which decide whether a datagram may cost us a Diffie-Hellman (whitepaper
//! sections 5.3, 5.4.4, 5.4.7).

use std::net::{IpAddr, SocketAddr};

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{Aead as _, Payload};
use zeroize::Zeroizing;

use crate::contract::Seconds;
use crate::indices::Random;
use crate::wire::{COOKIE_REPLY, COOKIE_REPLY_SIZE, MAC_SIZE};

/// Seconds that a cookie and its secret are valid (section 5.4.7).
pub const COOKIE_SECRET_LIFETIME: Seconds = 120.0;

type Keyed = Blake2sMac<U16>;

fn keyed(key: &[u8], data: &[u8]) -> Keyed {
    let mut mac = <Keyed as blake2::digest::KeyInit>::new_from_slice(key).expect("keys have 16 or 32 bytes");
    mac.update(data);
    mac
}

fn labelled(label: &[u8; 8], public_key: &[u8; 32]) -> [u8; 32] {
    Blake2s256::new().chain_update(label).chain_update(public_key).finalize().into()
}

/// Return the key of MAC1 for messages sent to `public_key`.
pub fn mac1_key(public_key: &[u8; 32]) -> [u8; 32] {
    labelled(b"mac1----", public_key)
}

/// Return the key that seals the cookies of `public_key`.
pub fn cookie_key(public_key: &[u8; 32]) -> [u8; 32] {
    labelled(b"cookie--", public_key)
}

/// Return the keyed BLAKE2s hash, 16 bytes long.
pub fn mac(key: &[u8], data: &[u8]) -> [u8; MAC_SIZE] {
    keyed(key, data).finalize().into_bytes().into()
}

/// Return whether a whole message 1 or 2 has the right MAC1. The time doesn't depend on where it
/// differs.
pub fn mac1_holds(datagram: &[u8], key: &[u8; 32]) -> bool {
    let (covered, macs) = datagram.split_at(datagram.len() - 2 * MAC_SIZE);
    keyed(key, covered).verify_slice(&macs[..MAC_SIZE]).is_ok()
}

/// Make message 3, which carries `cookie`. It answers a message with sender index `receiver` and
/// MAC1 `mac1`.
pub fn cookie_reply(
    receiver: [u8; 4],
    cookie: &[u8; MAC_SIZE],
    mac1: &[u8],
    key: &[u8; 32],
    random: &Random,
) -> Vec<u8> {
    let mut nonce = [0; 24];
    random(&mut nonce);
    let sealed = XChaCha20Poly1305::new(key.into())
        .encrypt(&nonce.into(), Payload { msg: cookie, aad: mac1 })
        .expect("16 bytes can be sealed");
    let mut reply = Vec::with_capacity(COOKIE_REPLY_SIZE);
    reply.extend_from_slice(&[COOKIE_REPLY, 0, 0, 0]);
    reply.extend_from_slice(&receiver);
    reply.extend_from_slice(&nonce);
    reply.extend_from_slice(&sealed);
    reply
}

/// Return the cookie of an address and port: the MAC over 4 + 2 bytes for IPv4, or 16 + 2 for IPv6.
fn cookie_of(secret: &[u8; 32], source: SocketAddr) -> [u8; MAC_SIZE] {
    let mut bytes = [0; 18];
    let size = match source.ip() {
        IpAddr::V4(address) => {
            bytes[..4].copy_from_slice(&address.octets());
            4
        }
        IpAddr::V6(address) => {
            bytes[..16].copy_from_slice(&address.octets());
            16
        }
    };
    bytes[size..size + 2].copy_from_slice(&source.port().to_be_bytes());
    mac(secret, &bytes[..size + 2])
}

/// Our changing secret, and the cookies made from it.
#[derive(Default)]
pub struct CookieSecrets {
    secret: Option<Zeroizing<[u8; 32]>>,
    previous: Option<Zeroizing<[u8; 32]>>,
    born: Seconds,
}

impl CookieSecrets {
    fn rotate(&mut self, now: Seconds, random: &Random) -> &Zeroizing<[u8; 32]> {
        let age = now - self.born;
        if self.secret.is_none() || age >= COOKIE_SECRET_LIFETIME {
            self.previous = self.secret.take().filter(|_| age < 2.0 * COOKIE_SECRET_LIFETIME);
            self.born = now;
        }
        self.secret.get_or_insert_with(|| {
            let mut fresh = Zeroizing::new([0; 32]);
            random(&mut *fresh);
            fresh
        })
    }

    /// Return the cookie for `source`.
    pub fn cookie_for(&mut self, source: SocketAddr, now: Seconds, random: &Random) -> [u8; MAC_SIZE] {
        cookie_of(self.rotate(now, random), source)
    }

    /// Return whether a whole message 1 or 2 ends in a MAC2 made with a cookie that we gave to
    /// `source`. The time of a comparison doesn't depend on where it differs.
    pub fn mac2_holds(&mut self, datagram: &[u8], source: SocketAddr, now: Seconds, random: &Random) -> bool {
        let (covered, mac2) = datagram.split_at(datagram.len() - MAC_SIZE);
        // A sender without a cookie leaves MAC2 zero (section 5.4.4). Most of a flood does.
        if mac2 == [0; MAC_SIZE] {
            return false;
        }
        let holds = |secret: &[u8; 32]| keyed(&cookie_of(secret, source), covered).verify_slice(mac2).is_ok();
        holds(self.rotate(now, random)) || self.previous.as_ref().is_some_and(|secret| holds(secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blake2::digest::consts::U32;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn row_31_blake2s_reproduces_the_vectors_of_rfc_7693_and_the_keyed_one_of_its_authors() {
        let abc = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982";
        assert_eq!(hex(&Blake2s256::digest(b"abc")), abc);
        let key: Vec<u8> = (0..32).collect();
        let empty = <Blake2sMac<U32> as blake2::digest::KeyInit>::new_from_slice(&key).unwrap().finalize();
        let keyed = "48a8997da407876b3d79c0d92325ad3b89cbb754d86ab71aee047ad345fd2c49";
        assert_eq!(hex(&empty.into_bytes()), keyed);
    }

    /// Appendix A.3.1.
    #[test]
    fn row_31_xchacha20_poly1305_reproduces_the_vector_of_draft_irtf_cfrg_xchacha() {
        let text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
            sunscreen would be it.";
        let key: [u8; 32] = std::array::from_fn(|n| 0x80 + n as u8);
        let nonce: [u8; 24] = std::array::from_fn(|n| 0x40 + n as u8);
        let aad = [0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
        let cipher = XChaCha20Poly1305::new((&key).into());
        let sealed = cipher.encrypt(&nonce.into(), Payload { msg: text, aad: &aad }).unwrap();
        assert_eq!(hex(&sealed[..16]), "bd6d179d3e83d43b9576579493c0e939");
        assert_eq!(hex(&sealed[text.len()..]), "c0875924c1c7987947deafd8780acf49");
    }

    /// Made with Python's hashlib.
    #[test]
    fn row_31_macs_are_keyed_blake2s_of_16_bytes() {
        assert_eq!(hex(&mac(&[b'k'; 32], b"data")), KEYED);
        assert_eq!(hex(&mac1_key(&[b'p'; 32])), MAC1_KEY);
    }

    const KEYED: &str = "4369f34699c43fd4a50d2f291971554a";
    const MAC1_KEY: &str = "e6d1856f1161e4ad51a31bfa0925e230d60f8e9c186cbf7b717075b73bd699f5";
}
