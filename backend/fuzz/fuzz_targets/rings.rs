//! A virtqueue in memory of any content.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receiptdisk_backend::fuzz::rings(input));
