//! Terms, holds, erasure, expiry and room, directed: what each refuses, what it frees, and a crash at every operation of each.

use super::{Fate, Rng, Sim, SimWriter};
use crate::expire::{COMPACT_PERCENT, ExpireEvent, ExpireOptions, ExpireTotals, expire};
use crate::policy::Term;
use crate::{Error, FormatOptions, Hold, Put, Reader, ReceiptPath, Result, Writer, WriterOptions, format};
use std::collections::BTreeMap;

/// 2026-01-01.
const DAY: u32 = 20_454;

pub(super) fn path(text: &str) -> ReceiptPath {
    ReceiptPath::new(text).unwrap()
}

pub(super) fn store(size_bytes: u64) -> Sim {
    let sim = Sim::new(size_bytes);
    let options = FormatOptions {
        segment_bytes: Some(256 << 10),
        fixed_identity: Some(([7; 16], [9; 32])),
        fixed_clock_ms: Some(u64::from(DAY) * crate::day::DAY_MS),
        ..FormatOptions::default()
    };
    format(&sim.writer(), &options).unwrap();
    sim
}

pub(super) fn options(day: u32) -> WriterOptions {
    let fixed_clock_ms = Some(u64::from(day) * crate::day::DAY_MS);
    WriterOptions { fixed_clock_ms, fixed_uuid: Some([1; 16]), ..WriterOptions::default() }
}

fn open(sim: &Sim, day: u32) -> Writer<SimWriter> {
    Writer::open(sim.writer(), &options(day)).unwrap()
}

fn set_term(writer: &mut Writer<SimWriter>, class: usize, term: Term) {
    writer
        .change_policy(|policy| {
            policy.terms[class] = term;
            Ok(())
        })
        .unwrap();
}

fn put(writer: &mut Writer<SimWriter>, name: &str, class: u8, len: usize) -> crate::Stored {
    let data: Vec<u8> = name.bytes().cycle().take(len).collect();
    writer.put(&Put { class: Some(class), is_new_version: true, ..Put::new(&path(name), &data) }).unwrap()
}

/// Expires on the day of the writer's clock; returns the sums and the paths that have gone.
pub(super) fn run_expire(
    sim: &Sim,
    writer: &mut Writer<SimWriter>,
    today: Option<u32>,
    percent: u8,
    is_dry_run: bool,
) -> Result<(ExpireTotals, Vec<String>)> {
    let reader = Reader::new(sim.reader_of_now(), "sim");
    let options =
        ExpireOptions { is_dry_run, today, compact_percent: percent, clock_day: writer.clock_day() };
    let mut gone = Vec::new();
    let totals = expire(&reader, &mut |step| step(writer), options, |event| {
        if let ExpireEvent::Expired(path, _) = event {
            gone.push(path.to_string());
        }
        Ok(())
    })?;
    Ok((totals, gone))
}

pub(super) fn listed(sim: &Sim) -> Vec<String> {
    let mut names = Vec::new();
    Reader::new(sim.reader(), "sim")
        .list("", |locator| {
            names.push(locator.path.to_string());
            Ok(())
        })
        .unwrap();
    names.sort();
    names
}

fn is_clean(sim: &Sim, story: &str) {
    let reader = Reader::new(sim.reader(), "sim");
    crate::verify::verify(&reader, |finding| panic!("{story}: {finding:?}")).unwrap();
}

fn code<T: std::fmt::Debug>(result: Result<T>) -> u8 {
    result.unwrap_err().exit_code()
}

