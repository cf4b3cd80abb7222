//! The byte tables and limits of docs/format.md are those of the code.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

use receipt_store::control::{HeadRaw, LeaseRaw};
use receipt_store::index::EntryRaw;
use receipt_store::layout;
use receipt_store::life::REASON_BYTES_MAX;
use receipt_store::page::SlotHeader;
use receipt_store::policy::{CLASS_COUNT, CLOCK_DAYS_MAX, HoldRaw, PolicyRaw};
use receipt_store::record::RecordRaw;
use receipt_store::retire::{RangeRaw, RetireRaw};
use receipt_store::summary::{DescriptorRaw, ItemRaw};
use receipt_store::superblock::SuperblockRaw;
use receipt_store::table::TableEntryRaw;
use std::mem::offset_of;

const DOC: &str = include_str!("../../docs/format.md");

/// Field offsets as the code has them, with the size of the struct at the end.
macro_rules! offsets {
    ($type:ty: $($field:ident),+) => {
        (stringify!($type), vec![$((stringify!($field), offset_of!($type, $field))),+], size_of::<$type>())
    };
}

/// Offset, length and first word of the name, for each row of the table behind its marker.
fn rows(name: &str, size: usize) -> Vec<(usize, usize, String)> {
    let marker = format!("<!-- table: {name} {size} -->");
    let (_, rest) = DOC.split_once(&marker).unwrap_or_else(|| panic!("no {marker}"));
    let lines = rest.trim_start().lines().skip(2).take_while(|line| line.starts_with('|'));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let word = cells[3].split([' ', ':', '.', ',']).next().unwrap().to_owned();
            (cells[1].parse().unwrap(), cells[2].parse().unwrap(), word)
        })
        .collect()
}

#[test]
fn byte_tables_are_those_of_the_code() {
    let structs = [
        offsets!(SlotHeader: magic, crc32c, store_id, page_no, version, epoch, kind, count, aux),
        offsets!(SuperblockRaw: magic, format_major, format_minor, feature_compat, feature_ro_compat,
            feature_incompat, uuid, path_key, hash_alg, reserved_a, zone_segments, segment_bytes, segment_count,
            created_at_ms, region_count, reserved_b, regions),
        offsets!(LeaseRaw: epoch, state, opened_at_ms, writer_uuid, guest_name),
        offsets!(HeadRaw: replay_seq, replay_block, replay_generation, reserved, summary_block, prev_hash,
            published_seq, end_block),
        offsets!(TableEntryRaw: generation, state, class, reserved_a, live, newest_issue_day, first_seq,
            seal_block, reserved_b),
        offsets!(EntryRaw: tag, first_block, blocks, generation, seq),
        offsets!(RecordRaw: magic, header_crc32c, seq, epoch, generation, self_block, blocks, kind, class,
            path_len, data_len, recorded_at_ms, issued_day, flags, version, previous_version_block,
            previous_version_seq, prev_hash, data_hash),
        offsets!(DescriptorRaw: previous_block, first_seq, last_seq, next_segment, next_generation, count,
            smallest_len, largest_len, reserved),
        offsets!(ItemRaw: seq, block, blocks, kind, flags, path_len),
        offsets!(PolicyRaw: confirmed_day, reserved, classes),
        offsets!(HoldRaw: until_day, prefix_len, is_release, page),
        offsets!(RetireRaw: segment, generation, reserved, range),
        offsets!(RangeRaw: first_seq, last_seq, prev_hash, last_hash),
    ];
    for (name, fields, size) in structs {
        let documented = rows(name, size);
        let mut next = 0;
        for ((offset, len, _), row) in documented.iter().zip(0..) {
            assert_eq!(*offset, next, "{name} row {row} leaves a gap");
            next += len;
        }
        assert_eq!(next, size, "{name}");
        let documented: Vec<(&str, usize)> =
            documented.iter().map(|(at, _, word)| (word.as_str(), *at)).collect();
        assert_eq!(documented, fields, "{name}");
    }
}

#[test]
fn limits_are_those_of_the_code() {
    let (_, rest) = DOC.split_once("<!-- limits -->").unwrap();
    let limits: Vec<(String, u64)> = rest
        .trim_start()
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            (cells[1].split('`').nth(1).unwrap().to_owned(), cells[2].parse().unwrap())
        })
        .collect();
    let code = [
        ("DATA_BYTES_MAX", layout::DATA_BYTES_MAX),
        ("PATH_BYTES_MAX", layout::PATH_BYTES_MAX as u64),
        ("BATCH_RECORDS_MAX", layout::BATCH_RECORDS_MAX as u64),
        ("BATCH_BYTES_MAX", layout::BATCH_BYTES_MAX),
        ("SUMMARY_RECORDS_MAX", layout::SUMMARY_RECORDS_MAX as u64),
        ("SPILL_HOPS_MAX", layout::SPILL_HOPS_MAX as u64),
        ("GET_ATTEMPTS_MAX", layout::GET_ATTEMPTS_MAX as u64),
        ("WINDOW_RECORDS_MAX", layout::WINDOW_RECORDS_MAX as u64),
        ("SEGMENT_BYTES_MIN", layout::SEGMENT_BYTES_MIN),
        ("SEGMENT_BYTES_MAX", layout::SEGMENT_BYTES_MAX),
        ("REGION_COUNT_MAX", layout::REGION_COUNT_MAX as u64),
        ("CLASS_COUNT", CLASS_COUNT as u64),
        ("CLOCK_DAYS_MAX", u64::from(CLOCK_DAYS_MAX)),
        ("REASON_BYTES_MAX", REASON_BYTES_MAX as u64),
        ("INDEX_FULL_PERCENT", layout::INDEX_FULL_PERCENT),
    ];
    assert_eq!(limits, code.map(|(name, value)| (name.to_owned(), value)));
}
