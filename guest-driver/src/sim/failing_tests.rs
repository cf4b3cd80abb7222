//! A disk that fails one operation, at each operation in turn: of what reads, of a format, of a repair.

use super::fault_tests::{self, path};
use super::field_tests::{Cut, cut};
use super::repair_tests::{Harm, assert_content, harm, mend, store};
use super::world::options;
use super::{Fate, Rng};
use crate::layout::{PAGE_HEAD, PAGE_SUPERBLOCK, PAGE_TABLE};
use crate::note::Note;
use crate::verify::verify;
use crate::{Error, FormatOptions, Put, Reader, Result, Writer, format, repair};

/// Something that reads, and what it counts.
type Read = fn(&Reader<Cut>, &Note) -> Result<u64>;

const READS: &[(&str, Read)] = &[
    ("stat", |reader, _| reader.stat(&path("r/3")).map(|stat| stat.header.seq)),
    ("get", |reader, _| reader.get(&path("window")).map(|receipt| receipt.data().len() as u64)),
    ("get an older version", |reader, _| {
        reader.get_version(&path("r/3"), 1).map(|receipt| receipt.data().len() as u64)
    }),
    ("list", |reader, _| {
        let mut count = 0;
        reader.list("", |_| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }),
    ("follow", |reader, _| {
        let mut count = 0;
        let mut follower = reader.follow(Some(1))?;
        reader.poll(&mut follower, |_| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }),
    ("note", |reader, _| reader.note().map(|note| note.seq)),
    ("verify from a note", |reader, note| reader.verify_from(note, |_, _| {}).map(|(records, _)| records)),
    ("verify", |reader, _| verify(reader, |_| Ok(())).map(|totals| totals.records)),
    ("usage", |reader, _| reader.usage().map(|usage| usage.live)),
];

/// Nothing reads less and calls it all.
#[test]
fn a_read_that_fails_is_never_a_shorter_answer() {
    let (sim, _) = fault_tests::store();
    let note = Reader::new(sim.reader(), "sim").note().unwrap();
    let mut writer = Writer::open(sim.writer(), &options()).unwrap();
    writer.put(&Put { is_new_version: true, ..Put::new(&path("r/3"), b"second") }).unwrap();
    writer.put(&Put::new(&path("window"), b"in the replay window")).unwrap();
    for (name, read) in READS {
        let right = read(&Reader::new(cut(&sim, 4 << 20, u64::MAX), "whole"), &note).unwrap();
        for fail_at in 0.. {
            let reader = Reader::new(cut(&sim, 4 << 20, fail_at), "failing");
            let answer = read(&reader, &note);
            if reader.device().reads.get() <= fail_at {
                assert!(fail_at > 1, "{name} reads");
                break;
            }
            match answer {
                Ok(count) => assert_eq!(count, right, "{name}, read {fail_at}"), // there is a second superblock
                Err(error) => assert!(matches!(error, Error::Device(_)), "{name}, read {fail_at}: {error}"),
            }
        }
    }
}

#[test]
fn a_format_that_fails_leaves_the_old_store_or_none() {
    let (base, _) = fault_tests::store();
    base.freeze();
    let format_options =
        FormatOptions { segment_bytes: Some(256 << 10), force: true, ..FormatOptions::default() };
    let mut rng = Rng(4);
    for op in 0.. {
        let sim = base.fork();
        let device = sim.writer();
        sim.fail_at(op);
        let done = format(&device, &format_options);
        if sim.ops() <= op {
            done.unwrap();
            break;
        }
        assert!(matches!(done, Err(Error::Device(_))), "operation {op}: {done:?}");
        sim.crash_host(Fate::Random(&mut rng));
        match Reader::new(sim.reader(), "sim").get(&path("r/0")) {
            Ok(receipt) => assert_eq!(receipt.data(), [0; 30_000], "operation {op}"),
            Err(error) => assert!(
                matches!(error, Error::NoStore { .. } | Error::NotFound { .. }),
                "operation {op}: {error}"
            ),
        }
        format(&sim.writer(), &format_options).unwrap();
        let reader = Reader::new(sim.reader(), "sim");
        assert!(matches!(reader.get(&path("r/0")), Err(Error::NotFound { .. })));
        verify(&reader, |finding| panic!("operation {op}: {finding:?}")).unwrap();
    }
}

#[test]
fn a_repair_that_fails_loses_nothing_and_can_be_repeated() {
    let (base, content) = store();
    let superblock = Reader::new(base.reader(), "sim").superblock().unwrap();
    let hash = superblock.path_hash(content[0].0.as_str().as_bytes());
    let index_page = superblock.geometry.home_page(&superblock.geometry.regions[0], hash.bucket);
    let damages = [
        (index_page, Harm::Both),
        (PAGE_TABLE, Harm::Both),
        (PAGE_SUPERBLOCK, Harm::Both),
        (PAGE_HEAD, Harm::Slot(0)),
    ];
    let mut rng = Rng(5);
    for (page_no, kind) in damages {
        let damaged = base.fork();
        harm(&damaged, page_no, kind);
        damaged.freeze();
        for op in 0.. {
            let sim = damaged.fork();
            let device = sim.writer();
            sim.fail_at(op);
            let done = repair(&device, &options(), &mut |_| {}, &mut |_| Ok(()));
            let story = format!("page {page_no}, {kind:?}, operation {op}");
            if sim.ops() <= op {
                done.unwrap();
                break;
            }
            if let Err(error) = &done {
                assert!(matches!(error, Error::Device(_)), "{story}: {error}");
            }
            sim.crash_host(Fate::Random(&mut rng));
            assert_content(&sim, &content, &[4, 5], &story);
            let (totals, outcomes) = mend(&sim).unwrap_or_else(|error| panic!("{story}: {error}"));
            assert_eq!(totals.findings, 0, "{story}: {outcomes:?}");
            assert_content(&sim, &content, &[], &story);
        }
    }
}
