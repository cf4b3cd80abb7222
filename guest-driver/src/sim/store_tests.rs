//! What a store does when nothing fails: counts of reads, segments, versions, spilling, limits.

use super::{Sim, SimWriter};
use crate::layout::{BATCH_RECORDS_MAX, PAGE_BYTES};
use crate::{Error, FormatOptions, Locator, Put, Reader, ReceiptPath, Writer, WriterOptions, format};

fn path(text: &str) -> ReceiptPath {
    ReceiptPath::new(text).unwrap()
}

fn store(size_bytes: u64, segment_bytes: u64) -> Sim {
    let sim = Sim::new(size_bytes);
    let options = FormatOptions {
        segment_bytes: Some(segment_bytes),
        fixed_identity: Some(([7; 16], [9; 32])),
        ..FormatOptions::default()
    };
    format(&sim.writer(), &options).unwrap();
    sim
}

fn writer(device: &SimWriter) -> Writer<&SimWriter> {
    Writer::open(device, &WriterOptions::default()).unwrap()
}

fn put_many(sim: &Sim, names: &[String], len: usize) {
    let device = sim.writer();
    let mut writer = writer(&device);
    for chunk in names.chunks(BATCH_RECORDS_MAX) {
        let paths: Vec<ReceiptPath> = chunk.iter().map(|name| path(name)).collect();
        let data: Vec<Vec<u8>> = chunk.iter().map(|n| n.bytes().cycle().take(len).collect()).collect();
        let puts: Vec<Put<'_>> = paths.iter().zip(&data).map(|(p, d)| Put::new(p, d)).collect();
        assert!(writer.commit(&puts).unwrap().into_iter().all(|r| r.unwrap().is_new));
    }
    writer.close().unwrap();
}

fn listed(sim: &Sim, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    let reader = Reader::new(sim.reader(), "sim");
    reader
        .list(prefix, |locator| {
            assert!(reader.get_locator(&locator).is_ok());
            names.push(locator.path.to_string());
            Ok(())
        })
        .unwrap();
    names.sort();
    names
}

#[test]
pub(super) fn a_get_is_three_reads_cold_two_warm_and_one_by_locator() {
    let sim = store(16 << 20, 1 << 20);
    let device = sim.writer();
    let mut writer = writer(&device);
    let stored = writer.put(&Put::new(&path("a/b"), &[7; 100_000])).unwrap();
    writer.put(&Put::new(&path("a/c"), &[8; 100_000])).unwrap();
    let reader = Reader::new(sim.reader(), "sim");
    let reads = || reader.device().reads();
    reader.get(&path("a/b")).unwrap();
    assert_eq!(reads(), 3, "cold");
    reader.get(&path("a/c")).unwrap();
    assert_eq!(reads(), 5, "warm");
    reader.get_locator(&stored.locator).unwrap();
    assert_eq!(reads(), 6, "locator");
    let cold = Reader::new(sim.reader(), "sim");
    cold.get_locator(&Locator::parse(&stored.locator.to_string()).unwrap()).unwrap();
    assert_eq!(cold.device().reads(), 2, "locator, cold: superblock, record");
    writer.close().unwrap();
    let closed = Reader::new(sim.reader(), "sim");
    assert!(matches!(closed.get(&path("no")), Err(Error::NotFound { .. })));
    assert_eq!(closed.device().reads(), 4, "a miss on a closed store: superblock, bucket, head, bucket");
}

#[test]
pub(super) fn one_group_commit_is_one_sequential_write_and_one_flush() {
    let sim = store(16 << 20, 1 << 20);
    let device = sim.writer();
    let mut writer = writer(&device);
    let before = sim.counts();
    let paths: Vec<ReceiptPath> = (0..8).map(|n| path(&format!("r/{n}"))).collect();
    let puts: Vec<Put<'_>> = paths.iter().map(|p| Put::new(p, &[1; 3000])).collect();
    writer.commit(&puts).unwrap();
    let after = sim.counts();
    assert_eq!(after.flushes - before.flushes, 1);
    let writes = after.writes - before.writes;
    assert!(writes <= 1 + 8 + 2, "records (one piece), a page each, table, head: {writes}");
    let reads = after.reads - before.reads;
    assert!(reads <= 8 + 2, "a page each, table, lease and head: {reads}");
}

