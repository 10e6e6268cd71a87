//! ChaCha20-Poly1305 (RFC 8439) with WireGuard's nonces: four zero bytes and the counter (whitepaper section 5.4.6).
//!
//! A cipher lives as long as a batch: the session keeps 32 bytes, not an expanded key, and making a cipher of them
//! costs less than sealing sixteen bytes. [`RingCipher`] does all that comes alone. Batches that are long enough go
//! through `lanes`, sixteen packets at once, where the processor has AVX-512 IFMA and `RUSTGUARD_AEAD` isn't `ring`.

// Miri knows no assembler.
#[cfg_attr(miri, path = "interpreted.rs")]
mod by_ring;
mod cipher;
mod interface;
#[cfg(test)]
mod tests;

pub use by_ring::RingCipher;
pub use cipher::{Cipher, description};
pub use interface::Aead;
