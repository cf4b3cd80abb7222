//! A disk that fails one operation, at each operation in turn, under expiry, erasure, holds, the policy and growth. What was acknowledged holds after a power
//! failure; what was not may have happened or not; nothing else changes, and the next run gets to the end.

use super::crashes::{still_there, store_of_two_terms};
use super::meanwhile::store_with_copy_left;
use super::{DAY, is_clean, listed, open, options, path, put, run_expire, set_term, store};
use crate::expire::COMPACT_PERCENT;
use crate::log::read_blocks;
use crate::policy::{Retention, Term};
use crate::sim::{Fate, Rng, Sim, SimWriter};
use crate::{Error, Hold, Locator, Put, Reader, Result, Writer};

/// Fails each operation of opening, `step` and closing once. `check` gets whether `step` was acknowledged.
fn fail_everywhere(
    base: &Sim,
    day: u32,
    step: impl Fn(&Sim, &mut Writer<SimWriter>) -> Result<()>,
    check: impl Fn(&Sim, bool, &str),
) {
    base.freeze();
    let mut rng = Rng(23);
    let mut failures = 0;
    for op in 0.. {
        let mut is_over = false;
        for fate in 0..3 {
            let sim = base.fork();
            let device = sim.writer();
            sim.fail_at(op);
            let mut is_done = false;
            let ended = Writer::open(device, &options(day)).and_then(|mut writer| {
                step(&sim, &mut writer)?;
                is_done = true;
                writer.close()
            });
            is_over = sim.ops() <= op;
            let story = format!("operation {op} failed, fate {fate}, {ended:?}");
            if let Err(error) = &ended {
                failures += 1;
                assert!(matches!(error, Error::Device(_)), "{story}");
            }
            match fate {
                0 => sim.crash_host(Fate::Lose),
                1 => sim.crash_host(Fate::Random(&mut rng)),
                _ => {} // the same machine goes on
            }
            open(&sim, day).close().unwrap_or_else(|error| panic!("{story}: {error}"));
            is_clean(&sim, &story);
            check(&sim, is_done, &story);
            let mut writer = open(&sim, day);
            step(&sim, &mut writer).unwrap_or_else(|error| panic!("{story}, again: {error}"));
            writer.close().unwrap();
            is_clean(&sim, &format!("{story}, again"));
            check(&sim, true, &format!("{story}, again"));
        }
        if is_over {
            break;
        }
    }
    assert!(failures > 10, "{failures} failures");
}

fn retention(sim: &Sim) -> Retention {
    let reader = Reader::new(sim.reader(), "sim");
    Retention::read(reader.device(), &reader.superblock().unwrap()).unwrap()
}

#[test]
fn a_disk_that_fails_once_under_expiry_loses_and_keeps_nothing_wrongly() {
    let (sim, names) = store_of_two_terms();
    let day = DAY + 400;
    let step = |sim: &Sim, writer: &mut Writer<SimWriter>| {
        run_expire(sim, writer, Some(day), COMPACT_PERCENT, false).map(drop)
    };
    fail_everywhere(&sim, day, step, |sim, is_done, story| {
        let there = still_there(sim, &names, story);
        assert_eq!(listed(sim), there, "{story}: listing");
        let expired = names.iter().filter(|(name, class)| *class == 1 && there.contains(name)).count();
        assert!(
            !is_done || expired <= 4,
            "{story}: {expired} expired receipts, more than the open segment has"
        );
    });
}

#[test]
fn a_disk_that_fails_once_under_an_erasure_erases_what_is_acknowledged() {
    let sim = store(4 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Forever);
    let secret = b"secret sixteen b".repeat(3000);
    writer.put(&Put { class: Some(1), ..Put::new(&path("p"), &secret) }).unwrap();
    put(&mut writer, "q", 1, 9000);
    writer.close().unwrap();
    let step = |_: &Sim, writer: &mut Writer<SimWriter>| match writer.erase(&path("p"), "order") {
        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
        // The trial write failed, once: nothing was promised.
        Err(Error::Refused(_)) => writer.erase(&path("p"), "order").map(drop),
        Err(error) => Err(error),
    };
    fail_everywhere(&sim, DAY, step, |sim, is_done, story| {
        let reader = Reader::new(sim.reader(), "sim");
        assert!(reader.get(&path("q")).unwrap().data().starts_with(b"qq"), "{story}");
        match reader.get(&path("p")) {
            Ok(receipt) => assert!(!is_done && receipt.data() == secret, "{story}"),
            Err(Error::NotFound { .. }) => {
                assert!(!sim.holds_bytes(&secret[..16]), "{story}: still on the disk");
            }
            Err(error) => panic!("{story}: {error}"),
        }
    });
}