#[test]
pub(super) fn a_term_a_hold_and_a_change_of_policy_decide_what_rm_may_do() {
    let sim = store(8 << 20);
    let mut writer = open(&sim, DAY);
    put(&mut writer, "plain", 0, 100);
    assert_eq!(code(writer.put(&Put { class: Some(3), ..Put::new(&path("x"), b"") })), 2, "no such class");
    writer.remove(&path("plain")).unwrap();
    assert!(!Reader::new(sim.reader(), "sim").superblock().unwrap().has_life, "nothing new was used yet");
    set_term(&mut writer, 3, Term::Years(2));
    for name in ["a/1", "a/2", "b/1"] {
        put(&mut writer, name, 3, 100);
    }
    assert_eq!(code(writer.remove(&path("a/1"))), 8);
    writer.close().unwrap();
    // Two years later: nobody has confirmed the day for long.
    let mut writer = open(&sim, DAY + 800);
    let error = writer.remove(&path("a/1")).unwrap_err();
    assert!(error.to_string().contains("--today"), "{error}");
    assert_eq!(code(run_expire(&sim, &mut writer, None, 0, false)), 8);
    assert_eq!(code(run_expire(&sim, &mut writer, Some(DAY + 801), 0, false)), 8, "after the clock");
    writer
        .change_policy(|policy| {
            policy.confirmed_day = DAY + 799;
            Ok(())
        })
        .unwrap();
    writer.hold(&Hold { prefix: b"a/".to_vec(), until_day: Some(DAY + 810) }).unwrap();
    writer.hold(&Hold { prefix: b"b".to_vec(), until_day: None }).unwrap();
    for name in ["a/1", "b/1"] {
        assert_eq!(code(writer.remove(&path(name))), 8, "{name} is on hold");
    }
    writer.release(b"b").unwrap();
    assert_eq!(code(writer.release(b"b")), 3);
    writer.remove(&path("b/1")).unwrap();
    set_term(&mut writer, 3, Term::Forever);
    writer.close().unwrap();
    let mut writer = open(&sim, DAY + 820);
    assert_eq!(code(writer.remove(&path("a/1"))), 8, "the hold is over, but the law has changed");
    set_term(&mut writer, 3, Term::Years(1));
    writer.remove(&path("a/1")).unwrap();
    writer.close().unwrap();
    assert_eq!(listed(&sim), ["a/2"]);
    is_clean(&sim, "after all");
}

#[test]
pub(super) fn an_older_version_with_a_longer_term_keeps_its_path() {
    let sim = store(8 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 5, Term::Years(1));
    put(&mut writer, "p", 5, 10);
    let second = writer.put(&Put { is_new_version: true, ..Put::new(&path("p"), b"next") }).unwrap();
    assert_eq!(Reader::new(sim.reader(), "sim").stat(&path("p")).unwrap().header.class, 5, "inherited");
    writer.put(&Put { is_new_version: true, class: Some(0), ..Put::new(&path("p"), b"last") }).unwrap();
    assert_eq!(second.version, 2);
    assert_eq!(code(writer.remove(&path("p"))), 8);
}

#[test]
pub(super) fn holds_fill_pages_and_are_found_again() {
    let sim = store(8 << 20);
    let mut writer = open(&sim, DAY);
    let prefix = |n: usize| format!("{n:04}/{}", "x".repeat(900)).into_bytes();
    let mut count = 0;
    while writer.hold(&Hold { prefix: prefix(count), until_day: None }).is_ok() {
        count += 1;
    }
    assert_eq!(count, 12 * 4, "four of 912 bytes a page");
    writer.hold(&Hold { prefix: prefix(7), until_day: Some(DAY + 5) }).unwrap();
    writer.close().unwrap();
    let mut writer = open(&sim, DAY);
    for n in 0..count {
        put(&mut writer, std::str::from_utf8(&prefix(n)).unwrap(), 0, 5);
        assert_eq!(code(writer.remove(&path(std::str::from_utf8(&prefix(n)).unwrap()))), 8, "{n}");
    }
    writer.release(&prefix(20)).unwrap();
    writer.hold(&Hold { prefix: b"new".to_vec(), until_day: None }).unwrap();
    assert_eq!(writer.retention().unwrap().holds.len(), count);
}

