//! What a dry run of expiry says.

use super::{DAY, is_clean, open, path, put, set_term, store};
use crate::expire::{ExpireEvent, ExpireOptions, ExpireTotals, expire};
use crate::policy::Term;
use crate::sim::{Rng, Sim, SimWriter};
use crate::{Error, Reader, Writer};
use std::collections::HashSet;

fn usize_below(rng: &mut Rng, end: u64) -> usize {
    usize::try_from(rng.below(end)).unwrap()
}

/// What a run says: sums, what has gone, and how many segments it has emptied to make room, after it had kept them.
fn run(sim: &Sim, writer: &mut Writer<SimWriter>, is_dry_run: bool) -> (ExpireTotals, Vec<String>, u64) {
    let reader = Reader::new(sim.reader_of_now(), "sim");
    let options = ExpireOptions { is_dry_run, today: None, ..ExpireOptions::of_day(writer.clock_day()) };
    let (mut gone, mut kept, mut emptied) = (Vec::new(), HashSet::new(), 0);
    let totals = expire(&reader, &mut |step| step(writer), options, |event| {
        match event {
            ExpireEvent::Expired(path, _) => gone.push(path.to_string()),
            ExpireEvent::Kept { segment, .. } => drop(kept.insert(segment)),
            ExpireEvent::Retired { segment, .. } => emptied += u64::from(kept.contains(&segment)),
            ExpireEvent::Progress(..) => {}
        }
        Ok(())
    });
    gone.sort();
    (totals.unwrap(), gone, emptied)
}

/// Ten years of a store whose removals and erasures hold its segments, so that it must make room: a dry run before each run says the same, path by path.
#[test]
fn a_dry_run_says_what_the_run_after_it_does() {
    let sim = store(24 << 20);
    let mut rng = Rng(7);
    for (class, term) in [(1, Term::Years(1)), (2, Term::YearEnd(2)), (3, Term::Years(9))] {
        set_term(&mut open(&sim, DAY), class, term);
    }
    let (mut segments, mut emptied) = (0, 0);
    for month in 0..120_u32 {
        let day = DAY + 30 * month;
        let mut writer = open(&sim, day);
        for number in 0..25 {
            let class = [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 0][number % 12];
            put(&mut writer, &format!("{month}/{number}"), class, 500 + usize_below(&mut rng, 3000));
        }
        for age in [0, 5, 20] {
            let name = format!("{}/{}", month.saturating_sub(age), usize_below(&mut rng, 25));
            match writer.erase(&path(&name), "order") {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        writer.close().unwrap();
        let mut writer = open(&sim, day);
        let (would, done) = (run(&sim, &mut writer, true), run(&sim, &mut writer, false));
        writer.close().unwrap();
        assert_eq!(would, done, "month {month}");
        segments += done.0.segments;
        emptied += done.2;
    }
    is_clean(&sim, "in the end");
    assert!(segments > 50 && emptied > 0, "{segments} segments, {emptied} of them to make room");
}
