//! The pace of expiry: pauses between steps, small pieces, and what may happen in a pause.

use super::{DAY, is_clean, open, path, put, set_term};
use crate::expire::{ExpireOptions, ExpireTotals, WithWriter, expire};
use crate::layout::block_offset;
use crate::pace::Pace;
use crate::policy::Term;
use crate::sim::{Sim, SimWriter};
use crate::table::SegmentState;
use crate::{Error, FormatOptions, Put, Reader, Result, Writer, format};
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

const SEGMENT_BYTES: u64 = 4 << 20;

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
    static PAUSES: RefCell<Vec<Duration>> = const { RefCell::new(Vec::new()) };
    static IN_STEP: Cell<bool> = const { Cell::new(false) };
    static STEPS: Cell<u32> = const { Cell::new(0) };
}

/// A clock that goes on by 10 ms each time that it is looked at.
fn now() -> Instant {
    let now = NOW.get().unwrap_or_else(Instant::now) + Duration::from_millis(10);
    NOW.set(Some(now));
    now
}

fn pause(time: Duration) {
    assert!(!IN_STEP.get(), "a pause while the writer is held");
    PAUSES.with_borrow_mut(|pauses| pauses.push(time));
    NOW.set(NOW.get().map(|now| now + time));
}

/// Segments of 4 MiB, full of receipts that expire and one in eight that is kept.
fn full_store() -> Sim {
    let sim = Sim::new(64 << 20);
    let options = FormatOptions { segment_bytes: Some(SEGMENT_BYTES), ..FormatOptions::default() };
    format(&sim.writer(), &options).unwrap();
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    set_term(&mut writer, 2, Term::Years(10));
    for number in 0..130 {
        put(&mut writer, &format!("p/{number}"), if number % 8 == 0 { 2 } else { 1 }, 100_000);
    }
    writer.close().unwrap();
    sim
}

fn run(sim: &Sim, writer: &mut Writer<SimWriter>, work_percent: u8) -> ExpireTotals {
    let reader = Reader::new(sim.reader_of_now(), "sim");
    let pace = Pace { work_percent, now, pause };
    let options = ExpireOptions { pace, ..ExpireOptions::of_day(DAY + 400) };
    let steps: WithWriter<'_, SimWriter> = &mut |step| {
        IN_STEP.set(true);
        STEPS.set(STEPS.get() + 1);
        let done = step(writer);
        IN_STEP.set(false);
        done
    };
    expire(&reader, steps, options, |_| Ok(())).unwrap()
}

#[test]
fn a_pause_follows_each_step_and_is_as_long_as_the_pace_says() {
    let base = full_store();
    base.freeze();
    let mut seen = Vec::new();
    for work_percent in [100, 20, 50] {
        let sim = base.fork();
        let mut writer = open(&sim, DAY + 400);
        PAUSES.take();
        STEPS.set(0);
        let flushes = sim.counts().flushes;
        let totals = run(&sim, &mut writer, work_percent);
        assert_eq!((totals.segments, totals.freed_bytes > 8 << 20), (3, true), "{totals:?}");
        assert_eq!(sim.counts().discards, 12, "pieces of a mebibyte");
        writer.close().unwrap();
        is_clean(&sim, "expired");
        seen.push((PAUSES.take(), STEPS.get(), sim.counts().flushes - flushes));
    }
    let [(none, _, whole), (long, steps, paced), (short, ..)] = &seen[..] else { panic!() };
    assert!(none.is_empty(), "without pauses: {none:?}");
    assert!(long.len() >= usize::try_from(*steps).unwrap() - 1, "{} pauses, {steps} steps", long.len());
    // Each look at the clock is 10 ms of work: the pauses are four times, and once, as long as the work.
    assert!(long.iter().all(|pause| *pause == Duration::from_millis(40)), "{long:?}");
    assert!(short.iter().all(|pause| *pause == Duration::from_millis(10)), "{short:?}");
    assert!(paced > whole, "copies in smaller commits: {paced} flushes, without pauses {whole}");
}

/// A run that ends between two discards is gone on with by the next one.
#[test]
fn what_a_run_that_ended_did_not_give_back_the_next_one_does() {
    let sim = full_store();
    let mut writer = open(&sim, DAY + 400);
    let reader = Reader::new(sim.reader_of_now(), "sim");
    let steps: WithWriter<'_, SimWriter> = &mut |step| {
        if sim.counts().discards == 2 {
            return Err(Error::Usage("ended".to_owned()));
        }
        step(&mut writer)
    };
    let ended = expire(&reader, steps, ExpireOptions::of_day(DAY + 400), |_| Ok(()));
    assert!(matches!(ended, Err(Error::Usage(_))), "{ended:?}");
    let freed = reader.retired_segments().unwrap();
    assert!(freed.len() == 1 && freed[0].receipts > 0, "the first block is given back last: {freed:?}");
    let mut writer = open(&sim, DAY + 400);
    run(&sim, &mut writer, 100);
    assert!(sim.counts().discards >= 2 + 12, "{} discards", sim.counts().discards);
}

/// In a pause a receipt opens the segment that is being given back.
#[test]
pub(in crate::sim) fn a_segment_that_is_opened_between_two_discards_keeps_what_is_stored_there() {
    let sim = full_store();
    let mut writer = open(&sim, DAY + 400);
    let mut stored = Vec::new();
    let mut opened_while_discarded = false;
    let reader = Reader::new(sim.reader_of_now(), "sim");
    let steps: WithWriter<'_, SimWriter> = &mut |step| {
        if sim.counts().discards > 0 && !opened_while_discarded {
            // Round the end of the disk, until the first segment is open again.
            let first = reader.superblock()?.geometry.regions[0].first_segment + 1;
            while writer.pages().table_entry(first)?.state == SegmentState::Free {
                let name = format!("new/{}", stored.len());
                writer.put(&Put { class: Some(2), ..Put::new(&path(&name), &[7; 1_000_000]) })?;
                stored.push(name);
            }
            opened_while_discarded = true;
        }
        step(&mut writer)
    };
    let done: Result<ExpireTotals> = expire(&reader, steps, ExpireOptions::of_day(DAY + 400), |_| Ok(()));
    done.unwrap();
    writer.close().unwrap();
    assert!(opened_while_discarded && stored.len() > 20, "{} stored", stored.len());
    is_clean(&sim, "opened between two discards");
    let geometry = &reader.superblock().unwrap().geometry;
    let first_bytes = block_offset(geometry.first_block(geometry.regions[0].first_segment + 1));
    let at_bytes = |name: &String| block_offset(reader.stat(&path(name)).unwrap().header.block);
    let in_first =
        stored.iter().filter(|name| (first_bytes..first_bytes + SEGMENT_BYTES).contains(&at_bytes(name)));
    assert!(in_first.count() > 0, "nothing was stored where it was discarded");
    assert!(stored.iter().all(|name| reader.get(&path(name)).unwrap().data() == [7; 1_000_000]));
}
