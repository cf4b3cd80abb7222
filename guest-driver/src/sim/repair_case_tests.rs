//! Repairs of damage that was thought of one by one: buckets that spill, lost records, a lost end, a replay window, a writer that was replaced.

use super::fault_tests::path;
use super::repair_tests::{
    Content, Harm, assert_content, assert_whole, changing_ops, harm, mend, small_store, stop_repair, store,
};
use super::world::options;
use super::{Fate, Rng, Sim};
use crate::layout::{PAGE_HEAD, PAGE_LEASE, PAGE_SUPERBLOCK, PAGE_TABLE, block_offset};
use crate::verify::{Step, verify};
use crate::{Device, Error, Put, Reader, Writer, repair};

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
                let mut checks = 0;
                let mut count = |step| checks += u32::from(matches!(step, Step::Index(1, _)));
                let totals = repair(sim.writer(), &options(), &mut count, &mut |_| Ok(()))
                    .unwrap_or_else(|error| panic!("{story}: {error}"));
                assert_eq!(totals.findings, 0, "{story}");
                assert!(checks <= 2, "{story}: one check before and one after, without going on");
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
