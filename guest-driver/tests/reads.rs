//! How many device reads a get and an opening cost, counted from ten receipts to a million (a million where `CI` is set).

#![allow(clippy::unwrap_used)] // a failed step of a test may panic anywhere

use receipt_store::device::{DeviceResult, check_range};
use receipt_store::error::DeviceOp;
use receipt_store::layout::SUMMARY_RECORDS_MAX;
use receipt_store::{
    Device, FormatOptions, Locator, Put, Reader, ReceiptPath, Writer, WriterOptions, format,
};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

const BLOCK_BYTES: usize = 4096;
/// Room for the index of a million receipts; blocks take memory only once they are written.
const DISK_BYTES: u64 = 64 << 30;
const COMMIT_RECEIPTS: usize = 250;

/// A disk in memory that counts its reads and keeps no trailing zeroes.
#[derive(Default)]
struct CountingDisk {
    blocks: RefCell<HashMap<u64, Box<[u8]>>>,
    reads: Cell<u64>,
}

impl Device for CountingDisk {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        check_range(DeviceOp::Read, DISK_BYTES, offset_bytes, buf.len())?;
        self.reads.set(self.reads.get() + 1);
        let blocks = self.blocks.borrow();
        for (number, block) in (offset_bytes / BLOCK_BYTES as u64..).zip(buf.chunks_exact_mut(BLOCK_BYTES)) {
            let bytes = blocks.get(&number).map_or(&[][..], |bytes| bytes);
            block[..bytes.len()].copy_from_slice(bytes);
            block[bytes.len()..].fill(0);
        }
        Ok(())
    }

    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        check_range(DeviceOp::Write, DISK_BYTES, offset_bytes, buf.len())?;
        let mut blocks = self.blocks.borrow_mut();
        for (number, block) in (offset_bytes / BLOCK_BYTES as u64..).zip(buf.chunks_exact(BLOCK_BYTES)) {
            let len = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            blocks.insert(number, block[..len].into());
        }
        Ok(())
    }

    fn flush(&self) -> DeviceResult<()> {
        Ok(())
    }
}

impl CountingDisk {
    /// Reads that `run` makes.
    fn count<T>(&self, run: impl FnOnce() -> T) -> (u64, T) {
        let before = self.reads.get();
        let answer = run();
        (self.reads.get() - before, answer)
    }
}

fn path(number: usize) -> ReceiptPath {
    ReceiptPath::new(&format!("2026/{number:07}.png")).unwrap()
}

/// Stores the receipts `from..to`; returns their locators, and what opening the store cost before.
fn grow(disk: &CountingDisk, from: usize, to: usize) -> (Vec<Locator>, u64) {
    let (opening_reads, writer) = disk.count(|| Writer::open(disk, &WriterOptions::default()));
    let mut writer = writer.unwrap();
    let mut locators = Vec::new();
    for at in (from..to).step_by(COMMIT_RECEIPTS) {
        let numbers = at..to.min(at + COMMIT_RECEIPTS);
        let paths: Vec<ReceiptPath> = numbers.clone().map(path).collect();
        let data: Vec<[u8; 8]> = numbers.map(usize::to_le_bytes).collect();
        let puts: Vec<Put<'_>> = paths.iter().zip(&data).map(|(path, data)| Put::new(path, data)).collect();
        locators.extend(writer.commit(&puts).unwrap().into_iter().map(|stored| stored.unwrap().locator));
    }
    writer.close().unwrap();
    (locators, opening_reads)
}

/// Gets a sample of the first `stored` receipts in every way; most reads of one get: cold, warm, by locator.
fn most_reads(disk: &CountingDisk, locators: &[Locator]) -> (u64, u64, u64) {
    let warm = Reader::new(disk, "disk");
    warm.superblock().unwrap();
    let mut most = (0, 0, 0);
    for number in (0..locators.len()).step_by(locators.len().div_ceil(1000)) {
        let (path, data) = (path(number), number.to_le_bytes());
        let (cold_reads, receipt) = disk.count(|| Reader::new(disk, "disk").get(&path).unwrap());
        assert_eq!(receipt.data(), data);
        let (warm_reads, receipt) = disk.count(|| warm.get(&path).unwrap());
        assert_eq!(receipt.data(), data);
        let (locator_reads, receipt) = disk.count(|| warm.get_locator(&locators[number]).unwrap());
        assert_eq!(receipt.data(), data);
        most = (most.0.max(cold_reads), most.1.max(warm_reads), most.2.max(locator_reads));
    }
    most
}

#[test]
fn reads_of_a_get_and_of_an_opening_do_not_grow_with_the_store() {
    let disk = CountingDisk::default();
    format(&disk, &FormatOptions::default()).unwrap();
    let (mut locators, mut openings) = (Vec::new(), Vec::new());
    let largest = if std::env::var_os("CI").is_some() { 1_000_000 } else { 10_000 };
    for stored in [10, 10_000, 1_000_000].into_iter().filter(|stored| *stored <= largest) {
        let (new, _) = grow(&disk, locators.len(), stored);
        locators.extend(new);
        assert_eq!(
            most_reads(&disk, &locators),
            (3, 2, 1),
            "cold, warm and by locator with {stored} receipts"
        );
        let (_, opening_reads) = grow(&disk, stored, stored);
        openings.push(opening_reads);
    }
    println!("reads of an opening: {openings:?}");
    let bound = SUMMARY_RECORDS_MAX as u64 + 20; // the headers since the last Summary
    assert!(openings.iter().all(|reads| *reads <= bound), "an opening read {openings:?} times");
}
