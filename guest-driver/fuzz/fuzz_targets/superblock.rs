//! Any superblock under a right checksum: opened or refused, and every address that comes of it lies on the disk.
#![no_main]
mod allocations;
mod bytes;
mod slot;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use receipt_store::Superblock;
use slot::slot;

fuzz_target!(|input: &[u8]| {
    let mut page = slot(input);
    page.resize(8192, 0);
    for size_bytes in [4 << 20, 1 << 40] {
        let device = Bytes { bytes: page.clone(), size_bytes };
        let Ok(superblock) = Superblock::read(&device, "fuzz") else { continue };
        let geometry = &superblock.geometry;
        for hash in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            for region in &geometry.regions {
                let page_no = geometry.home_page(region, hash);
                assert!((page_no + 1) * 8192 <= size_bytes, "index page on the disk");
                assert!((geometry.spill_page(page_no) + 1) * 8192 <= size_bytes, "spill page on the disk");
            }
        }
        for segment in [0, 1, 2, geometry.segment_count - 1] {
            assert!(
                (geometry.table_slot(segment).0 + 1) * 8192 <= geometry.segment_bytes,
                "table in segment 0"
            );
        }
        let again = receipt_store::page::encode_slot(
            superblock.store_id(),
            0,
            receipt_store::page::PageKind::Superblock,
            &receipt_store::page::Page { version: 1, ..superblock.encode() },
        );
        let mut bytes = again.as_slice().to_vec();
        bytes.resize(8192, 0);
        let read = Superblock::read(&Bytes { bytes, size_bytes }, "fuzz").expect("what is written is read");
        assert_eq!(read.geometry, superblock.geometry);
    }
});
