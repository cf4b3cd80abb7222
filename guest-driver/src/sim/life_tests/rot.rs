//! Damage of the pages of policy and holds, and what a repair makes of the replay window.

use super::expiry::fill;
use super::{DAY, is_clean, open, options, path, put, run_expire, set_term, store};
use crate::expire::COMPACT_PERCENT;
use crate::layout::{PAGE_HOLDS_FIRST, PAGE_POLICY, page_offset};
use crate::policy::{Hold, Retention, Term};
use crate::repair::repair;
use crate::sim::{Fate, Sim};
use crate::verify::verify;
use crate::{Put, Reader, Writer};

const SLOT_BYTES: u64 = 4096;

fn hold(prefix: &[u8]) -> Hold {
    Hold { prefix: prefix.to_vec(), until_day: None }
}

fn rot(sim: &Sim, page_no: u64, slot: u64) {
    sim.rot(page_offset(page_no) + slot * SLOT_BYTES + 100, 0xff);
}

fn findings(sim: &Sim) -> Vec<String> {
    let mut facts = Vec::new();
    let see = |finding: crate::verify::Finding| {
        facts.push(format!("{}: {}", finding.place, finding.fact));
        Ok(())
    };
    verify(&Reader::new(sim.reader(), "sim"), see).unwrap();
    facts
}

fn mend(sim: &Sim) -> u64 {
    repair(sim.writer(), &options(DAY), &mut |_| {}, &mut |_| Ok(())).unwrap().findings
}

fn retention(sim: &Sim) -> Retention {
    let superblock = Reader::new(sim.reader(), "sim").superblock().unwrap();
    Retention::read(&sim.reader(), &superblock).unwrap()
}

#[test]
pub(in crate::sim) fn damaged_slots_of_policy_and_holds_are_found_and_mended_from_the_log() {
    let base = store(8 << 20);
    let mut writer = open(&base, DAY);
    for class in [1, 2, 3] {
        set_term(&mut writer, class, Term::Years(1));
    }
    for prefix in [b"p", b"q", b"r"] {
        writer.hold(&hold(prefix)).unwrap();
    }
    writer.release(b"q").unwrap();
    writer.close().unwrap();
    base.freeze();
    let right = retention(&base);
    for page_no in [PAGE_POLICY, PAGE_HOLDS_FIRST] {
        for slots in [&[0][..], &[1], &[0, 1]] {
            let sim = base.fork();
            slots.iter().for_each(|slot| rot(&sim, page_no, *slot));
            let story = format!("page {page_no}, slots {slots:?}");
            assert!(findings(&sim).iter().any(|fact| fact.contains("a slot is damaged")), "{story}");
            assert_eq!(mend(&sim), 0, "{story}");
            assert_eq!(retention(&sim), right, "{story}");
            is_clean(&sim, &story);
            let mut writer = open(&sim, DAY);
            writer.put(&Put { class: Some(1), ..Put::new(&path("n"), b"x") }).unwrap();
            writer.close().unwrap();
        }
    }
}

#[test]
pub(in crate::sim) fn either_slot_tells_of_a_hold_whose_record_has_gone() {
    let base = store(3 << 20);
    let mut writer = open(&base, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    writer.hold(&hold(b"other")).unwrap();
    writer.hold(&hold(b"kept")).unwrap();
    fill(&base, &mut writer, "m", &[1], 30);
    let day = DAY + 400;
    writer.close().unwrap();
    let mut writer = open(&base, day);
    let (totals, _) = run_expire(&base, &mut writer, Some(day), COMPACT_PERCENT, false).unwrap();
    assert!(totals.segments > 0, "the segment of the holds is retired");
    writer.close().unwrap();
    base.freeze();
    let right = retention(&base);
    assert_eq!(right.holds.len(), 2);
    for slot in 0..2 {
        let sim = base.fork();
        rot(&sim, PAGE_HOLDS_FIRST, slot);
        assert_eq!(mend(&sim), 0, "slot {slot}");
        assert_eq!(retention(&sim).holds, right.holds, "slot {slot}");
    }
    let sim = base.fork();
    (0..2).for_each(|slot| rot(&sim, PAGE_HOLDS_FIRST, slot));
    assert!(mend(&sim) > 0, "what neither slot nor log tells is not made up");
}

#[test]
pub(in crate::sim) fn a_repair_keeps_what_the_replay_window_says_of_holds() {
    let sim = store(8 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    writer.hold(&hold(b"other")).unwrap();
    put(&mut writer, "p", 1, 5000);
    put(&mut writer, "x", 1, 50);
    writer.close().unwrap();
    let mut writer = open(&sim, DAY);
    put(&mut writer, "x", 1, 100);
    writer.hold(&hold(b"p")).unwrap();
    sim.crash_host(Fate::Lose);
    let superblock = Reader::new(sim.reader(), "sim").superblock().unwrap();
    let geometry = &superblock.geometry;
    let home = geometry.home_page(&geometry.regions[0], superblock.path_hash(b"x").bucket);
    (0..2).for_each(|slot| rot(&sim, home, slot));
    assert!(Writer::open(sim.writer(), &options(DAY)).is_err(), "the index page is lost");
    assert_eq!(mend(&sim), 0);
    let holds: Vec<_> = retention(&sim).holds.into_iter().map(|(_, hold)| hold.prefix).collect();
    assert_eq!(holds, [b"other".to_vec(), b"p".to_vec()]);
}
