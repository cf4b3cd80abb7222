//! The messages of one front end, and the rings and requests they lead to.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receiptdisk_backend::fuzz::messages(input));
