//! Data that was changed by somebody who knows the format: with the checksum that goes with it.

use receipt_store::checksum::DataSums;
use receipt_store::layout::block_offset;
use receipt_store::{RawDevice, Reader, ReceiptPath};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Changes the last byte of a receipt on the disk; returns the bytes that it has now.
pub fn forge(disk: &Path, path: &str) -> Vec<u8> {
    let reader = Reader::new(RawDevice::open_reader(disk).unwrap(), "disk");
    let receipt = reader.get(&ReceiptPath::new(path).unwrap()).unwrap();
    let (mut data, header) = (receipt.data().to_vec(), receipt.stat().header);
    *data.last_mut().unwrap() ^= 1;
    let checksum = DataSums::of_hashed(&data, header.data_hash).checksum;
    let file = OpenOptions::new().write(true).open(disk).unwrap();
    file.write_all_at(&data, block_offset(header.block) + header.len_bytes() as u64).unwrap();
    let end = block_offset(header.block + u64::from(header.blocks));
    file.write_all_at(&checksum.to_le_bytes(), end - 8).unwrap();
    data
}
