//! Any changed byte of any record is found by `verify` and named: headers byte by byte, data and what is behind it, Summaries and Seals.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

use receipt_store::layout::{BLOCK_BYTES, block_offset};
use receipt_store::{FormatOptions, Put, RawDevice, Reader, ReceiptPath, Writer, WriterOptions, format};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a header before the path.
const HEADER_BYTES: u64 = 144;

fn path(number: u64) -> ReceiptPath {
    ReceiptPath::new(&format!("day/{number}.png")).unwrap()
}

/// What `verify` finds: the paths, or what there is instead of one.
fn findings(disk: &Path) -> Vec<String> {
    let reader = Reader::new(RawDevice::open_reader(disk).unwrap(), "disk");
    let mut found = Vec::new();
    let done = receipt_store::verify::verify(&reader, |finding| {
        found.push(format!("{finding:?}"));
        Ok(())
    });
    found.extend(done.err().map(|error| error.to_string()));
    found
}

fn flip(disk: &File, at_bytes: u64) {
    let mut byte = [0];
    disk.read_exact_at(&mut byte, at_bytes).unwrap();
    disk.write_all_at(&[byte[0] ^ 0x10], at_bytes).unwrap();
}

#[test]
fn every_changed_byte_of_a_record_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("disk");
    File::create(&name).unwrap().set_len(4 << 20).unwrap();
    let device = RawDevice::open_writer(&name).unwrap();
    let options = FormatOptions { segment_bytes: Some(256 << 10), ..FormatOptions::default() };
    format(&device, &options).unwrap();
    let mut writer = Writer::open(device, &WriterOptions::default()).unwrap();
    let mut receipts = Vec::new();
    // Two segments and a bit, so that a Seal is among them.
    for number in 0..24_u64 {
        let data = vec![u8::try_from(number).unwrap(); 20_000 + usize::try_from(number).unwrap() * 37];
        let path = path(number);
        let stored = writer.put(&Put::new(&path, &data)).unwrap();
        receipts.push((path, stored.locator));
    }
    writer.close().unwrap();
    assert_eq!(findings(&name), Vec::<String>::new());
    let disk = OpenOptions::new().read(true).write(true).open(&name).unwrap();
    let mut changed = 0;
    for (number, (path, locator)) in receipts.iter().enumerate() {
        let (start, end) = (block_offset(locator.block), u64::from(locator.blocks) * BLOCK_BYTES);
        let header_end = HEADER_BYTES + path.as_str().len() as u64;
        // Every byte of the headers of some, and of all of them some bytes of the header, the data, and what is behind it.
        let header_stride = if number % 8 == 0 { 1 } else { 29 };
        let header = (0..header_end).step_by(header_stride);
        let rest = (header_end..end).step_by(1999).chain([end - 1]);
        for at in header.chain(rest) {
            flip(&disk, start + at);
            let found = findings(&name);
            // A path that is changed itself, and that no Summary lists yet, is nowhere else: the block is named.
            let place = format!("block {}", locator.block);
            let is_lost = (HEADER_BYTES..header_end).contains(&at);
            assert!(
                found
                    .iter()
                    .any(|finding| finding.contains(path.as_str()) || is_lost && finding.contains(&place)),
                "byte {at} of {path}: {found:?}"
            );
            flip(&disk, start + at);
            changed += 1;
        }
    }
    assert!(changed > 700, "{changed}");
    // What lies between the receipts: Summaries and the Seals.
    let mut lists = 0;
    for pair in receipts.windows(2) {
        let (after, next) = (pair[0].1.block + u64::from(pair[0].1.blocks), pair[1].1.block);
        let is_same_segment = block_offset(after) / (256 << 10) == block_offset(next) / (256 << 10);
        let end = if is_same_segment { next } else { after + 1 };
        for block in after..end {
            for at in (0..HEADER_BYTES).step_by(5) {
                flip(&disk, block_offset(block) + at);
                assert!(!findings(&name).is_empty(), "byte {at} of block {block}");
                flip(&disk, block_offset(block) + at);
            }
            lists += 1;
        }
    }
    assert!(lists >= 1, "no Seal was there to change");
    assert_eq!(findings(&name), Vec::<String>::new(), "as it was");
}
