//! Ten years of a store: receipts of mixed classes every day, expiry every month, holds, erasures, growth, and power failures that keep any part of what was
//! not flushed. In the end everything that is to be kept reads back, nothing else is found, the whole store verifies, and its room is bounded.
//!
//! `RECEIPT_LIFE=1000000 cargo test --release -p receipt --test ten_years -- --nocapture` for a million (3,000 by default).

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

use receipt_store::device::{Device, DeviceResult};
use receipt_store::error::{DeviceError, DeviceOp};
use receipt_store::expire::{ExpireEvent, ExpireOptions, expire};
use receipt_store::layout::INDEX_FULL_PERCENT;
use receipt_store::{
    Error, FormatOptions, Hold, Put, Reader, ReceiptPath, Result, Term, Writer, WriterOptions, day, format,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

const BLOCK: u64 = 4096;
/// 2026-01-01.
const FIRST_DAY: u32 = 20_454;
const DAYS: u32 = 3652;

/// splitmix64
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// A file with a volatile cache: a power failure keeps any part of what was not flushed.
struct Disk {
    file: File,
    pending: Mutex<HashMap<u64, Vec<u8>>>,
    size_bytes: AtomicU64,
    stop_after: AtomicU64,
}

impl Disk {
    fn new(size_bytes: u64) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size_bytes).unwrap();
        let stop_after = AtomicU64::new(u64::MAX);
        Self { file, pending: Mutex::default(), size_bytes: AtomicU64::new(size_bytes), stop_after }
    }

    fn grow(&self, size_bytes: u64) {
        self.file.set_len(size_bytes).unwrap();
        self.size_bytes.store(size_bytes, Relaxed);
    }

    fn crash(&self, rng: &mut Rng) {
        self.stop_after.store(u64::MAX, Relaxed);
        let mut pending: Vec<(u64, Vec<u8>)> = self.pending.lock().unwrap().drain().collect();
        pending.sort();
        for (block, bytes) in pending {
            let len = [0, 4096, 512 * usize::try_from(rng.below(9)).unwrap()]
                [usize::try_from(rng.below(3)).unwrap()];
            self.file.write_all_at(&bytes[..len], block * BLOCK).unwrap();
        }
    }

    fn count(&self, op: DeviceOp) -> DeviceResult<()> {
        let left = self.stop_after.load(Relaxed);
        self.stop_after.store(left.saturating_sub(1), Relaxed);
        if left > 0 {
            return Ok(());
        }
        let source = std::io::Error::other("power failure");
        Err(DeviceError { op, offset_bytes: 0, len_bytes: 0, source })
    }

    fn punch(&self, offset_bytes: u64, len_bytes: u64) {
        let blocks = offset_bytes / BLOCK..(offset_bytes + len_bytes) / BLOCK;
        self.pending.lock().unwrap().retain(|block, _| !blocks.contains(block));
        let how = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, how, offset_bytes, len_bytes).unwrap();
    }
}

impl Device for Disk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Relaxed)
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        self.file.read_exact_at(buf, offset_bytes).unwrap();
        let pending = self.pending.lock().unwrap();
        for (block, bytes) in (offset_bytes / BLOCK..).zip(buf.chunks_exact_mut(4096)) {
            if let Some(newer) = pending.get(&block) {
                bytes.copy_from_slice(newer);
            }
        }
        Ok(())
    }
    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        self.count(DeviceOp::Write)?;
        let blocks = (offset_bytes / BLOCK..).zip(buf.chunks_exact(4096));
        self.pending.lock().unwrap().extend(blocks.map(|(block, bytes)| (block, bytes.to_vec())));
        Ok(())
    }
    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        self.count(DeviceOp::Write)?;
        self.punch(offset_bytes, len_bytes);
        Ok(())
    }
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        self.count(DeviceOp::Discard)?;
        self.punch(offset_bytes, len_bytes);
        Ok(())
    }
    fn flush(&self) -> DeviceResult<()> {
        self.count(DeviceOp::Flush)?;
        for (block, bytes) in self.pending.lock().unwrap().drain() {
            self.file.write_all_at(&bytes, block * BLOCK).unwrap();
        }
        Ok(())
    }
}

fn name(number: u64, on_day: u32) -> ReceiptPath {
    let date = day::text(on_day).replace('-', "/");
    ReceiptPath::new(&format!("{date}/{number:07}.png")).unwrap()
}

fn bytes_of(number: u64) -> Vec<u8> {
    let mut rng = Rng(number);
    let len = usize::try_from(500 + rng.below(3000)).unwrap();
    format!("{number} ").into_bytes().into_iter().cycle().take(len).collect()
}