#[test]
pub(super) fn opening_after_a_clean_close_is_one_write_and_one_flush() {
    let sim = store(16 << 20, 1 << 20);
    put_many(&sim, &["a".to_owned()], 10);
    let device = sim.writer();
    let before = sim.counts();
    let writer = writer(&device);
    let after = sim.counts();
    assert_eq!((after.writes - before.writes, after.flushes - before.flushes), (1, 1));
    assert!(after.reads - before.reads <= 5);
    drop(writer);
}

#[test]
fn segments_follow_each_other_and_listing_finds_everything() {
    let sim = store(8 << 20, 256 << 10);
    let names: Vec<String> = (0..700).map(|n| format!("day{}/{n:04}", n % 7)).collect();
    put_many(&sim, &names[..400], 5_000);
    put_many(&sim, &names[400..], 5_000);
    let reader = Reader::new(sim.reader(), "sim");
    for name in &names {
        assert!(reader.get(&path(name)).unwrap().data().starts_with(name.as_bytes()));
    }
    let mut expected = names.clone();
    expected.sort();
    assert_eq!(listed(&sim, ""), expected);
    assert_eq!(
        listed(&sim, "/day3/"),
        expected.iter().filter(|n| n.starts_with("day3/")).cloned().collect::<Vec<_>>()
    );
    assert!(listed(&sim, "day9").is_empty());
    let totals = crate::verify::verify(&reader, |finding| panic!("{finding:?}")).unwrap();
    assert_eq!(totals.entries, 700);
}

#[test]
fn versions_are_kept_and_the_same_data_is_the_same_receipt() {
    let sim = store(16 << 20, 1 << 20);
    let device = sim.writer();
    let mut writer = writer(&device);
    let name = path("a");
    let first = writer.put(&Put::new(&name, b"one")).unwrap();
    let again = writer.put(&Put::new(&name, b"one")).unwrap();
    assert_eq!((again.locator, again.is_new), (first.locator.clone(), false));
    let refused = writer.put(&Put::new(&name, b"two")).unwrap_err();
    assert_eq!(refused.exit_code(), 8);
    for data in [b"two".as_slice(), b"three"] {
        writer.put(&Put { is_new_version: true, ..Put::new(&name, data) }).unwrap();
    }
    let twice = [Put { is_new_version: true, ..Put::new(&name, b"four") }, Put::new(&name, b"four")];
    let results: Vec<_> = writer.commit(&twice).unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!((results[0].version, results[1].version, results[1].is_new), (4, 4, false));
    let reader = Reader::new(sim.reader(), "sim");
    for (version, data) in [(1, b"one".as_slice()), (2, b"two"), (3, b"three"), (4, b"four")] {
        assert_eq!(reader.get_version(&name, version).unwrap().data(), data);
    }
    assert!(matches!(reader.get_version(&name, 5), Err(Error::NotFound { .. })));
    assert!(matches!(reader.get_version(&name, 0), Err(Error::NotFound { .. })));
    assert_eq!(reader.get(&name).unwrap().data(), b"four");
    assert_eq!(reader.get_locator(&first.locator).unwrap().data(), b"one", "a locator pins its version");
    assert_eq!(listed(&sim, ""), ["a"]);
}

/// Names whose home is one page of the index.
fn crowd(sim: &Sim, count: usize) -> Vec<String> {
    let reader = Reader::new(sim.reader(), "sim");
    let superblock = reader.superblock().unwrap();
    let geometry = &superblock.geometry;
    let home = |name: &String| {
        geometry.home_page(&geometry.regions[0], superblock.path_hash(name.as_bytes()).bucket)
    };
    let names = (0..).map(|n: u32| format!("crowd/{n}"));
    names.filter(|name| home(name) == geometry.pages_per_segment()).take(count).collect()
}

