//! Scrub and repair: each structure is damaged in every way; a crash and a failing device at every operation of a repair.

use super::fault_tests::path;
use super::world::options;
use super::{Fate, Rng, SECTOR_BYTES, Sim};
use crate::layout::{PAGE_BYTES, PAGE_HEAD, PAGE_LEASE, PAGE_SUPERBLOCK, PAGE_TABLE, page_offset};
use crate::repair::Outcome;
use crate::verify::{Totals, verify};
use crate::{Device, Error, FormatOptions, Put, Reader, Result, Writer, format, repair};

/// What is done to a page.
#[derive(Clone, Copy, Debug)]
pub(super) enum Harm {
    /// One slot does not verify.
    Slot(u64),
    /// Neither does.
    Both,
    /// It was never written, says the disk.
    Zeroes,
}

pub(super) const HARMS: [Harm; 4] = [Harm::Slot(0), Harm::Slot(1), Harm::Both, Harm::Zeroes];

pub(super) fn harm(sim: &Sim, page_no: u64, harm: Harm) {
    let rot = |slot: u64| sim.rot(page_offset(page_no) + slot * 4096 + 77, 0x18);
    match harm {
        Harm::Slot(slot) => rot(slot),
        Harm::Both => [0, 1].into_iter().for_each(rot),
        Harm::Zeroes => {
            let device = sim.writer();
            device.write_zeroes(page_offset(page_no), PAGE_BYTES).unwrap();
            device.flush().unwrap();
        }
    }
}

/// What the store of these tests holds: paths and their bytes, `None` = removed.
pub(super) type Content = Vec<(crate::ReceiptPath, Option<Vec<u8>>)>;

pub(super) fn small_store() -> Sim {
    let sim = Sim::new(4 << 20);
    let format_options = FormatOptions {
        segment_bytes: Some(256 << 10),
        fixed_identity: Some(([7; 16], [9; 32])),
        fixed_clock_ms: Some(1),
        ..FormatOptions::default()
    };
    format(&sim.writer(), &format_options).unwrap();
    sim
}

/// Several segments; some paths have two versions, some were removed, some put again.
pub(super) fn store() -> (Sim, Content) {
    let sim = small_store();
    let mut writer = Writer::open(sim.writer(), &options()).unwrap();
    let mut content = Content::new();
    for number in 0..24_u8 {
        let name = path(&format!("r/{number}"));
        let mut data = vec![number; 20_000];
        writer.put(&Put { issued_day: Some(u32::from(number % 2)), ..Put::new(&name, &data) }).unwrap();
        if number % 3 == 0 {
            data.fill(100 + number);
            writer.put(&Put { is_new_version: true, ..Put::new(&name, &data) }).unwrap();
        }
        if number % 4 == 1 {
            writer.remove(&name).unwrap();
        }
        if number % 8 == 5 {
            data.fill(200 + number);
            writer.put(&Put::new(&name, &data)).unwrap();
        }
        content.push((name, (number % 8 != 1).then_some(data)));
    }
    writer.close().unwrap();
    sim.freeze();
    (sim, content)
}

pub(super) fn mend(sim: &Sim) -> Result<(Totals, Vec<Outcome>)> {
    let mut outcomes = Vec::new();
    let totals = repair(sim.writer(), &options(), &mut |_| {}, &mut |outcome| {
        outcomes.push(outcome);
        Ok(())
    })?;
    Ok((totals, outcomes))
}

/// Every path has its content, or one of these exit codes.
pub(super) fn assert_content(sim: &Sim, content: &Content, codes: &[u8], story: &str) {
    let reader = Reader::new(sim.reader(), "sim");
    for (name, data) in content {
        match (reader.get(name), data) {
            (Ok(receipt), Some(data)) if receipt.data() == data => {}
            (Err(Error::NotFound { .. }), None) => {}
            (Err(error), _) if codes.contains(&error.exit_code()) => {}
            (answer, _) => panic!("{story}: {name}: {:?}", answer.map(|receipt| receipt.data()[0])),
        }
    }
}

