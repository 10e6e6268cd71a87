//! Drives `memif_bodies::ring`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| transport_fuzz::memif_bodies::ring(input));
