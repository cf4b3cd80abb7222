//! What happens beside expiry and after it: new versions while it copies, lists that go on over it, erasures of what it has copied.

use super::expiry::fill;
use super::{DAY, code, is_clean, listed, open, options, path, put, run_expire, set_term, store};
use crate::device::{Device, DeviceResult};
use crate::expire::{COMPACT_PERCENT, ExpireOptions, expire};
use crate::layout::{BLOCK_BYTES, block_offset};
use crate::policy::Term;
use crate::sim::{Sim, SimReader, SimWriter};
use crate::{Hold, Locator, Put, Reader, Writer};
use std::cell::{Cell, RefCell};

/// A disk whose discards change nothing.
struct NoDiscard(SimWriter);

impl Device for NoDiscard {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        self.0.read(offset_bytes, buf)
    }
    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        self.0.write(offset_bytes, buf)
    }
    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        self.0.write_zeroes(offset_bytes, len_bytes)
    }
    fn discard(&self, _: u64, _: u64) -> DeviceResult<()> {
        Ok(())
    }
    fn flush(&self) -> DeviceResult<()> {
        self.0.flush()
    }
}

/// Between looking at a segment and copying, and at every other step of expiry, a receipt gets a new version.
#[test]
pub(in crate::sim) fn a_version_that_is_replaced_while_expiry_runs_is_kept() {
    for is_held in [false, true] {
        for at_step in 1..8 {
            let sim = store(8 << 20);
            let mut writer = open(&sim, DAY);
            set_term(&mut writer, 1, Term::Years(1));
            set_term(&mut writer, 2, Term::Years(10));
            put(&mut writer, "p", 2, 5000);
            fill(&sim, &mut writer, "x", &[1], 60);
            if is_held {
                writer.hold(&Hold { prefix: b"p".to_vec(), until_day: None }).unwrap();
            }
            writer.close().unwrap();
            let mut writer = open(&sim, DAY + 400);
            let reader = Reader::new(sim.reader_of_now(), "sim");
            let mut steps = 0;
            let totals = expire(
                &reader,
                &mut |step| {
                    steps += 1;
                    if steps == at_step {
                        put(&mut writer, "p", 2, 100);
                    }
                    step(&mut writer)
                },
                ExpireOptions::of_day(DAY + 400),
                |_| Ok(()),
            )
            .unwrap();
            assert!(totals.segments > 0 && steps > at_step, "{totals:?}, {steps} steps");
            let len = |version| reader.get_version(&path("p"), version).unwrap().data().len();
            assert_eq!((len(1), len(2)), (5000, 100), "replaced at step {at_step}, held: {is_held}");
            writer.close().unwrap();
            is_clean(&sim, &format!("replaced at step {at_step}"));
        }
    }
}

/// Expiry runs when a list has shown so many receipts; whatever is kept is in the list, once.
#[test]
pub(in crate::sim) fn a_list_over_expiry_leaves_nothing_out() {
    for after in [1, 5, 20, 60, 85] {
        for has_more in [false, true] {
            let sim = store(8 << 20);
            let mut writer = open(&sim, DAY);
            set_term(&mut writer, 1, Term::Years(1));
            set_term(&mut writer, 2, Term::Years(10));
            fill(&sim, &mut writer, "m", &[1, 1, 2], 90);
            writer.close().unwrap();
            let mut writer = Some(open(&sim, DAY + 400));
            let reader = Reader::new(sim.reader_of_now(), "sim");
            let mut names = Vec::new();
            reader
                .list("", |locator| {
                    names.push(locator.path.to_string());
                    if names.len() == after
                        && let Some(mut writer) = writer.take()
                    {
                        run_expire(&sim, &mut writer, Some(DAY + 400), COMPACT_PERCENT, false).unwrap();
                        if has_more {
                            // What was freed is opened again, and a copy is replaced.
                            put(&mut writer, "m/2/2", 2, 30);
                            fill(&sim, &mut writer, "m", &[2], 90);
                        }
                        writer.close().unwrap();
                    }
                    Ok(())
                })
                .unwrap();
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count, "after {after}: a path twice");
            let kept = listed(&sim).into_iter().filter(|name| {
                let number: usize = name.rsplit('/').next().unwrap().parse().unwrap();
                name.starts_with("m/2/") && number % 3 == 2
            });
            let missing: Vec<String> = kept.filter(|name| !names.contains(name)).collect();
            assert!(missing.is_empty(), "after {after}, {has_more}: {missing:?} are missing");
        }
    }
}

/// A store in which expiry has copied the receipt `p`, and the disk kept the bytes where they were: in free room, or in a segment that was opened again. With its
/// old locator and its data.
pub(super) fn store_with_copy_left(is_reopened: bool) -> (Sim, Locator, Vec<u8>) {
    let sim = store(8 << 20);
    let start = |day| Writer::open(NoDiscard(sim.writer()), &options(day)).unwrap();
    let mut writer = start(DAY);
    writer
        .change_policy(|policy| {
            (policy.terms[1], policy.terms[2]) = (Term::Years(1), Term::Years(10));
            Ok(())
        })
        .unwrap();
    let secret = b"SECRETSECRETSECRETS!".repeat(500);
    let put_many = |writer: &mut Writer<NoDiscard>, tag: &str, count: usize| {
        for n in 0..count {
            let name = path(&format!("{tag}/{n}"));
            writer.put(&Put { class: Some(1), ..Put::new(&name, &[1; 20_000]) }).unwrap();
        }
    };
    put_many(&mut writer, "before", 7);
    let first = writer.put(&Put { class: Some(2), ..Put::new(&path("p"), &secret) }).unwrap();
    put_many(&mut writer, "x", 30);
    writer.close().unwrap();
    let mut writer = start(DAY + 400);
    let reader = Reader::new(sim.reader_of_now(), "sim");
    let options = ExpireOptions::of_day(DAY + 400);
    expire(&reader, &mut |step| step(&mut writer), options, |_| Ok(())).unwrap();
    if is_reopened {
        // Round the disk, until the first segment is open again and its beginning written over.
        let first_segment = reader.superblock().unwrap().geometry.segment_of(first.locator.block);
        let mut n = 0;
        while reader.superblock().unwrap().geometry.segment_of(writer.tail.cursor.block) != first_segment {
            writer.put(&Put::new(&path(&format!("round/{n}")), &[2; 40_000])).unwrap();
            n += 1;
        }
    }
    writer.close().unwrap();
    (sim, first.locator, secret)
}

