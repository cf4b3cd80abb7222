//! Terms, holds, erasure, expiry and room, directed: what each refuses, what it frees, and a crash at every operation of each.

mod asked;
mod crashes;
mod expiry;
mod failing;
mod forecast;
mod growth;
mod ids;
mod meanwhile;
mod pacing;
mod rot;

pub(super) use crashes::*;
pub(super) use expiry::*;
pub(super) use meanwhile::*;
pub(super) use pacing::*;
pub(super) use rot::*;

use super::{Fate, Sim, SimWriter};
use crate::expire::{ExpireEvent, ExpireOptions, ExpireTotals, expire};
use crate::policy::Term;
use crate::{
    Device, Error, FormatOptions, Hold, Put, Reader, ReceiptPath, Result, Writer, WriterOptions, format,
};

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
    let options = ExpireOptions {
        is_dry_run,
        today,
        compact_percent: percent,
        ..ExpireOptions::of_day(writer.clock_day())
    };
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
    let at = crate::layout::block_offset(reader.stat(&path("p")).unwrap().header.block);
    let mut block = vec![0; 4096];
    sim.reader().read(at, &mut block).unwrap();
    (at..).zip(block).skip(144 + 8).for_each(|(at, byte)| sim.rot(at, byte));
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
