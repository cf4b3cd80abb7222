//! Ways in which a store was once led to lose, or to show an older receipt.

use super::{Fate, Sim};
use crate::layout::{PAGE_LEASE, block_offset, page_offset};
use crate::page::{PageId, PageKind, read_page};
use crate::verify::verify;
use crate::{Error, FormatOptions, Put, Reader, ReceiptPath, Writer, WriterOptions, format};

fn path(text: &str) -> ReceiptPath {
    ReceiptPath::new(text).unwrap()
}

fn store() -> Sim {
    let sim = Sim::new(4 << 20);
    let options = FormatOptions { segment_bytes: Some(256 << 10), ..FormatOptions::default() };
    format(&sim.writer(), &options).unwrap();
    sim
}

fn reader_error(sim: &Sim, name: &str) -> Option<Error> {
    Reader::new(sim.reader(), "sim").get(&path(name)).err()
}

/// The host refused this writer's guest, let another write, and then admitted this one again: its process noticed nothing.
#[test]
pub(super) fn a_writer_that_was_away_does_not_write_over_the_other() {
    let sim = store();
    let device = sim.writer();
    let mut away = Writer::open(&device, &WriterOptions::default()).unwrap();
    away.put(&Put::new(&path("a"), b"one")).unwrap();
    let mut other = Writer::open(&device, &WriterOptions::default()).unwrap();
    other.put(&Put::new(&path("b"), b"two")).unwrap();
    other.close().unwrap();
    let error = away.put(&Put::new(&path("c"), b"three")).unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert!(reader_error(&sim, "b").is_none(), "acknowledged by the other writer");
}

#[test]
pub(super) fn a_replaced_version_does_not_come_back_with_a_crash() {
    let sim = store();
    let device = sim.writer();
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    writer.put(&Put::new(&path("a"), b"old")).unwrap();
    writer.put(&Put::new(&path("b"), b"other")).unwrap();
    writer.put(&Put { is_new_version: true, ..Put::new(&path("a"), b"new") }).unwrap();
    sim.crash_host(Fate::Lose);
    // Nobody has opened the store for writing since.
    assert_eq!(Reader::new(sim.reader(), "sim").get(&path("a")).unwrap().data(), b"new");
}

/// Closing says that nothing has to be replayed: everything must be durable before that can be.
#[test]
pub(super) fn a_crash_while_closing_loses_nothing() {
    for seed in 0..300 {
        let sim = store();
        let device = sim.writer();
        let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
        writer.put(&Put::new(&path("a"), b"one")).unwrap();
        sim.stop_at(sim.ops() + seed % 5, 0);
        let _ = writer.close(); // it may have been stopped
        sim.crash_host(Fate::Random(&mut super::Rng(seed)));
        Writer::open(&sim.writer(), &WriterOptions::default()).unwrap().close().unwrap();
        assert!(reader_error(&sim, "a").is_none(), "seed {seed}");
    }
}

#[test]
fn a_page_without_a_whole_slot_is_never_taken_for_an_empty_one() {
    let sim = store();
    let device = sim.writer();
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    for n in 0..4 {
        writer.put(&Put::new(&path(&format!("r/{n}")), &[n; 9000])).unwrap();
    }
    drop(writer);
    for slot in 0..2 {
        sim.rot(page_offset(crate::layout::PAGE_TABLE) + slot * 4096 + 700, 1);
    }
    let error = Writer::open(&sim.writer(), &WriterOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
}

#[test]
fn a_damaged_lease_does_not_say_closed() {
    let sim = store();
    let device = sim.writer();
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    writer.put(&Put::new(&path("a"), b"one")).unwrap();
    writer.close().unwrap();
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    writer.put(&Put::new(&path("b"), b"two")).unwrap();
    let superblock = Reader::new(sim.reader(), "sim").superblock().unwrap().clone();
    let id = PageId { store_id: Some(superblock.store_id()), page_no: PAGE_LEASE, kind: PageKind::Lease };
    let (page, _) = read_page(&sim.reader(), id).unwrap();
    sim.rot(page_offset(PAGE_LEASE) + u64::from(page.slot) * 4096 + 70, 1);
    sim.crash_host(Fate::Lose);
    let error = reader_error(&sim, "b").unwrap();
    assert!(matches!(error, Error::Pending { .. }), "acknowledged, so never missing: {error}");
}

#[test]
fn a_path_cannot_pass_for_the_locator_of_another() {
    assert!(ReceiptPath::new("alice@192.168.1.7").is_err());
    assert!(ReceiptPath::new("alice@bank.example").is_ok());
}

/// The last sector of a record was not written when the power failed; it holds nothing of the data, so the record is whole.
#[test]
pub(super) fn what_a_torn_write_leaves_behind_the_data_is_zeroed() {
    let sim = store();
    let mut writer = Writer::open(sim.writer(), &WriterOptions::default()).unwrap();
    let stored = writer.put(&Put::new(&path("torn"), &[7; 5000])).unwrap();
    drop(writer);
    sim.crash_host(Fate::Keep);
    let last_block = stored.locator.block + u64::from(stored.locator.blocks) - 1;
    sim.rot(block_offset(last_block) + 4000, 0xff);
    Writer::open(sim.writer(), &WriterOptions::default()).and_then(Writer::close).unwrap();
    let reader = Reader::new(sim.reader(), "sim");
    let mut findings = Vec::new();
    verify(&reader, |finding| {
        findings.push(format!("{finding:?}"));
        Ok(())
    })
    .unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(reader.get(&path("torn")).unwrap().data(), [7; 5000]);
}