/// The store is as good as new: it verifies, lists and takes more.
pub(super) fn assert_whole(sim: &Sim, content: &Content, story: &str) {
    assert_content(sim, content, &[], story);
    let reader = Reader::new(sim.reader(), "sim");
    let totals = verify(&reader, |finding| panic!("{story}: {finding:?}")).unwrap();
    assert_eq!(totals.wrong_hints, 0, "{story}");
    let mut listed = 0;
    reader
        .list("", |_| {
            listed += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(listed, content.iter().filter(|(_, data)| data.is_some()).count(), "{story}");
    let mut writer = Writer::open(sim.writer(), &options()).unwrap();
    for (name, _) in content.iter().step_by(5) {
        writer.put(&Put { is_new_version: true, ..Put::new(name, &[1; 70_000]) }).unwrap();
    }
    writer.close().unwrap();
    verify(&Reader::new(sim.reader(), "sim"), |finding| panic!("{story}, written to: {finding:?}")).unwrap();
}

/// The pages of the store that were ever written, meta pages first.
fn pages(sim: &Sim) -> Vec<u64> {
    let superblock = Reader::new(sim.reader(), "sim").superblock().unwrap();
    let sectors = sim.sectors();
    let is_written = |page_no: &u64| {
        let first = page_offset(*page_no) / SECTOR_BYTES as u64;
        let mut block = vec![0; 8192];
        sim.reader().read(page_offset(*page_no), &mut block).unwrap();
        sectors.binary_search(&first).is_ok() && block.iter().any(|byte| *byte != 0)
    };
    let meta =
        [PAGE_SUPERBLOCK, PAGE_LEASE, PAGE_HEAD, PAGE_TABLE, superblock.geometry.superblock_copy_page()];
    meta.into_iter().chain(superblock.geometry.index_pages().filter(is_written)).collect()
}

fn is_empty_slot(sim: &Sim, page_no: u64, slot: u64) -> bool {
    let mut block = vec![0; 4096];
    sim.reader().read(page_offset(page_no) + slot * 4096, &mut block).unwrap();
    block.iter().all(|byte| *byte == 0)
}

fn is_without_entries(sim: &Sim, page_no: u64) -> bool {
    let reader = Reader::new(sim.reader(), "sim");
    let superblock = reader.superblock().unwrap();
    let is_index = superblock.geometry.index_pages().any(|index_page| index_page == page_no);
    is_index && reader.read_index_page(&superblock, page_no).unwrap().0.entries.is_empty()
}

/// What no repair can know: lease and head without a whole slot.
pub(super) fn is_beyond_repair(page_no: u64, harm: Harm) -> bool {
    matches!(harm, Harm::Both | Harm::Zeroes) && matches!(page_no, PAGE_HEAD | PAGE_LEASE)
}

#[test]
pub(super) fn every_damaged_page_is_named_and_mended() {
    let (base, content) = store();
    assert_whole(&base.fork(), &content, "undamaged");
    for page_no in pages(&base) {
        for kind in HARMS {
            let story = format!("page {page_no}, {kind:?}");
            let sim = base.fork();
            let is_empty = match kind {
                Harm::Slot(slot) => is_empty_slot(&sim, page_no, slot),
                Harm::Both => false,
                Harm::Zeroes => is_without_entries(&sim, page_no),
            };
            harm(&sim, page_no, kind);
            let mut findings = 0;
            let found = verify(&Reader::new(sim.reader(), "sim"), |_| {
                findings += 1;
                Ok(())
            });
            if is_beyond_repair(page_no, kind) {
                continue;
            }
            found.unwrap();
            // Foreign bytes in a slot that this store never wrote are no damage, nor is an empty index page that is gone.
            assert!(findings > 0 || is_empty, "{story}: not noticed");
            let (totals, outcomes) = mend(&sim).unwrap_or_else(|error| panic!("{story}: {error}"));
            assert_eq!(totals.findings, 0, "{story}: {outcomes:?}");
            assert!(page_no == PAGE_LEASE || outcomes.iter().all(|outcome| outcome.is_mended), "{story}");
            assert_whole(&sim, &content, &story);
        }
    }
}

/// Notes which operations change something.
struct Noted {
    inner: super::SimWriter,
    changes: std::cell::RefCell<Vec<bool>>,
}

impl Device for Noted {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> crate::device::DeviceResult<()> {
        self.changes.borrow_mut().push(false);
        self.inner.read(offset_bytes, buf)
    }
    fn write(&self, offset_bytes: u64, buf: &[u8]) -> crate::device::DeviceResult<()> {
        self.changes.borrow_mut().push(true);
        self.inner.write(offset_bytes, buf)
    }
    fn flush(&self) -> crate::device::DeviceResult<()> {
        self.changes.borrow_mut().push(true);
        self.inner.flush()
    }
}

/// The operations of a repair at which a crash makes a difference.
pub(super) fn changing_ops(sim: &Sim) -> Vec<u64> {
    let device = Noted { inner: sim.writer(), changes: std::cell::RefCell::default() };
    repair(&device, &options(), &mut |_| {}, &mut |_| Ok(())).unwrap();
    let changes = device.changes.into_inner();
    (0..).zip(changes).filter(|(_, is_change)| *is_change).map(|(op, _)| op).collect()
}

/// A repair that stops at an operation, and a power failure.
pub(super) fn stop_repair(sim: &Sim, op: u64, rng: &mut Rng) {
    let device = sim.writer();
    sim.stop_at(op, rng.below(8));
    repair(&device, &options(), &mut |_| {}, &mut |_| Ok(())).unwrap_err();
    sim.crash_host(Fate::Random(rng));
}

#[test]
pub(super) fn a_crash_at_every_operation_of_a_repair_loses_nothing() {
    let (base, content) = store();
    let mut rng = Rng(3);
    let pages = pages(&base);
    for (at, page_no) in pages.iter().copied().enumerate() {
        let sim = base.fork();
        let kind = HARMS[at % HARMS.len()];
        if is_beyond_repair(page_no, kind) {
            continue;
        }
        harm(&sim, page_no, kind);
        if at % 2 == 0 {
            harm(&sim, pages[(at + 1) % pages.len()], Harm::Slot(1)); // another one, too
        }
        sim.freeze();
        for op in changing_ops(&sim.fork()) {
            let sim = sim.fork();
            let story = format!("page {page_no}, {kind:?}, stopped at operation {op}");
            stop_repair(&sim, op, &mut rng);
            // What reads as zeroes was never written, for all that a reader can tell.
            let codes: &[u8] = if matches!(kind, Harm::Zeroes) { &[3, 4, 5] } else { &[4, 5] };
            assert_content(&sim, &content, codes, &story);
            let (totals, outcomes) = mend(&sim).unwrap_or_else(|error| panic!("{story}: {error}"));
            assert_eq!(totals.findings, 0, "{story}: {outcomes:?}");
            assert_whole(&sim, &content, &story);
        }
    }
}