#[test]
pub(in crate::sim) fn an_erasure_reaches_what_copies_have_left() {
    for is_reopened in [false, true] {
        let (sim, locator, secret) = store_with_copy_left(is_reopened);
        let mut writer = Writer::open(NoDiscard(sim.writer()), &options(DAY + 400)).unwrap();
        let reader = Reader::new(sim.reader_of_now(), "sim");
        assert_eq!(reader.get_locator(&locator).unwrap().data(), secret, "the disk has kept it");
        assert!(sim.holds_bytes(&secret[..20]));
        assert_eq!(writer.erase(&path("p"), "court order").unwrap().len(), 1);
        assert_eq!(code(reader.get_locator(&locator)), 3, "by the old locator");
        let crashed = sim.fork();
        crashed.crash_host(crate::sim::Fate::Lose);
        assert!(!crashed.holds_bytes(&secret[..20]), "still on the disk, reopened: {is_reopened}");
        assert_eq!(code(writer.erase(&path("p"), "again")), 3);
        writer.close().unwrap();
        is_clean(&sim, "erased");
    }
}

/// A retired segment whose room is given back in pieces, the one with the header last: what a reader with an old locator meets is no damage.
#[test]
pub(in crate::sim) fn a_locator_of_a_receipt_that_is_half_given_back_is_over() {
    let sim = store(8 << 20);
    let mut writer = Writer::open(NoDiscard(sim.writer()), &options(DAY)).unwrap();
    writer
        .change_policy(|policy| {
            policy.terms[1] = Term::Years(1);
            Ok(())
        })
        .unwrap();
    let data = [7; 20_000];
    let located: Vec<_> = (0..60)
        .map(|n| {
            let name = path(&n.to_string());
            writer.put(&Put { class: Some(1), ..Put::new(&name, &data) }).unwrap().locator
        })
        .collect();
    writer.close().unwrap();
    let first = &located[0];
    let reader = Reader::new(sim.reader_of_now(), "sim");
    let half_gone = |sim: &crate::sim::Sim| {
        let from = block_offset(first.block + 1);
        sim.writer().write_zeroes(from, (u64::from(first.blocks) - 1) * BLOCK_BYTES).unwrap();
    };
    let rotten = sim.fork();
    half_gone(&rotten);
    assert_eq!(code(Reader::new(rotten.reader(), "sim").get_locator(first)), 5, "in use, and damaged");
    let mut writer = Writer::open(NoDiscard(sim.writer()), &options(DAY + 400)).unwrap();
    let options = ExpireOptions::of_day(DAY + 400);
    expire(&reader, &mut |step| step(&mut writer), options, |_| Ok(())).unwrap();
    assert_eq!(reader.get_locator(first).unwrap().data(), data, "the disk has kept it");
    half_gone(&sim);
    assert_eq!(code(reader.get_locator(first)), 3);
}

/// A disk on which something happens before a read.
struct Before<F> {
    inner: SimReader,
    read: Cell<u32>,
    at_read: u32,
    what: F,
}

impl<F: Fn()> Device for Before<F> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        self.read.set(self.read.get() + 1);
        if self.read.get() == self.at_read {
            (self.what)();
        }
        self.inner.read(offset_bytes, buf)
    }
    fn write(&self, _: u64, _: &[u8]) -> DeviceResult<()> {
        unreachable!()
    }
    fn flush(&self) -> DeviceResult<()> {
        unreachable!()
    }
}

/// Whatever is erased or replaced between two reads of a get, the answer is right for some moment of it, and never "corrupt".
#[test]
pub(in crate::sim) fn a_version_that_is_erased_while_it_is_read_is_not_found() {
    let mut not_found = 0;
    for at_read in 1..12 {
        let sim = store(8 << 20);
        let writer = RefCell::new(open(&sim, DAY));
        put(&mut writer.borrow_mut(), "p", 0, 5000);
        put(&mut writer.borrow_mut(), "p", 0, 6000);
        let what = || {
            writer.borrow_mut().erase(&path("p"), "order").unwrap();
        };
        let device = Before { inner: sim.reader_of_now(), read: Cell::default(), at_read, what };
        let reader = Reader::new(device, "sim");
        match reader.get_version(&path("p"), 1) {
            Ok(receipt) => assert_eq!(receipt.data().len(), 5000, "erased before read {at_read}"),
            Err(error) => {
                assert_eq!(error.exit_code(), 3, "erased before read {at_read}: {error}");
                not_found += 1;
            }
        }
    }
    assert!(not_found > 3, "{not_found}");
}
