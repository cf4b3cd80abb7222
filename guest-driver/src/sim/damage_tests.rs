//! What was on the disk before, and damage that a store must live with: other stores, foreign bytes, rot in what is looked at first.

use super::fault_tests::{path, store};
use super::{Fate, Sim};
use crate::device::DeviceResult;
use crate::layout::{BLOCK_BYTES, PAGE_BYTES, PAGE_TABLE, block_offset, page_offset};
use crate::record::Header;
use crate::verify::verify;
use crate::{Device, Error, FormatOptions, Put, Reader, Writer, WriterOptions, format};

/// The disk as it is at each read.
struct Live<'a>(&'a Sim);

impl Device for Live<'_> {
    fn size_bytes(&self) -> u64 {
        self.0.reader().size_bytes()
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        self.0.reader().read(offset_bytes, buf)
    }
    fn write(&self, _: u64, _: &[u8]) -> DeviceResult<()> {
        unreachable!("a reader does not write")
    }
    fn flush(&self) -> DeviceResult<()> {
        unreachable!("a reader does not flush")
    }
}

fn writer(sim: &Sim) -> Writer<super::SimWriter> {
    Writer::open(sim.writer(), &WriterOptions::default()).unwrap()
}

fn format_again(sim: &Sim, segment_bytes: u64) {
    let options =
        FormatOptions { segment_bytes: Some(segment_bytes), force: true, ..FormatOptions::default() };
    format(&sim.writer(), &options).unwrap();
}

fn listed(sim: &Sim) -> (Vec<String>, crate::Result<()>) {
    let mut names = Vec::new();
    let done = Reader::new(sim.reader(), "sim").list("", |locator| {
        names.push(locator.path.to_string());
        Ok(())
    });
    names.sort();
    (names, done)
}

#[test]
pub(super) fn nothing_of_an_older_store_is_found_by_path_or_locator() {
    let (sim, stored) = store();
    let running = Reader::new(Live(&sim), "sim");
    let locator = &stored[3].locator;
    assert!(running.get(&locator.path).is_ok());
    format_again(&sim, 256 << 10);
    for reader in [Reader::new(Live(&sim), "sim"), running] {
        let by_path = reader.get(&locator.path);
        assert!(matches!(by_path, Err(Error::NotFound { .. })), "{by_path:?}");
        let by_locator = reader.get_locator(locator);
        assert!(matches!(by_locator, Err(Error::NotFound { .. })), "{by_locator:?}");
        let mut writer = writer(&sim);
        writer.put(&Put::new(&locator.path, b"of the new store")).unwrap();
        assert_eq!(reader.get(&locator.path).unwrap().data(), b"of the new store");
        writer.remove(&locator.path).unwrap();
        writer.close().unwrap();
    }
}

#[test]
fn a_superblock_of_another_geometry_never_comes_back() {
    let (sim, _) = store();
    format_again(&sim, 1 << 20);
    format_again(&sim, 512 << 10);
    let superblock = Reader::new(sim.reader(), "sim").superblock().unwrap();
    for page_no in [0, superblock.geometry.superblock_copy_page()] {
        sim.writer().write_zeroes(page_offset(page_no), PAGE_BYTES).unwrap();
    }
    let error = Reader::new(sim.reader(), "sim").superblock().unwrap_err();
    assert!(matches!(error, Error::NoStore { .. }), "{error}");
}

#[test]
fn bytes_of_others_where_the_index_lies_are_not_damage() {
    let sim = Sim::new(4 << 20);
    let mut block = vec![0x5a; 4096];
    block[..512].fill(0);
    for number in 0..(4 << 20) / BLOCK_BYTES {
        sim.writer().write(block_offset(number), &block).unwrap();
    }
    format_again(&sim, 256 << 10);
    let mut writer = writer(&sim);
    for number in 0..200 {
        let name = path(&format!("n/{number}"));
        let miss = Reader::new(sim.reader(), "sim").get(&name);
        assert!(matches!(miss, Err(Error::NotFound { .. })), "{miss:?}");
        writer.put(&Put::new(&name, b"x")).unwrap();
    }
    writer.close().unwrap();
    verify(&Reader::new(sim.reader(), "sim"), |finding| panic!("{finding:?}")).unwrap();
}

