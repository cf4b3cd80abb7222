//! A request of any content, cut in any way.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receiptdisk_backend::fuzz::requests(input));
