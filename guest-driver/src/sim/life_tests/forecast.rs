//! What a dry run of expiry says.

use super::{DAY, is_clean, open, path, put, run_expire, set_term, store};
use crate::expire::{COMPACT_PERCENT, ExpireTotals};
use crate::policy::Term;
use crate::sim::Rng;
use crate::{Error, Reader};

fn usize_below(rng: &mut Rng, end: u64) -> usize {
    usize::try_from(rng.below(end)).unwrap()
}

/// Years of a store whose removals hold its segments, so that every run copies and makes room: a dry run before each says the same, path by path.
#[test]
fn a_dry_run_says_what_the_run_after_it_does() {
    let mut sums = ExpireTotals::default();
    for seed in 1..=4 {
        let sim = store(40 << 20);
        let mut rng = Rng(seed);
        for (class, term) in [(1, Term::Years(1)), (2, Term::YearEnd(2)), (3, Term::Years(9))] {
            set_term(&mut open(&sim, DAY), class, term);
        }
        for month in 0..60 {
            let day = DAY + 30 * month;
            let mut writer = open(&sim, day);
            for number in 0..40 {
                let class = [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 0][usize_below(&mut rng, 12)];
                put(&mut writer, &format!("{month}/{number}"), class, 500 + usize_below(&mut rng, 3000));
            }
            for _ in 0..usize_below(&mut rng, 3) {
                let (month, number) =
                    (usize_below(&mut rng, u64::from(month) + 1), usize_below(&mut rng, 40));
                match writer.remove(&path(&format!("{month}/{number}"))) {
                    Ok(_) | Err(Error::Kept { .. } | Error::NotFound { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            writer.close().unwrap();
            let mut writer = open(&sim, day);
            let story = format!("seed {seed}, month {month}");
            let (would, mut would_go) = run_expire(&sim, &mut writer, None, COMPACT_PERCENT, true).unwrap();
            let (done, mut gone) = run_expire(&sim, &mut writer, None, COMPACT_PERCENT, false).unwrap();
            would_go.sort();
            gone.sort();
            assert_eq!((would, would_go), (done, gone), "{story}");
            writer.close().unwrap();
            sums.moved += done.moved;
            sums.segments += done.segments;
        }
        is_clean(&sim, "in the end");
        let usage = Reader::new(sim.reader(), "sim").usage().unwrap();
        assert!(usage.free_segments > 10, "{usage:?}");
    }
    assert!(sums.moved > 500 && sums.segments > 100, "{sums:?}");
}
