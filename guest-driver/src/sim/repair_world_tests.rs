//! Repairs under seeded schedules: lost and misdirected writes, damaged pages and rot, some with a repair that crashed first.

use super::repair_tests::{HARMS, harm, is_beyond_repair, mend};
use super::schedule_tests::assert_good;
use super::world::{PATHS, World, options};
use super::{Fate, Lie, SECTOR_BYTES};
use crate::layout::{PAGE_HEAD, PAGE_LEASE, PAGE_SUPERBLOCK, PAGE_TABLE, block_offset};
use crate::{Error, Reader, repair};

/// Whether the newest acknowledged value of a path can still be read where it was put.
fn is_intact(world: &World, number: usize) -> bool {
    let reader = Reader::new(world.sim.reader(), "sim");
    let superblock = reader.superblock().unwrap();
    world
        .locator_of(number)
        .is_some_and(|locator| matches!(locator.read(reader.device(), &superblock), Ok(Some(_))))
}

/// Damage of all kinds, then a repair: what is intact reads back, nothing else appears, and a second repair has nothing to do.
pub(super) fn run_repair(seed: u64) -> Vec<String> {
    let mut world = World::new(seed);
    let liar = world.rng.below(4);
    for session in 0..3 {
        let sectors = world.sim.sectors();
        let elsewhere = sectors[usize::try_from(world.rng.below(sectors.len() as u64)).unwrap()];
        let lie = [Lie::Lose, Lie::Misdirect(elsewhere / 8 * block_offset(1))];
        let lie = lie[usize::try_from(world.rng.below(2)).unwrap()];
        let at = world.rng.below(40);
        if !world.quiet_session((session == liar).then_some((at, lie))) {
            break;
        }
    }
    world.bad.clear(); // a refusal is an honest answer
    let Ok(superblock) = Reader::new(world.sim.reader(), "sim").superblock() else {
        return world.bad;
    };
    let superblock_pages = [PAGE_SUPERBLOCK, superblock.geometry.superblock_copy_page()];
    let superblock_page = superblock_pages[usize::try_from(world.rng.below(2)).unwrap()]; // not both
    let meta_pages = [superblock_page, PAGE_LEASE, PAGE_HEAD, PAGE_TABLE];
    let home = |number| {
        let hash = superblock.path_hash(world.path(number).as_str().as_bytes());
        superblock.geometry.home_page(&superblock.geometry.regions[0], hash.bucket)
    };
    let pages: Vec<u64> = meta_pages.into_iter().chain((0..PATHS).map(home)).collect();
    for _ in 0..world.rng.below(3) {
        let page_no = pages[usize::try_from(world.rng.below(pages.len() as u64)).unwrap()];
        let kind = HARMS[usize::try_from(world.rng.below(4)).unwrap()];
        if !is_beyond_repair(page_no, kind) {
            harm(&world.sim, page_no, kind);
        }
    }
    if world.rng.chance(30) {
        let sectors = world.sim.sectors();
        let sector = sectors[usize::try_from(world.rng.below(sectors.len() as u64)).unwrap()];
        world.sim.rot(sector * SECTOR_BYTES as u64 + world.rng.below(512), 0x40);
    }
    if world.rng.chance(50) {
        // A repair that is stopped somewhere, first.
        let device = world.sim.writer();
        world.sim.stop_at(200 + world.rng.below(400), world.rng.below(8));
        drop(repair(&device, &options(), &mut |_| {}, &mut |_| Ok(())));
        world.sim.crash_host(Fate::Random(&mut world.rng));
    }
    if Reader::new(world.sim.reader(), "sim").superblock().is_ok() {
        judge_repair(&mut world);
    }
    world.bad
}

fn judge_repair(world: &mut World) {
    let repaired = match mend(&world.sim) {
        Ok(done) => Some(done),
        Err(error) if error.exit_code() == 5 => None,
        Err(error) => {
            world.bad.push(format!("repair: {error}"));
            None
        }
    };
    let is_clean = repaired.as_ref().is_some_and(|(totals, _)| totals.findings == 0);
    let left = repaired.iter().flat_map(|(_, outcomes)| outcomes).filter(|outcome| !outcome.is_mended);
    let named: Vec<&str> = left.filter_map(|outcome| outcome.finding.path.as_deref()).collect();
    let reader = Reader::new(world.sim.reader(), "sim");
    for number in 0..PATHS {
        let (name, acked) = (world.path(number), world.acked[number]);
        // What is there and still not right is named, or the repair has refused.
        let is_owed = repaired.is_some() && !named.contains(&name.as_str());
        let is_owed = is_clean || is_owed && is_intact(world, number);
        let fault = match reader.get(&name) {
            Ok(receipt) => match world.value_of(number, receipt.data()) {
                None => Some("foreign bytes".to_owned()),
                Some(value) => (value != acked && is_owed).then(|| format!("has {value}")),
            },
            Err(Error::NotFound { .. }) => (acked != 0 && is_owed).then(|| "not found".to_owned()),
            Err(error) if matches!(error.exit_code(), 4 | 5) => is_clean.then(|| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        let totals = repaired.as_ref().map(|(totals, _)| totals);
        world
            .bad
            .extend(fault.map(|fault| format!("path {number}, acknowledged {acked}: {fault}; {totals:?}")));
    }
    let again = mend(&world.sim);
    if let (Some((totals, _)), Ok((totals_again, outcomes))) = (&repaired, &again)
        && (totals.findings != totals_again.findings || outcomes.iter().any(|outcome| outcome.is_mended))
    {
        world.bad.push(format!("repaired again: {totals:?}, then {totals_again:?} {outcomes:?}"));
    }
}

#[test]
fn whatever_is_damaged_a_repair_mends_what_is_intact_and_invents_nothing() {
    assert_good(run_repair, "whatever_is_damaged", 500);
}
