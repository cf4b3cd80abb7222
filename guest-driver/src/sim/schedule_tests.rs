//! Many seeded schedules on all cores.
//!
//! `RECEIPT_SCHEDULES=100000 cargo test -p receipt schedule` runs that many (10,000 by default, 100,000 in CI), `RECEIPT_SEED=n` begins
//! with seed n. A failing seed is printed with the command that repeats it.

use super::world;
use crate::rules::Rule;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number from the environment.
pub(super) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs seeds on all cores with some rules removed; returns the seeds that went wrong, in order, with the first faults.
/// A panic counts as going wrong.
pub(super) fn run_seeds(
    seeds: std::ops::Range<u64>,
    removed: &'static [Rule],
    run: fn(u64) -> Vec<String>,
) -> Vec<(u64, String)> {
    let next = AtomicU64::new(seeds.start);
    let bad = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                Rule::remove(removed);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let faults = std::panic::catch_unwind(|| run(seed))
                        .unwrap_or_else(|_| vec!["panic (an invariant of the code)".to_owned()]);
                    if !faults.is_empty() {
                        bad.lock().unwrap().push((seed, faults.join("; ")));
                    }
                }
            });
        }
    });
    let mut bad = bad.into_inner().unwrap();
    bad.sort();
    bad
}

/// Runs as many schedules as the environment says and fails with the seeds that went wrong.
pub(super) fn assert_good(run: fn(u64) -> Vec<String>, test: &str, default: u64) {
    let default = if std::env::var_os("CI").is_some() { default * 10 } else { default };
    let count = number("RECEIPT_SCHEDULES").unwrap_or(default);
    let first = number("RECEIPT_SEED").unwrap_or(0);
    let bad = run_seeds(first..first + count, &[], run);
    let story: Vec<String> = bad
        .iter()
        .take(5)
        .map(|(seed, faults)| {
            format!(
                "seed {seed}: {faults}\n  again: RECEIPT_SEED={seed} RECEIPT_SCHEDULES=1 RECEIPT_TRACE=1 cargo test -p receipt --lib {test} -- --nocapture"
            )
        })
        .collect();
    assert!(bad.is_empty(), "{} of {count} schedules went wrong, e.g.\n{}", bad.len(), story.join("\n"));
}

#[test]
fn no_schedule_loses_tears_or_invents_a_receipt() {
    assert_good(world::run, "no_schedule_loses", 10_000);
}
