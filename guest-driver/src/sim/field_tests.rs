//! Bad input: every byte of every structure changed under a right checksum, disks of the wrong size, garbage, disks that fail reads.
//! The answer is an error or the right data; never other data, never a panic.

use super::fault_tests::{path, store};
use super::{Rng, Sim, SimReader};
use crate::control::{HeadRaw, LeaseRaw};
use crate::device::{Device, DeviceResult, check_range};
use crate::error::{DeviceError, DeviceOp};
use crate::layout::{
    BLOCK_BYTES_USIZE, PAGE_HEAD, PAGE_LEASE, PAGE_SUPERBLOCK, PAGE_TABLE, block_offset, page_offset,
};
use crate::record::{HEADER_BYTES, Header};
use crate::superblock::SuperblockRaw;
use crate::{Error, Put, Reader, Stored, Writer, WriterOptions};
use std::cell::Cell;

const SLOT_BYTES: usize = crate::layout::SLOT_HEADER_BYTES;

fn block(sim: &Sim, offset_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES_USIZE];
    sim.reader().read(offset_bytes, &mut bytes).unwrap();
    bytes
}

fn overwrite(sim: &Sim, offset_bytes: u64, bytes: &[u8]) {
    let device = sim.writer();
    device.write(offset_bytes, bytes).unwrap();
    device.flush().unwrap();
}

/// Each receipt is right or an error, for a reader and after a writer has opened the store and put something.
fn check(sim: &Sim, stored: &[Stored], story: &str) {
    for turn in ["found", "opened"] {
        let reader = Reader::new(sim.reader(), "sim");
        for (number, stored) in (0_u8..).zip(stored) {
            let name = &stored.locator.path;
            let answers =
                [reader.get(name), reader.get_locator(&stored.locator), reader.get_version(name, 1)];
            for receipt in answers.into_iter().flatten() {
                assert_eq!(receipt.data(), [number; 30_000], "{story}, {turn}: {name}");
            }
        }
        let _ = reader.list("", |_| Ok(()));
        let _ = crate::verify::verify(&reader, |_| Ok(()));
        if let Ok(mut writer) = Writer::open(sim.writer(), &WriterOptions::default()) {
            let _ = writer.put(&Put::new(&path("later"), b"later"));
            let _ = writer.close();
        }
    }
}

/// Changes each byte of a slot up to `len` and mends the checksum.
fn change_page(page_no: u64, len: usize) {
    let (base, stored) = store();
    base.freeze();
    for slot in 0..2 {
        let offset_bytes = page_offset(page_no) + slot * block_offset(1);
        let whole = block(&base, offset_bytes);
        if whole.iter().all(|b| *b == 0) {
            continue;
        }
        for at in (0..4).chain(8..SLOT_BYTES + len) {
            for mask in [1, 0xff] {
                let sim = base.fork();
                let mut bytes = whole.clone();
                bytes[at] ^= mask;
                let crc = crc32c::crc32c(&bytes[8..]);
                bytes[4..8].copy_from_slice(&crc.to_le_bytes());
                overwrite(&sim, offset_bytes, &bytes);
                check(&sim, &stored[..3], &format!("page {page_no} slot {slot} byte {at} ^ {mask:#x}"));
            }
        }
    }
}

#[test]
fn every_field_of_the_superblock_changed() {
    change_page(PAGE_SUPERBLOCK, size_of::<SuperblockRaw>());
}

#[test]
fn every_field_of_lease_and_head_changed() {
    change_page(PAGE_LEASE, size_of::<LeaseRaw>());
    change_page(PAGE_HEAD, size_of::<HeadRaw>());
}

#[test]
fn every_field_of_a_table_page_changed() {
    change_page(PAGE_TABLE, 5 * 32);
}

#[test]
fn every_field_of_an_index_page_changed() {
    let (sim, stored) = store();
    let superblock = Reader::new(sim.reader(), "sim").superblock().unwrap().clone();
    let geometry = &superblock.geometry;
    let hash = superblock.path_hash(stored[0].locator.path.as_str().as_bytes());
    change_page(geometry.home_page(&geometry.regions[0], hash.bucket), 2 * 32);
}

