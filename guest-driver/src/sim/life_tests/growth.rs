//! Growth: nothing moves, and old readers go on.

use super::{DAY, is_clean, listed, open, options, path, put, store};
use crate::sim::{Sim, SimWriter};
use crate::{Error, FormatOptions, Put, Reader, Writer, format};

/// What a store of `segment_count` segments of 256 KiB becomes when the disk grows to so many more.
#[test]
fn ten_small_growths_in_a_row_keep_everything_and_old_readers_go_on() {
    let sim = store(3 << 20);
    let old = Reader::new(sim.reader_of_now(), "sim");
    let mut writer = open(&sim, DAY);
    put(&mut writer, "first", 0, 1000);
    assert!(old.get(&path("first")).is_ok());
    let mut follower = old.follow(None).unwrap();
    let mut stored = vec!["first".to_owned()];
    for step in 1..=10_u64 {
        sim.resize((3 << 20) + step * (300 << 10));
        let grown = writer.grow().unwrap();
        assert!(grown.is_some_and(|grown| grown.added >= 1), "step {step}: {grown:?}");
        assert_eq!(writer.grow().unwrap(), None);
        for number in 0.. {
            let name = format!("{step}/{number}");
            let data = vec![u8::try_from(step).unwrap(); 50_000];
            match writer.put(&Put::new(&path(&name), &data)) {
                Ok(_) => stored.push(name),
                Err(Error::NoSpace { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(stored.iter().all(|name| old.get(&path(name)).is_ok()), "step {step}: an older reader");
        let mut seen = 0;
        old.poll(&mut follower, |_| {
            seen += 1;
            Ok(())
        })
        .unwrap();
        assert!(seen > 0, "step {step}: a follower goes on");
    }
    writer.close().unwrap();
    is_clean(&sim, "grown");
    assert_eq!(listed(&sim).len(), stored.len());
    // The next opening takes over what came meanwhile.
    sim.resize(66 << 20);
    let writer = open(&sim, DAY);
    assert_eq!(writer.superblock().geometry.segment_count, 264);
    assert_eq!(writer.superblock().geometry.regions.len(), 2, "an index of its own for so much more");
    writer.close().unwrap();
    is_clean(&sim, "grown at opening");
    let mut writer = open(&sim, DAY);
    for number in 0..300 {
        put(&mut writer, &format!("much/{number}"), 0, 30_000);
    }
    put(&mut writer, "first", 0, 10);
    writer.remove(&path("much/7")).unwrap();
    writer.close().unwrap();
    is_clean(&sim, "both regions in use");
    let reader = Reader::new(sim.reader(), "sim");
    assert!((0..300).filter(|n| *n != 7).all(|n| reader.get(&path(&format!("much/{n}"))).is_ok()));
    assert_eq!(
        reader.get(&path("first")).unwrap().data().len(),
        10,
        "a version of a path of the older region"
    );
    assert!(reader.superblock().unwrap().geometry.data_segment_count() > 250);
}

/// Stores small receipts until the index is full; returns how many.
fn fill_index(writer: &mut Writer<SimWriter>, name: &str) -> usize {
    let mut stored = 0;
    loop {
        let paths: Vec<_> = (stored..stored + 100).map(|number| path(&format!("{name}/{number}"))).collect();
        let puts: Vec<Put<'_>> = paths.iter().map(|path| Put::new(path, b"small")).collect();
        for answer in writer.commit(&puts).unwrap() {
            match answer {
                Ok(_) => stored += 1,
                Err(Error::IndexFull { .. }) => return stored,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Receipts of a block fill the index first. What `info` says is enough to go on, and what old regions have room for is used again.
#[test]
fn a_full_index_grows_where_it_can_and_no_region_lies_idle() {
    let sim = store(30 << 20);
    let mut writer = open(&sim, DAY);
    let first = fill_index(&mut writer, "first");
    assert!(first > 3400, "{first} of 4032");
    let enough = writer.superblock().geometry.index_growth_bytes().unwrap();
    sim.resize(enough - (256 << 10));
    assert_eq!(
        writer.grow().unwrap().unwrap().index_segments,
        0,
        "inside of the zone, and one segment behind it"
    );
    let enough = writer.superblock().geometry.index_growth_bytes().unwrap();
    sim.resize(enough);
    assert_eq!(writer.grow().unwrap().unwrap().index_segments, 1);
    sim.resize(60 << 20);
    writer.grow().unwrap().unwrap();
    let second = fill_index(&mut writer, "second");
    assert!(second > 3400, "{second}");
    for number in 0..1000 {
        writer.remove(&path(&format!("first/{number}"))).unwrap();
    }
    let third = fill_index(&mut writer, "third");
    assert!(third > 300, "{third} where 1000 have gone");
    writer.close().unwrap();
    is_clean(&sim, "filled");
    let reader = Reader::new(sim.reader(), "sim");
    for (name, numbers) in [("first", 1000..first), ("second", 0..second), ("third", 0..third)] {
        assert!(
            numbers.into_iter().all(|number| reader.get(&path(&format!("{name}/{number}"))).is_ok()),
            "{name}"
        );
    }
}

#[test]
fn a_hundred_terabytes_are_taken_over_and_used() {
    let sim = Sim::new(50 << 40);
    format(&sim.writer(), &FormatOptions { segment_bytes: Some(128 << 20), ..FormatOptions::default() })
        .unwrap();
    let mut writer = Writer::open(sim.writer(), &options(DAY)).unwrap();
    put(&mut writer, "before", 0, 1000);
    sim.resize(100 << 40);
    let grown = writer.grow().unwrap().unwrap();
    assert_eq!((grown.segment_count, grown.unreachable_bytes), (819_200, 0));
    put(&mut writer, "after", 0, 1000);
    writer.close().unwrap();
    let reader = Reader::new(sim.reader(), "sim");
    assert!(["before", "after"].iter().all(|name| reader.get(&path(name)).is_ok()));
    assert_eq!(listed(&sim), ["after", "before"]);
    assert!(reader.usage().unwrap().free_segments > 812_000);
    sim.resize(1 << 50);
    let grown = open(&sim, DAY).grow();
    assert_eq!(grown.unwrap(), None, "opening did");
    let geometry = Reader::new(sim.reader(), "sim").superblock().unwrap().geometry.clone();
    assert_eq!(
        geometry.segment_count,
        geometry.table_capacity(),
        "no further than the segment table reaches"
    );
}
