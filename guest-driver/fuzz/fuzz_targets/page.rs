//! Any page under right checksums: each kind is decoded or refused; entries that are handed out lie in data segments.
#![no_main]
mod allocations;
mod slot;

use libfuzzer_sys::fuzz_target;
use receipt_store::control::{Head, Lease};
use receipt_store::index::IndexPage;
use receipt_store::layout::Geometry;
use receipt_store::page::{PageId, PageKind, newest};
use receipt_store::{Superblock, table};
use slot::slot;

fuzz_target!(|input: &[u8]| {
    let (one, two) = input.split_at(input.len() / 2);
    let pair = [slot(one), slot(two)].concat();
    let geometry = Geometry::plan(64 << 20, Some(256 << 10), 128).expect("a good shape");
    let superblock = Superblock {
        uuid: [0; 16],
        path_key: [0; 32],
        geometry,
        created_at_ms: 0,
        is_read_only: false,
        has_life: true,
        feature_compat: 0,
    };
    let page_no = u64::from_le_bytes(pair[16..24].try_into().expect("8 bytes"));
    let store_id = Some(u64::from_le_bytes(pair[8..16].try_into().expect("8 bytes")));
    for kind in [PageKind::Superblock, PageKind::Lease, PageKind::Head, PageKind::Table, PageKind::Index] {
        let ((page, _), _) = newest(&pair, PageId { store_id, page_no, kind });
        match kind {
            PageKind::Lease => drop(Lease::decode(&page)),
            PageKind::Head => {
                if let Ok(head) = Head::decode(&page, &superblock) {
                    assert!(superblock.geometry.holds_record(head.replay.block, 1));
                }
            }
            PageKind::Table => (0..126).for_each(|position| drop(table::entry(&page, position))),
            _ => {
                if let Ok(index) = IndexPage::decode(&page, page_no, &superblock.geometry) {
                    assert!(
                        index.entries.iter().all(|e| superblock.geometry.holds_record(e.block, e.blocks))
                    );
                }
            }
        }
    }
});
