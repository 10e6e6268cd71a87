//! Drives `memif_bodies::conversation`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| transport_fuzz::memif_bodies::conversation(input));