/// One year for half of them, three for a third, ten for a twelfth; the rest has no term.
fn class_of(number: u64) -> u8 {
    [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 0][usize::try_from(number % 12).unwrap()]
}

struct Life {
    disk: Arc<Disk>,
    rng: Rng,
    today: u32,
    /// Receipts that must be there: number to day of issue.
    live: BTreeMap<u64, u32>,
    erased: HashSet<u64>,
    /// Numbers whose fate a crash has left open.
    open: Vec<(u64, u32)>,
    crashes: u64,
    /// No more power failures.
    is_calm: bool,
    moved: u64,
    freed: u64,
}

impl Life {
    fn options(&self) -> WriterOptions {
        let fixed_clock_ms = Some(u64::from(self.today) * day::DAY_MS);
        WriterOptions { fixed_clock_ms, ..WriterOptions::default() }
    }

    /// Works with a writer; a power failure on the way is one that the next opening recovers from.
    fn work(&mut self, step: impl Fn(&mut Self, &mut Writer<Arc<Disk>>) -> Result<()>) {
        if !self.is_calm && self.rng.below(4) == 0 {
            self.disk.stop_after.store(self.rng.below(120), Relaxed);
        }
        let done = Writer::open(self.disk.clone(), &self.options()).and_then(|mut writer| {
            step(self, &mut writer)?;
            writer.close()
        });
        match done {
            Ok(()) => self.disk.stop_after.store(u64::MAX, Relaxed),
            Err(Error::Device(_)) => {
                self.crashes += 1;
                self.disk.crash(&mut self.rng);
            }
            Err(error) => panic!("day {}: {error}", self.today),
        }
    }

    fn settle(&mut self) {
        let reader = Reader::new(self.disk.clone(), "disk");
        for (number, on_day) in std::mem::take(&mut self.open) {
            match reader.get(&name(number, on_day)) {
                Ok(receipt) => {
                    assert_eq!(receipt.data(), bytes_of(number));
                    self.live.insert(number, on_day);
                }
                Err(Error::NotFound { .. } | Error::Pending { .. }) => {
                    self.live.remove(&number);
                }
                Err(error) => panic!("{number}: {error}"),
            }
        }
    }
}

fn run_year_of_months(life: &mut Life, per_month: u64, next: &mut u64) {
    let numbers: Vec<u64> = (*next..*next + per_month).collect();
    *next += per_month;
    for some in numbers.chunks(200) {
        let today = life.today;
        life.open.extend(some.iter().map(|number| (*number, today)));
        life.work(|_, writer| {
            let items: Vec<_> = some.iter().map(|n| (name(*n, today), bytes_of(*n), class_of(*n))).collect();
            let puts: Vec<Put<'_>> = items
                .iter()
                .map(|(path, data, class)| Put { class: Some(*class), ..Put::new(path, data) })
                .collect();
            for result in writer.commit(&puts)? {
                result?;
            }
            Ok(())
        });
        recover(life);
        life.settle();
    }
}

/// Opens and closes, so that what a crash has left is settled.
fn recover(life: &Life) {
    let options = life.options();
    Writer::open(life.disk.clone(), &options).and_then(Writer::close).unwrap();
}

fn expire_month(life: &mut Life) {
    let (today, size_bytes) = (life.today, life.disk.size_bytes());
    let before: Vec<(u64, u32)> = life.live.iter().map(|(number, on_day)| (*number, *on_day)).collect();
    let is_over = |number: u64, on_day: u32| match class_of(number) {
        1 => today > day::add_years(on_day, 1),
        2 => today > day::year_end(on_day, 2),
        3 => today > day::add_years(on_day, 9),
        _ => false,
    };
    life.work(|life, writer| {
        let reader = Reader::new(life.disk.clone(), "disk");
        let options = ExpireOptions::of_day(today);
        let mut over = HashSet::new();
        let totals = expire(&reader, &mut |step| step(writer), options, |event| {
            if let ExpireEvent::Expired(path, _) = event {
                over.insert(path.to_string());
            }
            Ok(())
        })?;
        life.moved += totals.moved;
        life.freed += totals.segments;
        Ok(())
    });
    recover(life);
    life.open = before.into_iter().filter(|(number, on_day)| is_over(*number, *on_day)).collect();
    life.settle();
    assert_eq!(life.disk.size_bytes(), size_bytes);
}

fn segments_in_use(life: &Life) -> (u64, u64) {
    let usage = Reader::new(life.disk.clone(), "disk").usage().unwrap();
    (usage.used_segments, usage.free_segments)
}

