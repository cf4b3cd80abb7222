//! Many threads share one writer: its commits, its limits, its errors.

use super::*;
use crate::device::DeviceResult;
use crate::path::ReceiptPath;
use crate::sim::Sim;
use crate::{FormatOptions, Reader, WriterOptions, format};
use std::sync::Barrier;

/// A disk whose flushes take a while and are counted.
struct Slow {
    inner: crate::sim::SimWriter,
    flushes: AtomicU64,
}

impl Device for Slow {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        self.inner.read(offset_bytes, buf)
    }
    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        self.inner.write(offset_bytes, buf)
    }
    fn flush(&self) -> DeviceResult<()> {
        std::thread::sleep(Duration::from_millis(5));
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.inner.flush()
    }
}

fn store(sim: &Sim) -> Slow {
    format(&sim.writer(), &FormatOptions { segment_bytes: Some(1 << 20), ..FormatOptions::default() })
        .unwrap();
    Slow { inner: sim.writer(), flushes: AtomicU64::new(0) }
}

fn path(text: &str) -> ReceiptPath {
    ReceiptPath::new(text).unwrap()
}

#[test]
fn changes_whose_data_was_hashed_before_are_stored_with_that_hash() {
    let sim = Sim::new(16 << 20);
    let shared = SharedWriter::new(
        Writer::open(store(&sim), &WriterOptions::default()).unwrap(),
        CommitLimits::default(),
    );
    let hash = *blake3::hash(b"one").as_bytes();
    let group = HashedGroup::hashed(OwnedChange::put(path("one"), b"one".to_vec()), hash);
    let group = group.and(HashedGroup::hash(vec![OwnedChange::put(path("two"), b"two".to_vec())]));
    assert_eq!(group.data_len(), 6);
    let answers = shared.change_hashed_groups(vec![group]);
    assert!(answers.iter().flatten().all(Result::is_ok) && answers[0].len() == 2, "{answers:?}");
    let reader = Reader::new(sim.reader(), "disk");
    for text in ["one", "two"] {
        let receipt = reader.get(&path(text)).unwrap();
        assert_eq!(
            (receipt.data(), receipt.stat().header.data_hash),
            (text.as_bytes(), *blake3::hash(text.as_bytes()).as_bytes())
        );
    }
}

#[test]
fn puts_of_many_threads_share_flushes_and_one_error_hides_no_other_answer() {
    let sim = Sim::new(16 << 20);
    let device = store(&sim);
    let writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    let shared = SharedWriter::new(writer, CommitLimits::default());
    let start = Barrier::new(16);
    std::thread::scope(|scope| {
        for thread in 0..16_u8 {
            let (shared, start) = (&shared, &start);
            scope.spawn(move || {
                start.wait();
                for number in 0..10 {
                    let name = path(&format!("{thread}/{number}"));
                    shared.change(OwnedChange::put(name.clone(), vec![thread; 3000])).unwrap();
                    let again = shared.change(OwnedChange::put(name, b"other".to_vec()));
                    assert!(matches!(again, Err(Error::Exists { .. })), "{again:?}");
                    let missing = shared.change(OwnedChange::Remove { path: path(&format!("no/{thread}")) });
                    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
                }
            });
        }
    });
    let flushes = device.flushes.load(Ordering::Relaxed);
    assert!(flushes < 80, "160 puts took {flushes} flushes");
    shared.close().unwrap();
    let after = shared.change(OwnedChange::put(path("late"), Vec::new()));
    assert!(matches!(after, Err(Error::WriterStopped)));
    let reader = Reader::new(sim.reader(), "sim");
    for thread in 0..16_u8 {
        for number in 0..10 {
            assert_eq!(reader.get(&path(&format!("{thread}/{number}"))).unwrap().data(), [thread; 3000]);
        }
    }
}

#[test]
fn a_group_is_one_commit_and_other_data_refuses_all_of_it() {
    let sim = Sim::new(16 << 20);
    let device = store(&sim);
    let writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    let shared = SharedWriter::new(writer, CommitLimits { records: 3, ..CommitLimits::default() });
    let put = |name: &str, data: &[u8]| OwnedChange::put(path(name), data.to_vec());
    shared.change(put("taken", b"1")).unwrap();
    let before = device.flushes.load(Ordering::Relaxed);
    let answers = shared.change_groups(vec![
        vec![put("a", b"1"), put("b", b"1")],
        vec![put("taken", b"2"), put("c", b"1"), put("d", b"1")],
        vec![put("e", b"1"), put("taken", b"1"), put("f", &[0; 3 << 19])],
        vec![put("g", b"1"), put("taken", b"2")],
    ]);
    // The second has nothing to flush: two commits write.
    assert_eq!(device.flushes.load(Ordering::Relaxed) - before, 2);
    assert!(answers[0].iter().all(Result::is_ok), "{answers:?}");
    assert!(matches!(
        answers[1].as_slice(),
        [Err(Error::Exists { .. }), Err(Error::NotReached), Err(Error::NotReached)]
    ));
    assert!(matches!(answers[2].as_slice(), [Ok(_), Ok(_), Err(Error::TooLarge { .. })]), "{answers:?}");
    assert!(matches!(answers[3].as_slice(), [Err(Error::NotReached), Err(Error::Exists { .. })]));
    shared.close().unwrap();
    let reader = Reader::new(sim.reader(), "sim");
    let there = |name: &str| reader.get(&path(name)).is_ok();
    assert_eq!(
        ["a", "b", "c", "d", "e", "f", "g"].map(there),
        [true, true, false, false, true, false, false]
    );
}

#[test]
fn limits_cut_commits_and_a_failing_device_answers_everybody() {
    let sim = Sim::new(16 << 20);
    let device = store(&sim);
    let writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    let limits = CommitLimits { records: 3, bytes: 10_000, wait: Duration::from_millis(1) };
    let shared = SharedWriter::new(writer, limits);
    let before = device.flushes.load(Ordering::Relaxed);
    let puts = |round: u32, len: usize| {
        (0..6).map(|n| OwnedChange::put(path(&format!("{round}/{n}")), vec![1; len])).collect::<Vec<_>>()
    };
    assert!(shared.change_all(puts(0, 10)).iter().all(Result::is_ok));
    assert_eq!(device.flushes.load(Ordering::Relaxed) - before, 2, "three records a commit");
    assert!(shared.change_all(puts(1, 9000)).iter().all(Result::is_ok));
    assert_eq!(device.flushes.load(Ordering::Relaxed) - before, 8, "one record a commit");
    let versions: Vec<OwnedChange> = puts(0, 20)
        .into_iter()
        .map(|change| match change {
            OwnedChange::Put { path, data, class, issued_day, version, .. } => {
                OwnedChange::Put { path, data, is_new_version: true, class, issued_day, version }
            }
            other => other,
        })
        .collect();
    sim.fail_at(sim.ops() + 3); // after three headers were read: the write of the records
    let answers = shared.change_all(versions);
    let (first, second) = answers.split_at(3);
    assert!(first.iter().all(|answer| matches!(answer, Err(Error::Device(_)))), "{first:?}");
    assert!(second.iter().all(|answer| matches!(answer, Err(Error::WriterStopped))), "{second:?}");
    assert!(shared.has_failed());
    assert!(matches!(shared.close(), Err(Error::WriterStopped)));
}
