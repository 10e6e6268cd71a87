//! The group of the pairing's CPace: ristretto255 (RFC 9496), in constant time, by curve25519-dalek.

use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use zeroize::Zeroizing;

/// Map 64 uniform bytes to an element, 32 bytes (RFC 9496, section 4.3.4).
#[pyfunction]
pub fn ristretto_from_hash<'py>(py: Python<'py>, uniform: [u8; 64]) -> Bound<'py, PyBytes> {
    let uniform = Zeroizing::new(uniform);
    PyBytes::new(py, RistrettoPoint::from_uniform_bytes(&uniform).compress().as_bytes())
}

/// Multiply an element by a scalar, both 32 bytes. None: not an encoding of an element, or the product is the neutral
/// element.
#[pyfunction]
pub fn ristretto_multiply<'py>(py: Python<'py>, scalar: [u8; 32], element: [u8; 32]) -> Option<Bound<'py, PyBytes>> {
    let scalar = Zeroizing::new(Scalar::from_bytes_mod_order(scalar));
    let product = CompressedRistretto(element).decompress()? * *scalar;
    (!product.is_identity()).then(|| PyBytes::new(py, product.compress().as_bytes()))
}