/// The segment table reads as zeroes: everything looks free.
#[test]
pub(super) fn a_segment_in_use_is_not_taken_for_a_free_one() {
    let (base, stored) = store();
    let superblock = Reader::new(base.reader(), "sim").superblock().unwrap();
    for is_own_kept in [false, true] {
        let sim = base.fork();
        let mut page = vec![0; usize::try_from(PAGE_BYTES).unwrap()];
        sim.reader().read(page_offset(PAGE_TABLE), &mut page).unwrap();
        let (mut newest, _) = crate::page::newest(
            &page,
            crate::page::PageId {
                store_id: Some(superblock.store_id()),
                page_no: PAGE_TABLE,
                kind: crate::page::PageKind::Table,
            },
        );
        let open = superblock.geometry.segment_of(stored[19].locator.block);
        let (_, slot) = superblock.geometry.table_slot(open);
        for byte in
            newest.0.body.chunks_exact_mut(32).enumerate().filter(|(at, _)| !is_own_kept || *at != slot)
        {
            byte.1.fill(0);
        }
        let bytes = crate::page::encode_slot(
            superblock.store_id(),
            PAGE_TABLE,
            crate::page::PageKind::Table,
            &newest.0,
        );
        for half in 0..2 {
            sim.writer().write(page_offset(PAGE_TABLE) + half * BLOCK_BYTES, bytes.as_slice()).unwrap();
        }
        let device = sim.writer();
        let refused = Writer::open(&device, &WriterOptions::default()).and_then(|mut writer| {
            for number in 0..200 {
                writer.put(&Put::new(&path(&format!("more/{number}")), &[7; 30_000]))?;
            }
            Ok(())
        });
        let error = refused.unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        let reader = Reader::new(sim.reader(), "sim");
        for old in &stored {
            assert_eq!(
                reader.get_locator(&old.locator).unwrap().data().len(),
                30_000,
                "nothing was overwritten"
            );
        }
    }
}

#[test]
fn a_rotten_header_since_the_last_summary_stops_neither_writer_nor_listing() {
    let (sim, stored) = store();
    let rotten = &stored[19].locator;
    sim.rot(block_offset(rotten.block) + 20, 1);
    let mut writer = writer(&sim);
    writer.put(&Put::new(&path("new"), b"after the damage")).unwrap();
    let (names, done) = listed(&sim);
    assert_eq!(done.unwrap_err().exit_code(), 5, "the list is not complete, and says so");
    assert_eq!(names.len(), 20, "19 of 20 and the new one");
    assert!(!names.contains(&rotten.path.to_string()));
    // What comes later is listed by Summaries again, and the damage stays named.
    for number in 0..40 {
        writer.put(&Put::new(&path(&format!("more/{number}")), &[7; 30_000])).unwrap();
    }
    writer.close().unwrap();
    assert_eq!(listed(&sim).0.len(), 60);
    let mut named = Vec::new();
    verify(&Reader::new(sim.reader(), "sim"), |finding| {
        named.extend(finding.path);
        Ok(())
    })
    .unwrap();
    assert!(named.contains(&rotten.path.to_string()), "{named:?}");
}

/// What the head publishes and no Summary lists yet: a list that lacks it is not complete.
#[test]
fn a_rotten_header_in_the_replay_window_is_missed_by_the_list() {
    let (sim, _) = store();
    let mut writer = writer(&sim);
    let names = [path("w/0"), path("w/1")];
    let stored = writer.commit(&[Put::new(&names[0], b"0"), Put::new(&names[1], b"1")]).unwrap();
    for (number, stored) in stored.into_iter().enumerate() {
        let sim = sim.fork();
        sim.rot(block_offset(stored.unwrap().locator.block) + 20, 1);
        let (names, done) = listed(&sim);
        assert_eq!(done.unwrap_err().exit_code(), 5, "the list is not complete, and says so");
        assert_eq!(names.len(), 20 + number);
    }
}

