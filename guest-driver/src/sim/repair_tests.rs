//! Scrub and repair: each structure is damaged in every way, alone and under seeded schedules; a crash at every operation of a repair.

use super::fault_tests::path;
use super::schedule_tests::assert_good;
use super::world::{PATHS, World, options};
use super::{Fate, Lie, Rng, SECTOR_BYTES, Sim};
use crate::layout::{
    PAGE_BYTES, PAGE_HEAD, PAGE_LEASE, PAGE_SUPERBLOCK, PAGE_TABLE, block_offset, page_offset,
};
use crate::repair::Outcome;
use crate::verify::{Totals, verify};
use crate::{Device, Error, FormatOptions, Put, Reader, Result, Writer, format, repair};

/// What is done to a page.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// One slot does not verify.
    Slot(u64),
    /// Neither does.
    Both,
    /// It was never written, says the disk.
    Zeroes,
}

const HARMS: [Harm; 4] = [Harm::Slot(0), Harm::Slot(1), Harm::Both, Harm::Zeroes];

fn harm(sim: &Sim, page_no: u64, harm: Harm) {
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
type Content = Vec<(crate::ReceiptPath, Option<Vec<u8>>)>;

/// Several segments; some paths have two versions, some were removed, some put again.
fn store() -> (Sim, Content) {
    let sim = Sim::new(4 << 20);
    let format_options = FormatOptions {
        segment_bytes: Some(256 << 10),
        fixed_identity: Some(([7; 16], [9; 32])),
        fixed_clock_ms: Some(1),
        ..FormatOptions::default()
    };
    format(&sim.writer(), &format_options).unwrap();
    let mut writer = Writer::open(sim.writer(), &options()).unwrap();
    let mut content = Content::new();
    for number in 0..24_u8 {
        let name = path(&format!("r/{number}"));
        let mut data = vec![number; 20_000];
        writer.put(&Put { issued_day: Some(u32::from(number)), ..Put::new(&name, &data) }).unwrap();
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

fn mend(sim: &Sim) -> Result<(Totals, Vec<Outcome>)> {
    let mut outcomes = Vec::new();
    let totals = repair(sim.writer(), &options(), &mut |_| {}, &mut |outcome| {
        outcomes.push(outcome);
        Ok(())
    })?;
    Ok((totals, outcomes))
}

/// Every path has its content, or one of these exit codes.
fn assert_content(sim: &Sim, content: &Content, codes: &[u8], story: &str) {
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
fn assert_whole(sim: &Sim, content: &Content, story: &str) {
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
fn is_beyond_repair(page_no: u64, harm: Harm) -> bool {
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
fn changing_ops(sim: &Sim) -> Vec<u64> {
    let device = Noted { inner: sim.writer(), changes: std::cell::RefCell::default() };
    repair(&device, &options(), &mut |_| {}, &mut |_| Ok(())).unwrap();
    let changes = device.changes.into_inner();
    (0..).zip(changes).filter(|(_, is_change)| *is_change).map(|(op, _)| op).collect()
}

/// A repair that stops at an operation, and a power failure.
fn stop_repair(sim: &Sim, op: u64, rng: &mut Rng) {
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

/// Whether the newest acknowledged value of a path can still be read where it was put.
fn is_intact(world: &World, number: usize) -> bool {
    let reader = Reader::new(world.sim.reader(), "sim");
    let superblock = reader.superblock().unwrap();
    world
        .locator_of(number)
        .is_some_and(|locator| matches!(locator.read(reader.device(), &superblock), Ok(Some(_))))
}

/// Damage of all kinds, then a repair: what is intact reads back, nothing else appears, and a second repair has nothing to do.
pub(super) fn run_repair(seed: u64) -> Vec<String> {
    let mut world = World::new(seed);
    let liar = world.rng.below(4);
    for session in 0..3 {
        let sectors = world.sim.sectors();
        let elsewhere = sectors[usize::try_from(world.rng.below(sectors.len() as u64)).unwrap()];
        let lie = [Lie::Lose, Lie::Misdirect(elsewhere / 8 * block_offset(1))];
        let lie = lie[usize::try_from(world.rng.below(2)).unwrap()];
        let at = world.rng.below(40);
        if !world.quiet_session((session == liar).then_some((at, lie))) {
            break;
        }
    }
    world.bad.clear(); // a refusal is an honest answer
    let Ok(superblock) = Reader::new(world.sim.reader(), "sim").superblock() else {
        return world.bad;
    };
    let superblock_pages = [PAGE_SUPERBLOCK, superblock.geometry.superblock_copy_page()];
    let superblock_page = superblock_pages[usize::try_from(world.rng.below(2)).unwrap()]; // not both
    let meta_pages = [superblock_page, PAGE_LEASE, PAGE_HEAD, PAGE_TABLE];
    let home = |number| {
        let hash = superblock.path_hash(world.path(number).as_str().as_bytes());
        superblock.geometry.home_page(&superblock.geometry.regions[0], hash.bucket)
    };
    let pages: Vec<u64> = meta_pages.into_iter().chain((0..PATHS).map(home)).collect();
    for _ in 0..world.rng.below(3) {
        let page_no = pages[usize::try_from(world.rng.below(pages.len() as u64)).unwrap()];
        let kind = HARMS[usize::try_from(world.rng.below(4)).unwrap()];
        if !is_beyond_repair(page_no, kind) {
            harm(&world.sim, page_no, kind);
        }
    }
    if world.rng.chance(30) {
        let sectors = world.sim.sectors();
        let sector = sectors[usize::try_from(world.rng.below(sectors.len() as u64)).unwrap()];
        world.sim.rot(sector * SECTOR_BYTES as u64 + world.rng.below(512), 0x40);
    }
    if world.rng.chance(50) {
        // A repair that is stopped somewhere, first.
        let device = world.sim.writer();
        world.sim.stop_at(200 + world.rng.below(400), world.rng.below(8));
        drop(repair(&device, &options(), &mut |_| {}, &mut |_| Ok(())));
        world.sim.crash_host(Fate::Random(&mut world.rng));
    }
    if Reader::new(world.sim.reader(), "sim").superblock().is_ok() {
        judge_repair(&mut world);
    }
    world.bad
}

fn judge_repair(world: &mut World) {
    let repaired = match mend(&world.sim) {
        Ok(done) => Some(done),
        Err(error) if error.exit_code() == 5 => None,
        Err(error) => {
            world.bad.push(format!("repair: {error}"));
            None
        }
    };
    let is_clean = repaired.as_ref().is_some_and(|(totals, _)| totals.findings == 0);
    let left = repaired.iter().flat_map(|(_, outcomes)| outcomes).filter(|outcome| !outcome.is_mended);
    let named: Vec<&str> = left.filter_map(|outcome| outcome.finding.path.as_deref()).collect();
    let reader = Reader::new(world.sim.reader(), "sim");
    for number in 0..PATHS {
        let (name, acked) = (world.path(number), world.acked[number]);
        // What is there and still not right is named, or the repair has refused.
        let is_owed = repaired.is_some() && !named.contains(&name.as_str());
        let is_owed = is_clean || is_owed && is_intact(world, number);
        let fault = match reader.get(&name) {
            Ok(receipt) => match world.value_of(number, receipt.data()) {
                None => Some("foreign bytes".to_owned()),
                Some(value) => (value != acked && is_owed).then(|| format!("has {value}")),
            },
            Err(Error::NotFound { .. }) => (acked != 0 && is_owed).then(|| "not found".to_owned()),
            Err(error) if matches!(error.exit_code(), 4 | 5) => is_clean.then(|| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        let totals = repaired.as_ref().map(|(totals, _)| totals);
        world
            .bad
            .extend(fault.map(|fault| format!("path {number}, acknowledged {acked}: {fault}; {totals:?}")));
    }
    let again = mend(&world.sim);
    if let (Some((totals, _)), Ok((totals_again, outcomes))) = (&repaired, &again)
        && (totals.findings != totals_again.findings || outcomes.iter().any(|outcome| outcome.is_mended))
    {
        world.bad.push(format!("repaired again: {totals:?}, then {totals_again:?} {outcomes:?}"));
    }
}

#[test]
fn whatever_is_damaged_a_repair_mends_what_is_intact_and_invents_nothing() {
    assert_good(run_repair, "whatever_is_damaged", 500);
}

fn small_store() -> Sim {
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

fn home_of(sim: &Sim, name: &crate::ReceiptPath) -> u64 {
    let superblock = Reader::new(sim.reader(), "sim").superblock().unwrap();
    let hash = superblock.path_hash(name.as_str().as_bytes());
    superblock.geometry.home_page(&superblock.geometry.regions[0], hash.bucket)
}

/// A page that is full and the one behind it are both gone: on the way to their mending nobody is told "not found".
#[test]
pub(super) fn a_bucket_that_spills_is_mended_from_behind() {
    let base = small_store();
    let first = path("s/0");
    let page_no = home_of(&base, &first);
    let names = (0..).map(|n: u32| path(&format!("s/{n}"))).filter(|name| home_of(&base, name) == page_no);
    let mut writer = Writer::open(base.writer(), &options()).unwrap();
    let mut content = Content::new();
    for name in names.take(130) {
        writer.put(&Put::new(&name, b"spilled")).unwrap();
        content.push((name, Some(b"spilled".to_vec())));
    }
    writer.close().unwrap();
    let geometry = Reader::new(base.reader(), "sim").superblock().unwrap().geometry.clone();
    let harms =
        [Harm::Slot(0), Harm::Slot(1), Harm::Both].map(|front| [(front, Harm::Zeroes), (front, Harm::Both)]);
    for (front, behind) in harms.into_iter().flatten() {
        let sim = base.fork();
        harm(&sim, page_no, front);
        harm(&sim, geometry.spill_page(page_no), behind);
        sim.freeze();
        for op in changing_ops(&sim.fork()) {
            for seed in 0..3 {
                let sim = sim.fork();
                let story = format!("{front:?}, {behind:?}, operation {op}, seed {seed}");
                stop_repair(&sim, op, &mut Rng(seed));
                assert_content(&sim, &content, &[4, 5], &story);
                let (totals, outcomes) = mend(&sim).unwrap_or_else(|error| panic!("{story}: {error}"));
                assert_eq!(totals.findings, 0, "{story}: {outcomes:?}");
                assert_content(&sim, &content, &[], &story);
            }
        }
    }
}

/// The record of a removal is gone, and so is the index page: who would put the receipt back would resurrect it.
#[test]
pub(super) fn what_a_lost_record_may_have_removed_is_not_brought_back() {
    let sim = small_store();
    let name = path("a");
    let mut writer = Writer::open(sim.writer(), &options()).unwrap();
    writer.put(&Put::new(&name, b"removed")).unwrap();
    let removed = writer.remove(&name).unwrap();
    writer.put(&Put::new(&path("b"), b"there")).unwrap();
    writer.close().unwrap();
    sim.rot(block_offset(removed.locator.block) + 146, 0x7f); // its path
    for kind in [Harm::Zeroes, Harm::Both] {
        let sim = sim.fork();
        harm(&sim, home_of(&sim, &name), kind);
        let (totals, _) = mend(&sim).unwrap();
        assert!(totals.findings > 0, "{kind:?}");
        let answer = Reader::new(sim.reader(), "sim").get(&name);
        assert!(answer.is_err(), "{kind:?}: {:?}", answer.unwrap().data());
    }
}

/// The end of the log was lost, the index still knows it: nothing may be changed.
#[test]
pub(super) fn an_index_that_knows_more_than_the_log_stops_a_repair() {
    let sim = small_store();
    let mut writer = Writer::open(sim.writer(), &options()).unwrap();
    writer.put(&Put::new(&path("a"), b"first")).unwrap();
    writer.close().unwrap();
    let older = sim.fork();
    let mut writer = Writer::open(sim.writer(), &options()).unwrap();
    let last = writer.put(&Put::new(&path("b"), b"last")).unwrap();
    writer.close().unwrap();
    let mut block = vec![0; 4096];
    let end = last.locator.block + u64::from(last.locator.blocks);
    let pages =
        [PAGE_LEASE, PAGE_HEAD, PAGE_TABLE].into_iter().flat_map(|page_no| 2 * page_no..2 * page_no + 2);
    for number in pages.chain(last.locator.block..end) {
        older.reader().read(block_offset(number), &mut block).unwrap();
        sim.writer().write(block_offset(number), &block).unwrap();
    }
    let mut findings = 0;
    verify(&Reader::new(sim.reader(), "sim"), |_| {
        findings += 1;
        Ok(())
    })
    .unwrap();
    assert!(findings > 0);
    let error = mend(&sim).unwrap_err();
    assert!(matches!(error, Error::CorruptLog { .. }), "{error}");
    assert_eq!(Reader::new(sim.reader(), "sim").get(&path("b")).unwrap_err().exit_code(), 5);
}

/// Damage in the replay window of a writer that died: opening fails, a repair applies the window from the log.
#[test]
pub(super) fn a_window_that_cannot_be_applied_is_mended() {
    let (sim, mut content) = store();
    let mut writer = Writer::open(sim.writer(), &options()).unwrap();
    for (name, data) in content.iter_mut().step_by(3) {
        let bytes = vec![0xee; 9000];
        writer.put(&Put { is_new_version: true, ..Put::new(name, &bytes) }).unwrap();
        *data = Some(bytes);
    }
    drop(writer);
    sim.crash_host(Fate::Keep);
    let last = content.iter().step_by(3).next_back().unwrap().0.clone();
    harm(&sim, home_of(&sim, &last), Harm::Both);
    sim.freeze();
    Writer::open(sim.fork().writer(), &options()).unwrap_err();
    let mut rng = Rng(5);
    for op in changing_ops(&sim.fork()) {
        let sim = sim.fork();
        let story = format!("stopped at operation {op}");
        stop_repair(&sim, op, &mut rng);
        assert_content(&sim, &content, &[4, 5], &story);
        let (totals, outcomes) = mend(&sim).unwrap_or_else(|error| panic!("{story}: {error}"));
        assert_eq!(totals.findings, 0, "{story}: {outcomes:?}");
        assert_whole(&sim, &content, &story);
    }
}

/// A writer that was replaced repairs nothing.
#[test]
pub(super) fn a_fenced_writer_repairs_nothing() {
    let (sim, _) = store();
    let mut fenced = Writer::open(sim.writer(), &options()).unwrap();
    Writer::open(sim.writer(), &options()).unwrap().close().unwrap();
    harm(&sim, PAGE_SUPERBLOCK, Harm::Both);
    let writes = sim.counts().writes;
    let error = fenced.repair(&mut |_| {}, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert_eq!(sim.counts().writes, writes);
    assert!(matches!(fenced.close(), Err(Error::WriterStopped)));
}