#[test]
fn a_full_page_spills_to_the_next_ones_and_then_the_index_is_full() {
    let sim = store(16 << 20, 256 << 10);
    let names = crowd(&sim, 5 * 126 + 1);
    put_many(&sim, &names[..630], 10);
    let reader = Reader::new(sim.reader(), "sim");
    for name in &names[..630] {
        assert!(reader.get(&path(name)).is_ok(), "{name}");
    }
    assert!(matches!(reader.get(&path(&names[630])), Err(Error::NotFound { .. })));
    let device = sim.writer();
    let mut writer = writer(&device);
    let full = writer.put(&Put::new(&path(&names[630]), b"x")).unwrap_err();
    assert!(matches!(full, Error::IndexFull { .. }));
    assert_eq!(full.exit_code(), 6);
    writer.put(&Put { is_new_version: true, ..Put::new(&path(&names[629]), b"new") }).unwrap();
    assert_eq!(reader.superblock().unwrap().geometry.pages_per_segment() * PAGE_BYTES, 256 << 10);
    let now = Reader::new(sim.reader(), "sim");
    assert_eq!(now.get(&path(&names[629])).unwrap().data(), b"new", "a version of a spilled path");
    crate::verify::verify(&now, |finding| panic!("{finding:?}")).unwrap();
}

#[test]
fn a_full_disk_refuses_and_keeps_what_it_has() {
    let sim = store(1 << 20, 256 << 10);
    let device = sim.writer();
    let mut writer = writer(&device);
    let mut stored = Vec::new();
    let full = loop {
        let name = path(&format!("n/{}", stored.len()));
        match writer.put(&Put::new(&name, &[3; 30_000])) {
            Ok(_) => stored.push(name),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, Error::NoSpace { .. }), "{full}");
    assert!(stored.len() >= 12, "{}", stored.len());
    let before = sim.counts().writes;
    assert!(writer.put(&Put::new(&path("more"), &[3; 30_000])).is_err());
    assert_eq!(sim.counts().writes, before, "nothing is written");
    writer.put(&Put::new(&path("small"), b"fits")).unwrap();
    writer.close().unwrap();
    let reader = Reader::new(sim.reader(), "sim");
    for name in &stored {
        assert_eq!(reader.get(name).unwrap().data(), [3; 30_000]);
    }
}

#[test]
fn data_over_the_limit_is_refused_and_the_largest_fits() {
    let sim = store(4 << 20, 256 << 10);
    let device = sim.writer();
    let mut writer = writer(&device);
    let limit = usize::try_from(writer.data_bytes_max()).unwrap();
    let error = writer.put(&Put::new(&path("big"), &vec![1; limit + 1])).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }));
    for number in 0..3 {
        writer.put(&Put::new(&path(&format!("{number}")), &vec![1; limit - 4096])).unwrap();
    }
    writer.put(&Put::new(&path("empty"), b"")).unwrap();
    assert_eq!(Reader::new(sim.reader(), "sim").get(&path("empty")).unwrap().data(), b"");
    let many: Vec<Put<'_>> = Vec::new();
    assert!(writer.commit(&many).unwrap().is_empty());
}

#[test]
pub(super) fn an_older_store_on_the_same_disk_is_gone() {
    let sim = store(4 << 20, 256 << 10);
    put_many(&sim, &["a".to_owned(), "b".to_owned()], 1000);
    let device = sim.writer();
    assert!(matches!(format(&device, &FormatOptions::default()), Err(Error::NotEmpty { .. })));
    let options = FormatOptions { force: true, segment_bytes: Some(256 << 10), ..FormatOptions::default() };
    format(&device, &options).unwrap();
    let writer = writer(&device);
    assert_eq!(writer.last_seq(), 0, "records of the older store do not fit into the chain");
    writer.close().unwrap();
    let reader = Reader::new(sim.reader(), "sim");
    assert!(matches!(reader.get(&path("a")), Err(Error::NotFound { .. })));
    assert!(listed(&sim, "").is_empty());
}