/// A crash takes the index page of an acknowledged receipt back, and rot hides its record: the head still knows of it.
#[test]
fn a_rotten_header_in_the_replay_window_makes_nothing_not_found() {
    let (sim, _) = store();
    let mut writer = writer(&sim);
    let names = [path("w/0"), path("w/1")];
    let superblock = writer.superblock().clone();
    let home = |name: &crate::ReceiptPath| {
        superblock
            .geometry
            .home_page(&superblock.geometry.regions[0], superblock.path_hash(name.as_str().as_bytes()).bucket)
    };
    let page = page_offset(home(&names[1]));
    let mut before = vec![0; 8192];
    sim.reader().read(page, &mut before).unwrap();
    let stored = writer.commit(&[Put::new(&names[0], b"0"), Put::new(&names[1], b"1")]).unwrap();
    let rotten = block_offset(stored[0].as_ref().unwrap().locator.block) + 20;
    drop(writer);
    sim.writer().write(page, &before).unwrap();
    let get = || Reader::new(sim.reader(), "sim").get(&names[1]).unwrap_err().exit_code();
    assert_eq!(get(), 4);
    sim.rot(rotten, 1);
    assert_eq!(get(), 5);
}

#[test]
fn a_rotten_summary_hides_nothing_from_the_list() {
    let (sim, stored) = store();
    let superblock = Reader::new(sim.reader(), "sim").superblock().unwrap();
    let first = stored[0].locator.block;
    let segment_end = superblock.geometry.end_block(superblock.geometry.segment_of(first));
    let mut block = vec![0; 4096];
    let seal = (first..segment_end).find(|at| {
        sim.reader().read(block_offset(*at), &mut block).unwrap();
        Header::parse(&block, superblock.record_seed()).is_ok_and(|(header, _)| !header.kind.has_path())
    });
    sim.rot(block_offset(seal.unwrap()) + 200, 1);
    let (names, done) = listed(&sim);
    assert_eq!(names.len(), 20);
    assert_eq!(done.unwrap_err().exit_code(), 5);
}

#[test]
pub(super) fn what_is_put_again_is_acknowledged_only_if_it_can_be_read() {
    let (sim, stored) = store();
    let locator = &stored[4].locator;
    let mut writer = writer(&sim);
    let again = writer.put(&Put::new(&locator.path, &[4; 30_000])).unwrap();
    assert!(!again.is_new);
    sim.rot(block_offset(locator.block) + 20_000, 1);
    let reader = Reader::new(Live(&sim), "sim");
    assert_eq!(reader.get(&locator.path).unwrap_err().exit_code(), 5);
    let other = writer.put(&Put::new(&locator.path, b"other data")).unwrap_err();
    assert!(matches!(other, Error::Exists { .. }), "{other}");
    let mended = writer.put(&Put::new(&locator.path, &[4; 30_000])).unwrap();
    assert_eq!((mended.is_new, mended.version), (true, 2));
    assert_eq!(reader.get(&locator.path).unwrap().data(), [4; 30_000]);
}

/// A newer program may write kinds of records that this one does not know: they are not the end of the log.
#[test]
fn an_unknown_kind_of_record_is_not_the_end_of_the_log() {
    let (sim, _) = store();
    let superblock = Reader::new(sim.reader(), "sim").superblock().unwrap();
    let mut writer = writer(&sim);
    let last = writer.put(&Put::new(&path("last"), b"last")).unwrap();
    drop(writer);
    sim.crash_host(Fate::Keep);
    let offset_bytes = block_offset(last.locator.block);
    let mut block = vec![0; 4096];
    sim.reader().read(offset_bytes, &mut block).unwrap();
    block[36] = 200;
    let crc = crc32c::crc32c_append(superblock.record_seed(), &block[8..152]);
    block[4..8].copy_from_slice(&crc.to_le_bytes());
    sim.writer().write(offset_bytes, &block).unwrap();
    let error = Writer::open(&sim.writer(), &WriterOptions::default()).unwrap_err();
    assert!(error.to_string().contains("newer"), "{error}");
    let error = Reader::new(sim.reader(), "sim").get(&path("no")).unwrap_err();
    assert!(error.to_string().contains("newer"), "{error}");
}