#[test]
pub(super) fn an_erased_receipt_is_gone_from_the_disk_and_provably_so() {
    let sim = store(8 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Forever);
    let secret = b"four hundred thousand".repeat(4000);
    let first = writer.put(&Put { class: Some(1), ..Put::new(&path("p"), &secret) }).unwrap();
    writer.put(&Put { is_new_version: true, ..Put::new(&path("p"), &secret[1..]) }).unwrap();
    let other = writer.put(&Put::new(&path("p2"), &secret[2..])).unwrap();
    assert_eq!(code(writer.erase(&path("p"), " ")), 2, "without a reason");
    assert_eq!(code(writer.erase(&path("none"), "why")), 3);
    writer.hold(&Hold { prefix: b"p".to_vec(), until_day: None }).unwrap();
    assert_eq!(code(writer.erase(&path("p"), "why")), 8, "on hold");
    writer.release(b"p").unwrap();
    writer.remove(&path("p2")).unwrap();
    assert_eq!(writer.erase(&path("p"), "court order 7").unwrap().len(), 2, "both versions");
    assert_eq!(code(writer.erase(&path("p"), "again")), 3);
    assert_eq!(writer.erase(&path("p2"), "removed before").unwrap().len(), 1);
    let crashed = sim.fork();
    crashed.crash_host(Fate::Lose);
    assert!(!crashed.holds_bytes(&secret[3..19]), "what is acknowledged as erased is gone for good");
    put(&mut writer, "p", 1, 50);
    writer.close().unwrap();
    let needle = &secret[..16];
    assert!(!sim.holds_bytes(needle), "the data is still on the disk");
    let reader = Reader::new(sim.reader(), "sim");
    assert_eq!(reader.get_locator(&first.locator).unwrap().data().len(), 50, "falls back to the path");
    assert!(matches!(reader.get_locator(&other.locator), Err(Error::NotFound { .. })));
    is_clean(&sim, "erased");
    assert_eq!(listed(&sim), ["p"]);
    // Zeroes that nobody ordered are damage.
    let stored = reader.stat(&path("p")).unwrap().locator();
    let at = crate::layout::block_offset(stored.block) + 144 + 8;
    let mut expected = b"p".iter().cycle().take(50).copied();
    (0..50).for_each(|n| sim.rot(at + n, expected.next().unwrap()));
    let mut named = Vec::new();
    let reader = Reader::new(sim.reader(), "sim");
    crate::verify::verify(&reader, |finding| {
        named.push(finding.path.unwrap());
        Ok(())
    })
    .unwrap();
    assert_eq!(named, ["p"]);
    assert_eq!(code(reader.get(&path("p"))), 5);
}

/// Fills so many segments with receipts of some classes in turn, a day's worth each.
fn fill(
    sim: &Sim,
    writer: &mut Writer<SimWriter>,
    tag: &str,
    classes: &[u8],
    count: usize,
) -> Vec<(String, u8)> {
    let mut names = Vec::new();
    for number in 0..count {
        let class = classes[number % classes.len()];
        let name = format!("{tag}/{class}/{number}");
        put(writer, &name, class, 20_000);
        names.push((name, class));
    }
    assert!(sim.tick() > 0);
    names
}

