//! Drives `bodies::pairing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| transport_fuzz::bodies::pairing(input));
