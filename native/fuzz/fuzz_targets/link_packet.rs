//! Drives `neighbours_bodies::packet`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| transport_fuzz::neighbours_bodies::packet(input));
