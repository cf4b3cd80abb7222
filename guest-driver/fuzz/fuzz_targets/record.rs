//! Any record under a right checksum: refused, or its header is what was read and its data lies inside.
#![no_main]
mod allocations;

use libfuzzer_sys::fuzz_target;
use receipt_store::record::Header;
use receipt_store::summary::Descriptor;

/// Of some store.
const SEED: u32 = 7;

fuzz_target!(|input: &[u8]| {
    let _ = Header::parse(input, SEED);
    let mut bytes = input.to_vec();
    if bytes.len() >= 144 {
        bytes[..4].copy_from_slice(b"RSRC");
        let end = 144 + usize::from(u16::from_le_bytes([bytes[38], bytes[39]])).next_multiple_of(8);
        if let Some(whole) = bytes.get(8..end) {
            let crc = crc32c::crc32c_append(SEED, whole);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let Ok((header, _)) = Header::parse(&bytes, SEED) else { return };
    let data = header.data(&bytes);
    let by_checksum = header.data_by_checksum(&bytes);
    assert!(data.is_err() || by_checksum == data, "a checksum takes no data away");
    let _ = header.is_padded(&bytes);
    let mut mended = bytes.clone();
    let _ = header.mend_padding(&mut mended);
    let is_whole = bytes.len() as u64 == u64::from(header.blocks) * 4096;
    assert!(!is_whole || header.is_padded(&mended));
    let _ = Descriptor::decode(&header);
    let again = header.encode(SEED);
    assert_eq!(Header::parse(&again, SEED).expect("what is written is read").0, header);
});
