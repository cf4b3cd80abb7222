//! Disks that rot or lie, after and under the seeded schedules: the answer is the truth or an error, never other bytes.

use super::schedule_tests::assert_good;
use super::world::{self, PATHS, World, options};
use super::{Lie, SECTOR_BYTES, Sim};
use crate::layout::block_offset;
use crate::verify::verify;
use crate::{Error, Reader, Result, Writer};

/// What a get of each path says: a value (0 = not found) or an error.
fn answers(world: &World, sim: &Sim) -> Vec<Result<u64>> {
    let reader = Reader::new(sim.reader(), "sim");
    let answer = |number| match reader.get(&world.path(number)) {
        Ok(receipt) => Ok(world.value_of(number, receipt.data()).unwrap_or(u64::MAX)),
        Err(Error::NotFound { .. }) => Ok(0),
        Err(error) => Err(error),
    };
    (0..PATHS).map(answer).collect()
}

/// Whether the full check sees that something is wrong.
fn is_noticed(sim: &Sim) -> bool {
    let mut findings = 0;
    let report = verify(&Reader::new(sim.reader(), "sim"), |_| {
        findings += 1;
        Ok(())
    });
    report.is_err() || findings > 0
}

/// A few rotten bytes, one at a time: each get gives the same as before or says that it is corrupt; rot in a record harms its path only;
/// and opening for writing makes nothing worse.
fn run_rot(seed: u64) -> Vec<String> {
    let mut world = world::sessions(seed);
    world.finish();
    world.sim.freeze();
    let before: Vec<u64> = answers(&world, &world.sim).into_iter().map(|a| a.unwrap_or(u64::MAX)).collect();
    let superblock = Reader::new(world.sim.reader(), "sim").superblock().unwrap().clone();
    let sectors = world.sim.sectors();
    for _ in 0..6 {
        let mut sector = sectors[usize::try_from(world.rng.below(sectors.len() as u64)).unwrap()];
        if world.rng.chance(50) {
            // Pages are few: aim at them.
            let first = superblock.geometry.first_block(2) * 8;
            let pages: Vec<u64> = sectors.iter().copied().filter(|s| *s < first).collect();
            sector = pages[usize::try_from(world.rng.below(pages.len() as u64)).unwrap()];
        }
        let offset = sector * SECTOR_BYTES as u64 + world.rng.below(SECTOR_BYTES as u64);
        let mask = u8::try_from(1 + world.rng.below(255)).unwrap();
        let sim = world.sim.fork();
        sim.rot(offset, mask);
        let is_record = superblock.geometry.holds_record(offset / block_offset(1), 1);
        let story = format!("byte {offset} ^ {mask:#x}");
        check_rot(&mut world, &sim, &before, is_record, &story);
        let opened = Writer::open(sim.writer(), &options()).and_then(Writer::close);
        check_rot(&mut world, &sim, &before, is_record, &format!("{story}, opened {opened:?}"));
    }
    world.bad
}

fn check_rot(world: &mut World, sim: &Sim, before: &[u64], is_record: bool, story: &str) {
    let mut harmed = 0;
    for (number, (answer, before)) in answers(world, sim).into_iter().zip(before).enumerate() {
        match answer {
            Ok(value) if value == *before => {}
            Err(error) if error.exit_code() == 5 => harmed += 1,
            answer => world.bad.push(format!("{story}: path {number} was {before}, is {answer:?}")),
        }
    }
    if is_record && harmed > 1 {
        world.bad.push(format!("{story}: rot in one record harms {harmed} paths"));
    }
    if harmed > 0 && !is_noticed(sim) {
        world.bad.push(format!("{story}: verify finds nothing"));
    }
}

/// One write is lost or lands elsewhere: what a get returns was stored under its path, and if it is not the newest, `verify` notices.
fn run_lie(seed: u64) -> Vec<String> {
    let mut world = World::new(seed);
    let liar = world.rng.below(3);
    for session in 0..3 {
        let lie = match world.rng.below(2) {
            0 => Lie::Lose,
            _ => {
                let sectors = world.sim.sectors();
                let sector = sectors[usize::try_from(world.rng.below(sectors.len() as u64)).unwrap()];
                Lie::Misdirect(sector / 8 * block_offset(1))
            }
        };
        let lie = (session == liar).then(|| (world.rng.below(40), lie));
        if !world.quiet_session(lie) {
            break;
        }
    }
    world.bad.clear(); // a refusal is an honest answer
    let answers = answers(&world, &world.sim);
    let is_noticed = is_noticed(&world.sim);
    for (number, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(u64::MAX) => world.bad.push(format!("path {number}: foreign bytes")),
            Ok(value) if value != world.acked[number] && !is_noticed => {
                world.bad.push(format!(
                    "path {number} has {value}, acknowledged {}, and verify finds nothing",
                    world.acked[number]
                ));
            }
            Err(error) if !matches!(error.exit_code(), 4 | 5) => {
                world.bad.push(format!("path {number}: {error}"));
            }
            _ => {}
        }
    }
    world.bad
}

#[test]
fn rot_anywhere_is_corrupt_and_never_other_bytes() {
    assert_good(run_rot, "rot_anywhere", 500);
}

#[test]
fn a_write_that_was_lost_or_went_elsewhere_is_never_other_bytes() {
    assert_good(run_lie, "a_write_that_was_lost", 1_000);
}