/// Changes each byte of a record's header and path, or of the list of a Summary, and mends checksum and hash.
fn change_record(base: &Sim, stored: &[Stored], at_block: u64, is_list: bool) {
    let offset_bytes = block_offset(at_block);
    let whole = block(base, offset_bytes);
    let seed = Reader::new(base.reader(), "sim").superblock().unwrap().record_seed();
    let (header, _) = Header::parse(&whole, seed).unwrap();
    let start = header.len_bytes();
    let data_end = start + usize::try_from(header.data_len).unwrap();
    let changed = if is_list { start..data_end } else { 8..start };
    for at in changed.filter(|at| !is_list || at % 3 != 0 || *at < start + 64) {
        for mask in [1, 0xff] {
            let sim = base.fork();
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            if is_list {
                let hash = *blake3::hash(&bytes[start..data_end]).as_bytes();
                bytes[HEADER_BYTES - 32..HEADER_BYTES].copy_from_slice(&hash);
            }
            let end =
                HEADER_BYTES + usize::from(u16::from_le_bytes([bytes[38], bytes[39]])).next_multiple_of(8);
            let crc = crc32c::crc32c_append(seed, &bytes[8..end.min(BLOCK_BYTES_USIZE)]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            overwrite(&sim, offset_bytes, &bytes);
            check(&sim, stored, &format!("record at block {at_block} byte {at} ^ {mask:#x}"));
        }
    }
}

#[test]
fn every_field_of_a_record_changed() {
    let (sim, stored) = store();
    sim.freeze();
    change_record(&sim, &stored[..2], stored[0].locator.block, false);
}

#[test]
fn every_field_of_a_seal_and_its_list_changed() {
    let (sim, stored) = store();
    sim.freeze();
    let end = stored[0].locator.block / 64 * 64 + 64;
    let seed = Reader::new(sim.reader(), "sim").superblock().unwrap().record_seed();
    let is_list =
        |at: &u64| Header::parse(&block(&sim, block_offset(*at)), seed).is_ok_and(|(h, _)| h.version == 0);
    let seal = (stored[0].locator.block..end).find(is_list).unwrap();
    change_record(&sim, &stored[..2], seal, false);
    change_record(&sim, &stored[..2], seal, true);
}

/// The beginning of a disk, on which some reads fail.
pub(super) struct Cut {
    device: SimReader,
    size_bytes: u64,
    fail_at: u64,
    pub(super) reads: Cell<u64>,
}

impl Device for Cut {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        check_range(DeviceOp::Read, self.size_bytes, offset_bytes, buf.len())?;
        let now = self.reads.replace(self.reads.get() + 1);
        if now == self.fail_at {
            let source = std::io::Error::other("the device failed");
            return Err(DeviceError { op: DeviceOp::Read, offset_bytes, len_bytes: buf.len(), source });
        }
        self.device.read(offset_bytes, buf)
    }
    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        self.device.write(offset_bytes, buf)
    }
    fn flush(&self) -> DeviceResult<()> {
        self.device.flush()
    }
}

pub(super) fn cut(sim: &Sim, size_bytes: u64, fail_at: u64) -> Cut {
    Cut { device: sim.reader(), size_bytes, fail_at, reads: Cell::new(0) }
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let (sim, stored) = store();
    for size_bytes in [0, 4096, 8192, 256 << 10, 1 << 20, (4 << 20) - 4096] {
        let reader = Reader::new(cut(&sim, size_bytes, u64::MAX), "cut");
        let error = reader.get(&stored[0].locator.path).unwrap_err();
        let is_right = matches!(error, Error::NoStore { .. } | Error::BadGeometry(_) | Error::Device(_));
        assert!(is_right, "{size_bytes} bytes: {error}");
        let opened = Writer::open(cut(&sim, size_bytes, u64::MAX), &WriterOptions::default());
        assert!(opened.is_err(), "{size_bytes} bytes");
    }
}

#[test]
fn a_read_that_fails_is_an_error_and_the_next_one_works() {
    let (sim, stored) = store();
    for fail_at in 0..9 {
        let reader = Reader::new(cut(&sim, 4 << 20, fail_at), "cut");
        for (number, stored) in (0_u8..).zip(&stored[..4]) {
            match reader.get(&stored.locator.path) {
                Ok(receipt) => assert_eq!(receipt.data(), [number; 30_000]),
                Err(error) => assert!(matches!(error, Error::Device(_)), "{error}"),
            }
        }
        for stored in &stored[..4] {
            assert!(reader.get(&stored.locator.path).is_ok(), "read {fail_at} has failed, the others work");
        }
        assert!(matches!(reader.get(&path("none")), Err(Error::NotFound { .. })));
    }
}

#[test]
fn garbage_is_no_store() {
    let mut rng = Rng(3);
    for round in 0..200 {
        let (sim, stored) = if round % 2 == 0 { store() } else { (Sim::new(4 << 20), Vec::new()) };
        for page_no in [PAGE_SUPERBLOCK, 31, rng.below(32)] {
            let mut bytes: Vec<u8> = (0..1024).flat_map(|_| rng.number().to_le_bytes()).collect();
            if rng.chance(30) {
                let len = bytes.len();
                bytes[usize::try_from(rng.below(8192)).unwrap()..len].fill(0);
            }
            overwrite(&sim, page_offset(page_no), &bytes);
        }
        let error = Reader::new(sim.reader(), "sim").get(&path("r/0")).unwrap_err();
        assert!(matches!(error, Error::NoStore { .. } | Error::Corrupt(_)), "{error}");
        assert!(Writer::open(sim.writer(), &WriterOptions::default()).is_err());
        drop(stored);
    }
}

#[test]
fn a_replaced_writer_is_told_by_whom() {
    let (sim, _) = store();
    let mut old = Writer::open(sim.writer(), &WriterOptions::default()).unwrap();
    old.put(&Put::new(&path("before"), b"1")).unwrap();
    let mut new = Writer::open(sim.writer(), &WriterOptions::default()).unwrap();
    let error = old.put(&Put::new(&path("after"), b"2")).unwrap_err();
    assert_eq!(error.exit_code(), 7);
    assert!(error.to_string().contains(&format!("fenced by epoch {}", new.epoch())), "{error}");
    assert!(matches!(old.put(&Put::new(&path("after"), b"2")), Err(Error::WriterStopped)));
    new.put(&Put::new(&path("after"), b"3")).unwrap();
    assert_eq!(Reader::new(sim.reader(), "sim").get(&path("after")).unwrap().data(), b"3");
}