#[test]
pub(super) fn segments_whose_receipts_have_expired_are_free_again_and_the_chain_is_bridged() {
    let sim = store(6 << 20);
    let mut writer = open(&sim, DAY);
    let first_note = Reader::new(sim.reader(), "sim").note().unwrap();
    set_term(&mut writer, 1, Term::Years(1));
    let names = fill(&sim, &mut writer, "old", &[1], 60);
    writer.close().unwrap();
    let middle_note = Reader::new(sim.reader(), "sim").note().unwrap();
    let free = Reader::new(sim.reader(), "sim").usage().unwrap().free_segments;
    let used = sim.used_bytes();
    let day = DAY + 400;
    let mut writer = open(&sim, day);
    let (totals, _) = run_expire(&sim, &mut writer, Some(day), 0, true).unwrap();
    assert_eq!(
        Reader::new(sim.reader(), "sim").usage().unwrap().free_segments,
        free,
        "a dry run changes nothing"
    );
    let (done, gone) = run_expire(&sim, &mut writer, Some(day), 0, false).unwrap();
    assert_eq!((totals.segments, totals.expired), (done.segments, done.expired), "and says what would be");
    assert!(done.segments >= 3, "{done:?}");
    is_clean(&sim, "while the writer is open");
    writer.close().unwrap();
    let reader = Reader::new(sim.reader(), "sim");
    assert!(reader.usage().unwrap().free_segments + 1 >= free + done.segments, "one may have been opened");
    assert!(sim.used_bytes() < used, "the room was given back");
    for (name, _) in &names {
        match reader.get(&path(name)) {
            Ok(receipt) => assert!(receipt.data().starts_with(name.as_bytes()) && !gone.contains(name)),
            Err(Error::NotFound { .. }) => assert!(gone.contains(name), "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
    is_clean(&sim, "expired");
    assert_eq!(listed(&sim).len() + gone.len(), names.len());
    let last_note = reader.note().unwrap();
    for note in [&middle_note, &last_note] {
        reader.verify_from(note, |_, _| {}).unwrap();
    }
    assert!(reader.verify_from(&first_note, |_, _| {}).is_ok(), "the log from its beginning, over the gap");
    // The store goes round: what was freed is written over and freed again.
    let mut at = day;
    for round in 0..12 {
        at += 370;
        let mut writer = open(&sim, at - 5);
        fill(&sim, &mut writer, &format!("round{round}"), &[1], 40);
        writer.close().unwrap();
        let mut writer = open(&sim, at + 370);
        run_expire(&sim, &mut writer, Some(at + 370), 0, false).unwrap();
        writer.close().unwrap();
        is_clean(&sim, &format!("round {round}"));
        at += 370;
    }
    let mut followed = 0;
    let reader = Reader::new(sim.reader(), "sim");
    let mut follower = reader.follow(Some(0)).unwrap();
    reader
        .poll(&mut follower, |_| {
            followed += 1;
            Ok(())
        })
        .unwrap();
    assert!(followed > 0, "a follower jumps over what has gone");
    let fact = reader.verify_from(&middle_note, |_, _| {}).unwrap_err().to_string();
    assert!(fact.contains("retired"), "{fact}");
}

#[test]
pub(super) fn mixed_classes_free_their_room_by_copying_what_stays() {
    let sim = store(8 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    set_term(&mut writer, 2, Term::Years(10));
    let names = fill(&sim, &mut writer, "mix", &[1, 1, 1, 2], 100);
    writer.hold(&Hold { prefix: b"mix/1/0".to_vec(), until_day: None }).unwrap();
    writer.close().unwrap();
    let day = DAY + 400;
    let mut writer = open(&sim, day);
    let before = Reader::new(sim.reader(), "sim").usage().unwrap().free_segments;
    let (totals, gone) = run_expire(&sim, &mut writer, Some(day), COMPACT_PERCENT, false).unwrap();
    writer.close().unwrap();
    assert!(totals.segments >= 8 && totals.moved >= 20, "{totals:?}");
    let reader = Reader::new(sim.reader(), "sim");
    assert!(reader.usage().unwrap().free_segments > before + 4);
    let mut counts = BTreeMap::new();
    for (name, class) in &names {
        let stat = match reader.get(&path(name)) {
            Ok(receipt) => {
                assert!(receipt.data().starts_with(name.as_bytes()));
                Some(receipt.stat())
            }
            Err(Error::NotFound { .. }) => None,
            Err(error) => panic!("{name}: {error}"),
        };
        if *class == 2 || name == "mix/1/0" {
            let header = stat.expect("kept").header;
            assert_eq!((header.class, header.issued_day, header.version), (*class, DAY, 1));
            assert_eq!(
                header.recorded_at_ms,
                u64::from(DAY) * crate::day::DAY_MS,
                "when it was first recorded"
            );
        } else {
            *counts.entry(stat.is_none()).or_insert(0) += 1;
        }
    }
    assert_eq!(counts.get(&true).copied(), Some(gone.len()));
    is_clean(&sim, "copied");
    // Without copying, the expired ones go by path at least.
    let mut writer = open(&sim, DAY + 4100);
    let (totals, gone) = run_expire(&sim, &mut writer, Some(DAY + 4100), 0, false).unwrap();
    assert!(!gone.is_empty(), "{totals:?}");
    writer.close().unwrap();
    is_clean(&sim, "ten years later");
}

/// Stops a step at every device operation, lets a crash decide, recovers, and looks.
fn crash_everywhere(
    base: &Sim,
    day: u32,
    step: impl Fn(&Sim, &mut Writer<SimWriter>) -> Result<()>,
    check: impl Fn(&Sim, &str),
) {
    base.freeze();
    let run = |sim: &Sim, stop: Option<(u64, u64)>| -> Result<()> {
        let device = sim.writer();
        if let Some((op, sectors)) = stop {
            sim.stop_at(op, sectors);
        }
        let mut writer = Writer::open(device, &options(day))?;
        step(sim, &mut writer)?;
        writer.close()
    };
    let whole = base.fork();
    run(&whole, None).unwrap();
    check(&whole, "no crash");
    let mut rng = Rng(11);
    for op in 0..whole.ops() {
        for fate in 0..5 {
            let sim = base.fork();
            let stopped = run(&sim, Some((op, rng.below(300))));
            assert!(stopped.is_err(), "operation {op} stops the writer");
            match fate {
                0 => sim.crash_host(Fate::Lose),
                1 => sim.crash_guest(),
                _ => sim.crash_host(Fate::Random(&mut rng)),
            }
            let story = format!("stopped at operation {op}, fate {fate}");
            if rng.chance(30) {
                // Recovery stops, too.
                let device = sim.writer();
                sim.stop_at(rng.below(40), rng.below(300));
                let _ = Writer::open(device, &options(day)).and_then(Writer::close); // stopped on the way, or not
                sim.crash_host(Fate::Random(&mut rng));
            }
            open(&sim, day).close().unwrap_or_else(|error| panic!("{story}: {error}"));
            check(&sim, &story);
            run(&sim, None).unwrap_or_else(|error| panic!("{story}, again: {error}"));
            check(&sim, &format!("{story}, again"));
        }
    }
}

#[test]
pub(super) fn a_crash_at_every_operation_of_an_erasure() {
    let sim = store(4 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Forever);
    let secret = b"secret sixteen b".repeat(3000);
    writer.put(&Put { class: Some(1), ..Put::new(&path("p"), &secret) }).unwrap();
    put(&mut writer, "q", 1, 9000);
    writer.close().unwrap();
    let erase = |_: &Sim, writer: &mut Writer<SimWriter>| match writer.erase(&path("p"), "order") {
        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    };
    crash_everywhere(&sim, DAY, erase, |sim, story| {
        is_clean(sim, story);
        let reader = Reader::new(sim.reader(), "sim");
        assert!(reader.get(&path("q")).unwrap().data().starts_with(b"qq"), "{story}");
        match reader.get(&path("p")) {
            Ok(receipt) => assert_eq!(receipt.data(), secret, "{story}"),
            Err(Error::NotFound { .. }) => {
                assert!(!sim.holds_bytes(&secret[..16]), "{story}: still on the disk")
            }
            Err(error) => panic!("{story}: {error}"),
        }
    });
}

#[test]
pub(super) fn a_crash_at_every_operation_of_expiry() {
    let sim = store(3 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    set_term(&mut writer, 2, Term::Years(10));
    let names = fill(&sim, &mut writer, "m", &[1, 1, 2], 30);
    writer.close().unwrap();
    let day = DAY + 400;
    let step = |sim: &Sim, writer: &mut Writer<SimWriter>| {
        run_expire(sim, writer, Some(day), COMPACT_PERCENT, false).map(drop)?;
        writer.put(&Put::new(&path(&format!("after/{}", writer.last_seq())), &[5; 150_000])).map(drop)
    };
    crash_everywhere(&sim, day, step, |sim, story| {
        is_clean(sim, story);
        let reader = Reader::new(sim.reader(), "sim");
        let mut there = Vec::new();
        for (name, class) in &names {
            match reader.get(&path(name)) {
                Ok(receipt) => {
                    assert!(receipt.data().starts_with(name.as_bytes()), "{story}: {name}");
                    there.push(name.clone());
                }
                Err(Error::NotFound { .. }) if *class == 1 => {}
                Err(error) => panic!("{story}: {name}: {error}"),
            }
        }
        let listed = listed(sim).into_iter().filter(|name| name.starts_with("m/"));
        there.sort();
        assert_eq!(listed.collect::<Vec<_>>(), there, "{story}: listing");
    });
}

#[test]
pub(super) fn a_full_disk_still_takes_removals_and_expiry() {
    let sim = store(2 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    let mut names = Vec::new();
    for len in [60_000, 3000, 10] {
        for number in 0.. {
            let name = path(&format!("{len}/{number}"));
            match writer.put(&Put { class: Some(1), ..Put::new(&name, &vec![1; len]) }) {
                Ok(_) => names.push(name),
                Err(Error::NoSpace { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    writer.close().unwrap();
    let mut writer = open(&sim, DAY + 500);
    writer.hold(&Hold { prefix: b"none".to_vec(), until_day: None }).unwrap();
    let (totals, _) = run_expire(&sim, &mut writer, Some(DAY + 500), COMPACT_PERCENT, false).unwrap();
    assert!(totals.segments >= 4, "{totals:?}");
    put(&mut writer, "room again", 1, 60_000);
    writer.close().unwrap();
    is_clean(&sim, "full and free again");
}

/// What a store of `segment_count` segments of 256 KiB becomes when the disk grows to so many more.
#[test]
pub(super) fn ten_small_growths_in_a_row_keep_everything_and_old_readers_go_on() {
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

#[test]
pub(super) fn a_crash_at_every_operation_of_growth() {
    let sim = store(3 << 20);
    let mut writer = open(&sim, DAY);
    let names: Vec<String> = (0..20).map(|n| format!("n/{n}")).collect();
    for name in &names {
        put(&mut writer, name, 0, 50_000);
    }
    writer.close().unwrap();
    sim.resize(80 << 20);
    let step = |_: &Sim, writer: &mut Writer<SimWriter>| {
        writer.grow()?;
        let number = writer.last_seq();
        writer.put(&Put::new(&path(&format!("later/{number}")), &[9; 200_000])).map(drop)
    };
    crash_everywhere(&sim, DAY, step, |sim, story| {
        is_clean(sim, story);
        let reader = Reader::new(sim.reader(), "sim");
        assert!(names.iter().all(|name| reader.get(&path(name)).is_ok()), "{story}");
    });
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

#[test]
pub(super) fn a_crash_at_every_operation_of_the_recovery_of_an_erasure() {
    let base = store(4 << 20);
    let mut writer = open(&base, DAY);
    set_term(&mut writer, 1, Term::Forever);
    let secret = b"secret sixteen b".repeat(3000);
    writer.put(&Put { class: Some(1), ..Put::new(&path("p"), &secret) }).unwrap();
    writer.close().unwrap();
    base.freeze();
    let erase = |sim: &Sim, stop: Option<u64>| -> Result<()> {
        let device = sim.writer();
        if let Some(op) = stop {
            sim.stop_at(op, 2);
        }
        Writer::open(device, &options(DAY))?.erase(&path("p"), "order").map(drop)
    };
    let whole = base.fork();
    erase(&whole, None).unwrap();
    let mut rng = Rng(5);
    for op in (0..whole.ops()).rev().take(8) {
        let stopped = base.fork();
        erase(&stopped, Some(op)).unwrap_err();
        stopped.crash_host(Fate::Keep);
        for recovery_op in 0.. {
            let mut is_over = false;
            for _ in 0..6 {
                let sim = stopped.fork();
                let device = sim.writer();
                sim.stop_at(recovery_op, rng.below(100));
                is_over = Writer::open(device, &options(DAY)).is_ok();
                sim.crash_host(Fate::Random(&mut rng));
                open(&sim, DAY).close().unwrap();
                let story = format!("stopped at operation {op}, recovery at {recovery_op}");
                is_clean(&sim, &story);
                if Reader::new(sim.reader(), "sim").get(&path("p")).is_err() {
                    assert!(!sim.holds_bytes(&secret[..16]), "{story}: still on the disk");
                }
            }
            if is_over {
                break;
            }
        }
    }
}

/// Two data segments: the one that was retired is the next one to be opened, while its Retire record is still in the window.
#[test]
pub(super) fn a_retired_segment_that_was_opened_again_is_not_discarded() {
    let sim = store(1 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    for number in 0..4 {
        put(&mut writer, &format!("old/{number}"), 1, 50_000);
    }
    for number in 0..4 {
        put(&mut writer, &format!("kept/{number}"), 0, 50_000);
    }
    writer.close().unwrap();
    let day = DAY + 400;
    let step = |sim: &Sim, writer: &mut Writer<SimWriter>| {
        run_expire(sim, writer, Some(day), 0, false)?;
        for number in 0..2 {
            writer.put(&Put::new(&path(&format!("new/{number}")), &[number; 70_000]))?;
        }
        Ok(())
    };
    crash_everywhere(&sim, day, step, |sim, story| {
        is_clean(sim, story);
        let reader = Reader::new(sim.reader(), "sim");
        for number in 0..4 {
            let name = format!("kept/{number}");
            assert!(reader.get(&path(&name)).unwrap().data().starts_with(name.as_bytes()), "{story}");
        }
        for number in 0..2 {
            match reader.get(&path(&format!("new/{number}"))) {
                Ok(receipt) => assert_eq!(receipt.data(), [number; 70_000], "{story}"),
                Err(Error::NotFound { .. }) => {}
                Err(error) => panic!("{story}: {error}"),
            }
        }
    });
}

#[test]
pub(super) fn a_segment_that_recovery_needs_is_not_retired() {
    let sim = store(2 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    writer.close().unwrap();
    let step = |sim: &Sim, writer: &mut Writer<SimWriter>| {
        for number in 0..9 {
            let name = path(&format!("{}/{number}", writer.last_seq()));
            writer.put(&Put { class: Some(1), issued_day: Some(1000), ..Put::new(&name, &[7; 60_000]) })?;
            run_expire(sim, writer, Some(DAY), 0, false)?;
        }
        Ok(())
    };
    crash_everywhere(&sim, DAY, step, is_clean);
}

#[test]
pub(super) fn what_was_removed_does_not_come_back_when_the_record_of_its_removal_expires() {
    let sim = store(4 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    put(&mut writer, "removed", 0, 1000);
    for number in 0..6 {
        put(&mut writer, &format!("stays/{number}"), 0, 50_000); // the first segment and the beginning of the second
    }
    writer.remove(&path("removed")).unwrap();
    for number in 0..12 {
        put(&mut writer, &format!("goes/{number}"), 1, 50_000);
    }
    writer.remove(&path("stays/4")).unwrap();
    writer.remove(&path("stays/5")).unwrap();
    writer.close().unwrap();
    for percent in [0, COMPACT_PERCENT] {
        let mut writer = open(&sim, DAY + 400);
        run_expire(&sim, &mut writer, Some(DAY + 400), percent, false).unwrap();
        writer.close().unwrap();
        let listed = listed(&sim);
        assert!(!listed.contains(&"removed".to_owned()), "{listed:?}");
        is_clean(&sim, "expired");
    }
}

#[test]
pub(super) fn a_hold_that_comes_while_expiry_runs_counts() {
    let sim = store(6 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    let names = fill(&sim, &mut writer, "h", &[1], 60);
    writer.close().unwrap();
    let day = DAY + 400;
    let mut writer = open(&sim, day);
    let reader = Reader::new(sim.reader_of_now(), "sim");
    let options = ExpireOptions { is_dry_run: false, today: Some(day), compact_percent: 50, clock_day: day };
    let mut steps = 0;
    let mut gone = Vec::new();
    expire(
        &reader,
        &mut |step| {
            steps += 1;
            if steps == 4 {
                // Between looking at a segment and retiring it.
                writer.hold(&Hold { prefix: b"h/".to_vec(), until_day: None })?;
            }
            step(&mut writer)
        },
        options,
        |event| {
            if let ExpireEvent::Expired(path, _) = event {
                gone.push(path.to_string());
            }
            Ok(())
        },
    )
    .unwrap();
    writer.close().unwrap();
    assert!(!gone.is_empty() && gone.len() < 40, "{} have gone", gone.len());
    let reader = Reader::new(sim.reader(), "sim");
    for (name, _) in names.iter().filter(|(name, _)| !gone.contains(name)) {
        assert!(reader.get(&path(name)).is_ok(), "{name} is on hold");
    }
    is_clean(&sim, "held meanwhile");
}

/// A reader that found an entry and stalls until the segment is freed and written over gets the right bytes or none.
#[test]
pub(super) fn a_reader_that_stalls_over_expiry_gets_right_bytes_or_none() {
    let sim = store(2 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    let mut names = Vec::new();
    let first_tick = sim.tick();
    for round in 0..6 {
        names.extend(fill(&sim, &mut writer, &format!("r{round}"), &[1], 30));
        writer.close().unwrap();
        let day = DAY + 400 * (round + 1);
        writer = open(&sim, day);
        run_expire(&sim, &mut writer, Some(day), 0, false).unwrap();
    }
    drop(writer);
    let mut rng = Rng(3);
    let (mut hits, mut misses) = (0, 0);
    for _ in 0..3000 {
        let start = first_tick + rng.below(sim.tick() - first_tick);
        let step = [0, 10, 200, 3000, 30_000][usize::try_from(rng.below(5)).unwrap()];
        let reader = Reader::new(sim.past(start, sim.tick(), step, rng.number()), "sim");
        let (name, _) = &names[usize::try_from(rng.below(names.len() as u64)).unwrap()];
        match reader.get(&path(name)) {
            Ok(receipt) => {
                let right: Vec<u8> = name.bytes().cycle().take(20_000).collect();
                assert_eq!(receipt.data(), right, "{name}");
                hits += 1;
            }
            Err(Error::NotFound { .. } | Error::Pending { .. }) => misses += 1,
            Err(error) => panic!("{name}: {error}"),
        }
    }
    assert!(hits > 100 && misses > 100, "{hits} hits, {misses} misses");
}

/// The disk has not discarded anything, the segment table is lost, and a repair builds it anew: what was retired, removed and erased stays away.
#[test]
pub(super) fn a_repair_of_the_segment_table_brings_nothing_back() {
    use crate::Device;
    use crate::layout::{PAGE_TABLE, page_offset};
    let sim = store(4 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    put(&mut writer, "removed", 0, 30_000);
    put(&mut writer, "erased", 0, 30_000);
    let mut names = fill(&sim, &mut writer, "s", &[1, 1, 1, 0], 90);
    writer.remove(&path("removed")).unwrap();
    writer.erase(&path("erased"), "order").unwrap();
    writer.close().unwrap();
    let mut before = vec![0; 4 << 20];
    sim.reader().read(0, &mut before).unwrap();
    let mut writer = open(&sim, DAY + 400);
    let mut freed = Vec::new();
    let reader = Reader::new(sim.reader_of_now(), "sim");
    let options_now = ExpireOptions {
        is_dry_run: false,
        today: Some(DAY + 400),
        compact_percent: 50,
        clock_day: DAY + 400,
    };
    expire(&reader, &mut |step| step(&mut writer), options_now, |event| {
        if let ExpireEvent::Retired { segment, .. } = event {
            freed.push(segment);
        }
        Ok(())
    })
    .unwrap();
    writer.close().unwrap();
    assert!(freed.len() >= 4, "{freed:?}");
    let expected = listed(&sim);
    let device = sim.writer();
    let superblock = Reader::new(sim.reader(), "sim").superblock().unwrap();
    for segment in freed {
        // Only what nobody has written over since.
        let entry = crate::table::read_entry(&device, &superblock, segment).unwrap();
        if entry.state == crate::table::SegmentState::Free {
            let start = usize::try_from(segment * superblock.geometry.segment_bytes).unwrap();
            device.write(start as u64, &before[start..start + (256 << 10)]).unwrap();
        }
    }
    device.write(page_offset(PAGE_TABLE), &[0; 8192]).unwrap();
    device.flush().unwrap();
    let mut left = Vec::new();
    crate::repair::repair(sim.writer(), &options(DAY + 400), &mut |_| {}, &mut |outcome| {
        left.extend((!outcome.is_mended).then_some(outcome.finding));
        Ok(())
    })
    .unwrap();
    assert!(left.is_empty(), "{left:?}");
    is_clean(&sim, "repaired");
    assert_eq!(listed(&sim), expected);
    names.retain(|(name, _)| !expected.contains(name));
    let reader = Reader::new(sim.reader(), "sim");
    for name in names.iter().map(|(name, _)| name.as_str()).chain(["removed", "erased"]) {
        assert!(matches!(reader.get(&path(name)), Err(Error::NotFound { .. })), "{name} is back");
    }
    let mut writer = open(&sim, DAY + 400);
    fill(&sim, &mut writer, "later", &[0], 60); // into what is free
    writer.close().unwrap();
    is_clean(&sim, "written to after the repair");
}
