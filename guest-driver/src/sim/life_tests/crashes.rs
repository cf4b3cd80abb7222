//! A crash at every operation of erasure, expiry and growth.

use super::expiry::fill;
use super::{DAY, is_clean, listed, open, options, path, put, run_expire, set_term, store};
use crate::expire::COMPACT_PERCENT;
use crate::policy::Term;
use crate::sim::{Fate, Rng, Sim, SimWriter};
use crate::{Error, Put, Reader, Result, Writer};

/// Stops a step at every device operation, lets a crash decide, recovers, and looks.
pub(super) fn crash_everywhere(
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
pub(in crate::sim) fn a_crash_at_every_operation_of_an_erasure() {
    let sim = store(4 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Forever);
    let secret = b"secret sixteen b".repeat(3000);
    writer.put(&Put { class: Some(1), ..Put::new(&path("p"), &secret) }).unwrap();
    put(&mut writer, "q", 1, 9000);
    writer.close().unwrap();
    crash_everywhere(
        &sim,
        DAY,
        |_, writer| erase(writer),
        |sim, story| {
            if !is_whole(sim, &secret, story) {
                assert!(!sim.holds_bytes(&secret[..16]), "{story}: still on the disk");
            }
        },
    );
}

/// Erases `p` if it is there.
fn erase(writer: &mut Writer<SimWriter>) -> Result<()> {
    match writer.erase(&path("p"), "order") {
        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether `p` is found, and what is found is right.
fn is_whole(sim: &Sim, secret: &[u8], story: &str) -> bool {
    is_clean(sim, story);
    let reader = Reader::new(sim.reader(), "sim");
    assert!(reader.get(&path("q")).unwrap().data().starts_with(b"qq"), "{story}");
    match reader.get(&path("p")) {
        Ok(receipt) => assert_eq!(receipt.data(), secret, "{story}"),
        Err(Error::NotFound { .. }) => return false,
        Err(error) => panic!("{story}: {error}"),
    }
    true
}

#[test]
pub(in crate::sim) fn a_crash_at_every_operation_of_a_put_and_its_erasure() {
    let sim = store(4 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Forever);
    put(&mut writer, "q", 1, 9000);
    writer.close().unwrap();
    let secret = b"secret sixteen b".repeat(3000);
    let step = |_: &Sim, writer: &mut Writer<SimWriter>| {
        writer.put(&Put { class: Some(1), ..Put::new(&path("p"), &secret) })?;
        erase(writer)
    };
    crash_everywhere(&sim, DAY, step, |sim, story| {
        let is_whole = is_whole(sim, &secret, story);
        // A put that was never acknowledged may leave a part of its data where the log ends.
        if story == "no crash" || story.ends_with("again") {
            assert!(!is_whole && !sim.holds_bytes(&secret[..16]), "{story}: still on the disk");
        }
    });
}

/// Those of the names and classes that are found, sorted, each with its own data. Only class 1 may be missing.
pub(super) fn still_there(sim: &Sim, names: &[(String, u8)], story: &str) -> Vec<String> {
    let reader = Reader::new(sim.reader(), "sim");
    let mut there = Vec::new();
    for (name, class) in names {
        match reader.get(&path(name)) {
            Ok(receipt) => {
                assert!(receipt.data().starts_with(name.as_bytes()), "{story}: {name}");
                there.push(name.clone());
            }
            Err(Error::NotFound { .. }) if *class == 1 => {}
            Err(error) => panic!("{story}: {name}: {error}"),
        }
    }
    there.sort();
    there
}

/// A store with receipts of a year's term, class 1, and of ten years', and their names.
pub(super) fn store_of_two_terms() -> (Sim, Vec<(String, u8)>) {
    let sim = store(3 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    set_term(&mut writer, 2, Term::Years(10));
    let names = fill(&sim, &mut writer, "m", &[1, 1, 2], 30);
    writer.close().unwrap();
    (sim, names)
}

#[test]
pub(in crate::sim) fn a_crash_at_every_operation_of_expiry() {
    let (sim, names) = store_of_two_terms();
    let day = DAY + 400;
    let step = |sim: &Sim, writer: &mut Writer<SimWriter>| {
        run_expire(sim, writer, Some(day), COMPACT_PERCENT, false).map(drop)?;
        writer.put(&Put::new(&path(&format!("after/{}", writer.last_seq())), &[5; 150_000])).map(drop)
    };
    crash_everywhere(&sim, day, step, |sim, story| {
        is_clean(sim, story);
        let there = still_there(sim, &names, story);
        let listed = listed(sim).into_iter().filter(|name| name.starts_with("m/"));
        assert_eq!(listed.collect::<Vec<_>>(), there, "{story}: listing");
    });
}

#[test]
pub(in crate::sim) fn a_crash_at_every_operation_of_growth() {
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
pub(in crate::sim) fn a_crash_at_every_operation_of_the_recovery_of_an_erasure() {
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
