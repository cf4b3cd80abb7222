//! Any list and any descriptor: refused, or whole, and no larger in memory than on disk allows.
#![no_main]
mod allocations;

use libfuzzer_sys::fuzz_target;
use receipt_store::record::{Header, Kind};
use receipt_store::summary::{Descriptor, ITEM_BYTES, decode_items, encode_items};

fuzz_target!(|input: &[u8]| {
    if let Some(items) = decode_items(input) {
        assert!(items.len() <= input.len() / ITEM_BYTES);
        assert_eq!(encode_items(&items).len(), input.len());
        assert_eq!(decode_items(&encode_items(&items)), Some(items));
    }
    for kind in [Kind::Summary, Kind::Seal] {
        let header = Header {
            seq: 1,
            epoch: 1,
            generation: 1,
            block: 64,
            blocks: 1,
            kind,
            class: 0,
            meta: input.to_vec(),
            data_len: 0,
            recorded_at_ms: 0,
            issued_day: 0,
            flags: 0,
            version: 0,
            previous_version_block: 0,
            previous_version_seq: 0,
            prev_hash: [0; 32],
            data_hash: [0; 32],
        };
        if let Some(descriptor) = Descriptor::decode(&header) {
            let _ = descriptor.may_hold_prefix(b"a/b");
            assert_eq!(descriptor.smallest.len() + descriptor.largest.len() + 56, input.len());
        }
    }
});