/// To what the operator makes the disk larger when the index is fuller than the operator's guide says.
fn size_for_index(life: &Life) -> Option<u64> {
    recover(life); // takes the last growth over
    let reader = Reader::new(life.disk.clone(), "disk");
    let is_full = reader.index_fill().unwrap().percent > INDEX_FULL_PERCENT;
    let size_bytes = reader.superblock().unwrap().geometry.index_growth_bytes();
    size_bytes.filter(|_| is_full)
}

#[test]
fn ten_years_of_mixed_classes_with_crashes_stay_bounded_and_whole() {
    let count: u64 = std::env::var("RECEIPT_LIFE").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let per_month = (count / 120).max(1);
    // Segments of about two weeks; the disk begins with room for two years and grows to what is needed.
    let segment_bytes = (per_month * BLOCK / 2).next_power_of_two().clamp(256 << 10, 64 << 20);
    let step_bytes = (per_month * BLOCK * 12).next_multiple_of(segment_bytes) + 4 * segment_bytes;
    let disk = Disk::new(2 * step_bytes + 8 * segment_bytes);
    let options = FormatOptions { segment_bytes: Some(segment_bytes), ..FormatOptions::default() };
    format(&disk, &options).unwrap();
    let mut life = Life {
        disk: Arc::new(disk),
        rng: Rng(7),
        today: FIRST_DAY,
        live: BTreeMap::new(),
        erased: HashSet::new(),
        open: Vec::new(),
        crashes: 0,
        is_calm: false,
        moved: 0,
        freed: 0,
    };
    let mut writer = Writer::open(life.disk.clone(), &life.options()).unwrap();
    writer
        .change_policy(|policy| {
            (policy.terms[1], policy.terms[2], policy.terms[3]) =
                (Term::Years(1), Term::YearEnd(2), Term::Years(9));
            Ok(())
        })
        .unwrap();
    writer.hold(&Hold { prefix: b"2026/03/".to_vec(), until_day: Some(FIRST_DAY + 2500) }).unwrap();
    writer.close().unwrap();
    let held =
        |on_day: u32, today: u32| day::text(on_day).starts_with("2026-03-") && today <= FIRST_DAY + 2500;
    let (mut next, mut most, mut growths, mut index_growths) = (0, 0, 0, 0);
    for month in 0..120_u32 {
        life.today = FIRST_DAY + month * DAYS / 120;
        if segments_in_use(&life).1 * segment_bytes < per_month * BLOCK * 3 + 3 * segment_bytes {
            growths += 1;
            life.disk.grow(life.disk.size_bytes() + step_bytes);
        }
        if let Some(size_bytes) = size_for_index(&life) {
            index_growths += 1;
            life.disk.grow(size_bytes);
        }
        run_year_of_months(&mut life, per_month, &mut next);
        // One receipt a month is erased by order.
        let target = life.live.iter().nth(usize::try_from(life.rng.below(life.live.len() as u64)).unwrap());
        let (number, on_day) = target.map(|(number, on_day)| (*number, *on_day)).unwrap();
        if !held(on_day, life.today) {
            life.open.push((number, on_day));
            life.work(|_, writer| writer.erase(&name(number, on_day), "order").map(drop));
            recover(&life);
            life.settle();
            if !life.live.contains_key(&number) {
                life.erased.insert(number);
            }
        }
        expire_month(&mut life);
        most = most.max(segments_in_use(&life).0);
        assert!(life.erased.iter().all(|number| !life.live.contains_key(number)), "erased, but there");
    }
    let reader = Reader::new(life.disk.clone(), "disk");
    for (number, on_day) in &life.live {
        assert_eq!(reader.get(&name(*number, *on_day)).unwrap().data(), bytes_of(*number), "{number}");
    }
    let totals = receipt_store::verify::verify(&reader, |finding| panic!("{finding:?}")).unwrap();
    assert_eq!(totals.entries, life.live.len() as u64);
    let mut listed = 0;
    reader
        .list("", |_| {
            listed += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(listed, life.live.len());
    // A run that a power failure ended leaves room to the next one.
    life.is_calm = true;
    expire_month(&mut life);
    let (used, free) = segments_in_use(&life);
    let live_bytes = life.live.len() as u64 * BLOCK;
    println!(
        "{next} receipts, {} live, {} crashes, {growths} growths and {index_growths} for the index, {} copies, {} segments freed; {used} segments used, {free} free, at most {most}; {} bytes in use for {live_bytes} live, {} on the host",
        life.live.len(),
        life.crashes,
        life.moved,
        life.freed,
        used * segment_bytes,
        life.disk.file.metadata().unwrap().blocks() * 512,
    );
    assert!(life.crashes > 10 && life.freed > 20, "{} crashes, {} segments freed", life.crashes, life.freed);
    assert!(
        used * segment_bytes <= live_bytes * 2 + 4 * segment_bytes,
        "{used} segments for {live_bytes} bytes"
    );
}