/// What expiry has copied lies twice on a disk that cannot discard: both are gone once the path is.
#[test]
fn a_disk_that_fails_once_under_an_erasure_of_a_copy_leaves_no_older_one() {
    for is_reopened in [false, true] {
        let (sim, old, secret) = store_with_copy_left(is_reopened);
        let copy = Reader::new(sim.reader(), "sim").stat(&path("p")).unwrap().locator();
        assert!(
            copy.block != old.block && holds(&sim, &old, &secret) && holds(&sim, &copy, &secret),
            "twice"
        );
        let names = listed(&sim);
        let step = |_: &Sim, writer: &mut Writer<SimWriter>| match writer.erase(&path("p"), "order") {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            // The trial write failed, once: nothing was promised.
            Err(Error::Refused(_)) => writer.erase(&path("p"), "order").map(drop),
            Err(error) => Err(error),
        };
        fail_everywhere(&sim, DAY + 400, step, |sim, is_done, story| {
            let reader = Reader::new(sim.reader(), "sim");
            match reader.get(&path("p")) {
                Ok(receipt) => {
                    assert!(!is_done && receipt.data() == secret, "{story}");
                    assert_eq!(
                        reader.get_locator(&old).unwrap().data(),
                        secret,
                        "{story}: by the old locator"
                    );
                    assert_eq!(listed(sim), names, "{story}");
                }
                Err(Error::NotFound { .. }) => {
                    assert!(
                        [&old, &copy].iter().all(|at| !holds(sim, at, &secret)),
                        "{story}: still on the disk"
                    );
                    assert!(matches!(reader.get_locator(&old), Err(Error::NotFound { .. })), "{story}");
                    assert_eq!(listed(sim).len(), names.len() - 1, "{story}");
                }
                Err(error) => panic!("{story}: {error}"),
            }
        });
    }
}

/// Whether any of the data is where a locator says.
fn holds(sim: &Sim, at: &Locator, secret: &[u8]) -> bool {
    let blocks = read_blocks(&sim.reader(), at.block, at.blocks).unwrap();
    blocks.as_slice().windows(20).any(|window| window == &secret[..20])
}

#[test]
fn a_disk_that_fails_once_under_holds_and_the_policy_keeps_what_is_acknowledged() {
    let base = store(4 << 20);
    let mut writer = open(&base, DAY);
    put(&mut writer, "a/1", 0, 9000);
    writer.close().unwrap();
    let hold = Hold { prefix: b"a/".to_vec(), until_day: Some(DAY + 9) };
    let set_hold = |_: &Sim, writer: &mut Writer<SimWriter>| writer.hold(&hold);
    fail_everywhere(&base.fork(), DAY, set_hold, |sim, is_done, story| {
        let holds = retention(sim).holds;
        assert!(holds.len() <= 1 && (!is_done || holds.len() == 1), "{story}: {holds:?}");
        assert!(holds.iter().all(|(_, found)| *found == hold), "{story}: {holds:?}");
    });
    let term = |_: &Sim, writer: &mut Writer<SimWriter>| {
        let set = |policy: &mut crate::policy::Policy| {
            policy.terms[3] = Term::YearEnd(7);
            Ok(())
        };
        writer.change_policy(set).map(drop)
    };
    fail_everywhere(&base.fork(), DAY, term, |sim, is_done, story| {
        let found = retention(sim).policy.terms[3];
        assert!(found == Term::YearEnd(7) || (!is_done && found == Term::None), "{story}: {found:?}");
    });
    let mut writer = open(&base, DAY);
    writer.hold(&hold).unwrap();
    writer.close().unwrap();
    let release = |_: &Sim, writer: &mut Writer<SimWriter>| match writer.release(b"a/") {
        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    };
    fail_everywhere(&base, DAY, release, |sim, is_done, story| {
        let holds = retention(sim).holds;
        assert!(holds.is_empty() || (!is_done && holds.len() == 1), "{story}: {holds:?}");
        assert!(Reader::new(sim.reader(), "sim").get(&path("a/1")).is_ok(), "{story}");
    });
}

#[test]
fn a_disk_that_fails_once_under_growth_has_the_old_size_or_the_new_one() {
    let sim = store(3 << 20);
    let mut writer = open(&sim, DAY);
    let names: Vec<String> = (0..20).map(|n| format!("n/{n}")).collect();
    for name in &names {
        put(&mut writer, name, 0, 50_000);
    }
    writer.close().unwrap();
    sim.resize(80 << 20);
    let step = |_: &Sim, writer: &mut Writer<SimWriter>| writer.grow().map(drop);
    fail_everywhere(&sim, DAY, step, |sim, _, story| {
        let reader = Reader::new(sim.reader(), "sim");
        assert!(names.iter().all(|name| reader.get(&path(name)).is_ok()), "{story}");
        assert_eq!(reader.superblock().unwrap().geometry.segment_count, 320, "{story}: opening grows, too");
    });
}
