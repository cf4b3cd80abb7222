//! Expiry: what it frees, what it keeps, and what comes in its way.

use super::crashes::crash_everywhere;
use super::{DAY, is_clean, listed, open, options, path, put, run_expire, set_term, store};
use crate::expire::{COMPACT_PERCENT, ExpireEvent, ExpireOptions, expire};
use crate::policy::Term;
use crate::sim::{Rng, Sim, SimWriter};
use crate::{Error, Hold, Put, Reader, Writer};
use std::collections::BTreeMap;

/// Fills so many segments with receipts of some classes in turn, a day's worth each.
pub(super) fn fill(
    sim: &Sim,
    writer: &mut Writer<SimWriter>,
    tag: &str,
    classes: &[u8],
    count: usize,
) -> Vec<(String, u8)> {
    let mut names = Vec::new();
    for number in 0..count {
        let class = classes[number % classes.len()];
        let name = format!("{tag}/{class}/{number}");
        put(writer, &name, class, 20_000);
        names.push((name, class));
    }
    assert!(sim.tick() > 0);
    names
}

#[test]
pub(in crate::sim) fn segments_whose_receipts_have_expired_are_free_again_and_the_chain_is_bridged() {
    let sim = store(6 << 20);
    let mut writer = open(&sim, DAY);
    let first_note = Reader::new(sim.reader(), "sim").note().unwrap();
    set_term(&mut writer, 1, Term::Years(1));
    let names = fill(&sim, &mut writer, "old", &[1], 60);
    writer.close().unwrap();
    let middle_note = Reader::new(sim.reader(), "sim").note().unwrap();
    let free = Reader::new(sim.reader(), "sim").usage().unwrap().free_segments;
    let used = sim.used_bytes();
    let day = DAY + 400;
    let mut writer = open(&sim, day);
    let (totals, _) = run_expire(&sim, &mut writer, Some(day), 0, true).unwrap();
    assert_eq!(
        Reader::new(sim.reader(), "sim").usage().unwrap().free_segments,
        free,
        "a dry run changes nothing"
    );
    let (done, gone) = run_expire(&sim, &mut writer, Some(day), 0, false).unwrap();
    assert_eq!((totals.segments, totals.expired), (done.segments, done.expired), "and says what would be");
    assert!(done.segments >= 3, "{done:?}");
    is_clean(&sim, "while the writer is open");
    writer.close().unwrap();
    let reader = Reader::new(sim.reader(), "sim");
    assert!(reader.usage().unwrap().free_segments + 1 >= free + done.segments, "one may have been opened");
    assert!(sim.used_bytes() < used, "the room was given back");
    for (name, _) in &names {
        match reader.get(&path(name)) {
            Ok(receipt) => assert!(receipt.data().starts_with(name.as_bytes()) && !gone.contains(name)),
            Err(Error::NotFound { .. }) => assert!(gone.contains(name), "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
    is_clean(&sim, "expired");
    assert_eq!(listed(&sim).len() + gone.len(), names.len());
    let last_note = reader.note().unwrap();
    for note in [&middle_note, &last_note] {
        reader.verify_from(note, |_, _| {}).unwrap();
    }
    assert!(reader.verify_from(&first_note, |_, _| {}).is_ok(), "the log from its beginning, over the gap");
    // The store goes round: what was freed is written over and freed again.
    let mut at = day;
    for round in 0..12 {
        at += 370;
        let mut writer = open(&sim, at - 5);
        fill(&sim, &mut writer, &format!("round{round}"), &[1], 40);
        writer.close().unwrap();
        let mut writer = open(&sim, at + 370);
        run_expire(&sim, &mut writer, Some(at + 370), 0, false).unwrap();
        writer.close().unwrap();
        is_clean(&sim, &format!("round {round}"));
        at += 370;
    }
    let mut followed = 0;
    let reader = Reader::new(sim.reader(), "sim");
    let mut follower = reader.follow(Some(0)).unwrap();
    reader
        .poll(&mut follower, |_| {
            followed += 1;
            Ok(())
        })
        .unwrap();
    assert!(followed > 0, "a follower jumps over what has gone");
    let fact = reader.verify_from(&middle_note, |_, _| {}).unwrap_err().to_string();
    assert!(fact.contains("retired"), "{fact}");
}

#[test]
pub(in crate::sim) fn mixed_classes_free_their_room_by_copying_what_stays() {
    let sim = store(8 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    set_term(&mut writer, 2, Term::Years(10));
    let names = fill(&sim, &mut writer, "mix", &[1, 1, 1, 2], 100);
    writer.hold(&Hold { prefix: b"mix/1/0".to_vec(), until_day: None }).unwrap();
    writer.close().unwrap();
    let day = DAY + 400;
    let mut writer = open(&sim, day);
    let before = Reader::new(sim.reader(), "sim").usage().unwrap().free_segments;
    let (totals, gone) = run_expire(&sim, &mut writer, Some(day), COMPACT_PERCENT, false).unwrap();
    writer.close().unwrap();
    assert!(totals.segments >= 8 && totals.moved >= 20, "{totals:?}");
    let reader = Reader::new(sim.reader(), "sim");
    assert!(reader.usage().unwrap().free_segments > before + 4);
    let mut counts = BTreeMap::new();
    for (name, class) in &names {
        let stat = match reader.get(&path(name)) {
            Ok(receipt) => {
                assert!(receipt.data().starts_with(name.as_bytes()));
                Some(receipt.stat())
            }
            Err(Error::NotFound { .. }) => None,
            Err(error) => panic!("{name}: {error}"),
        };
        if *class == 2 || name == "mix/1/0" {
            let header = stat.expect("kept").header;
            assert_eq!((header.class, header.issued_day, header.version), (*class, DAY, 1));
            assert_eq!(
                header.recorded_at_ms,
                u64::from(DAY) * crate::day::DAY_MS,
                "when it was first recorded"
            );
        } else {
            *counts.entry(stat.is_none()).or_insert(0) += 1;
        }
    }
    assert_eq!(counts.get(&true).copied(), Some(gone.len()));
    is_clean(&sim, "copied");
    // Without copying, the expired ones go by path at least.
    let mut writer = open(&sim, DAY + 4100);
    let (totals, gone) = run_expire(&sim, &mut writer, Some(DAY + 4100), 0, false).unwrap();
    assert!(!gone.is_empty(), "{totals:?}");
    writer.close().unwrap();
    is_clean(&sim, "ten years later");
}

#[test]
pub(in crate::sim) fn a_full_disk_still_takes_removals_and_expiry() {
    let sim = store(2 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    let mut names = Vec::new();
    for len in [60_000, 3000, 10] {
        for number in 0.. {
            let name = path(&format!("{len}/{number}"));
            match writer.put(&Put { class: Some(1), ..Put::new(&name, &vec![1; len]) }) {
                Ok(_) => names.push(name),
                Err(Error::NoSpace { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    writer.close().unwrap();
    let mut writer = open(&sim, DAY + 500);
    writer.hold(&Hold { prefix: b"none".to_vec(), until_day: None }).unwrap();
    let (totals, _) = run_expire(&sim, &mut writer, Some(DAY + 500), COMPACT_PERCENT, false).unwrap();
    assert!(totals.segments >= 4, "{totals:?}");
    put(&mut writer, "room again", 1, 60_000);
    writer.close().unwrap();
    is_clean(&sim, "full and free again");
}

/// Two data segments: the one that was retired is the next one to be opened, while its Retire record is still in the window.
#[test]
pub(in crate::sim) fn a_retired_segment_that_was_opened_again_is_not_discarded() {
    let sim = store(1 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    for number in 0..4 {
        put(&mut writer, &format!("old/{number}"), 1, 50_000);
    }
    for number in 0..4 {
        put(&mut writer, &format!("kept/{number}"), 0, 50_000);
    }
    writer.close().unwrap();
    let day = DAY + 400;
    let step = |sim: &Sim, writer: &mut Writer<SimWriter>| {
        run_expire(sim, writer, Some(day), 0, false)?;
        for number in 0..2 {
            writer.put(&Put::new(&path(&format!("new/{number}")), &[number; 70_000]))?;
        }
        Ok(())
    };
    crash_everywhere(&sim, day, step, |sim, story| {
        is_clean(sim, story);
        let reader = Reader::new(sim.reader(), "sim");
        for number in 0..4 {
            let name = format!("kept/{number}");
            assert!(reader.get(&path(&name)).unwrap().data().starts_with(name.as_bytes()), "{story}");
        }
        for number in 0..2 {
            match reader.get(&path(&format!("new/{number}"))) {
                Ok(receipt) => assert_eq!(receipt.data(), [number; 70_000], "{story}"),
                Err(Error::NotFound { .. }) => {}
                Err(error) => panic!("{story}: {error}"),
            }
        }
    });
}

#[test]
pub(in crate::sim) fn a_segment_that_recovery_needs_is_not_retired() {
    let sim = store(2 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    writer.close().unwrap();
    let step = |sim: &Sim, writer: &mut Writer<SimWriter>| {
        for number in 0..9 {
            let name = path(&format!("{}/{number}", writer.last_seq()));
            writer.put(&Put { class: Some(1), issued_day: Some(1000), ..Put::new(&name, &[7; 60_000]) })?;
            run_expire(sim, writer, Some(DAY), 0, false)?;
        }
        Ok(())
    };
    crash_everywhere(&sim, DAY, step, is_clean);
}

#[test]
pub(in crate::sim) fn what_was_removed_does_not_come_back_when_the_record_of_its_removal_expires() {
    let sim = store(4 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    put(&mut writer, "removed", 0, 1000);
    for number in 0..6 {
        put(&mut writer, &format!("stays/{number}"), 0, 50_000); // the first segment and the beginning of the second
    }
    writer.remove(&path("removed")).unwrap();
    for number in 0..12 {
        put(&mut writer, &format!("goes/{number}"), 1, 50_000);
    }
    writer.remove(&path("stays/4")).unwrap();
    writer.remove(&path("stays/5")).unwrap();
    writer.close().unwrap();
    for percent in [0, COMPACT_PERCENT] {
        let mut writer = open(&sim, DAY + 400);
        run_expire(&sim, &mut writer, Some(DAY + 400), percent, false).unwrap();
        writer.close().unwrap();
        let listed = listed(&sim);
        assert!(!listed.contains(&"removed".to_owned()), "{listed:?}");
        is_clean(&sim, "expired");
    }
}

#[test]
pub(in crate::sim) fn a_hold_that_comes_while_expiry_runs_counts() {
    let sim = store(6 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    let names = fill(&sim, &mut writer, "h", &[1], 60);
    writer.close().unwrap();
    let day = DAY + 400;
    let mut writer = open(&sim, day);
    let reader = Reader::new(sim.reader_of_now(), "sim");
    let options = ExpireOptions::of_day(day);
    let mut steps = 0;
    let mut gone = Vec::new();
    expire(
        &reader,
        &mut |step| {
            steps += 1;
            if steps == 5 {
                // Between looking at a segment and retiring it.
                writer.hold(&Hold { prefix: b"h/".to_vec(), until_day: None })?;
            }
            step(&mut writer)
        },
        options,
        |event| {
            if let ExpireEvent::Expired(path, _) = event {
                gone.push(path.to_string());
            }
            Ok(())
        },
    )
    .unwrap();
    writer.close().unwrap();
    assert!(!gone.is_empty() && gone.len() < 40, "{} have gone", gone.len());
    let reader = Reader::new(sim.reader(), "sim");
    for (name, _) in names.iter().filter(|(name, _)| !gone.contains(name)) {
        assert!(reader.get(&path(name)).is_ok(), "{name} is on hold");
    }
    is_clean(&sim, "held meanwhile");
}

/// A reader that found an entry and stalls until the segment is freed and written over gets the right bytes or none.
#[test]
pub(in crate::sim) fn a_reader_that_stalls_over_expiry_gets_right_bytes_or_none() {
    let sim = store(2 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    let mut names = Vec::new();
    let first_tick = sim.tick();
    for round in 0..6 {
        names.extend(fill(&sim, &mut writer, &format!("r{round}"), &[1], 30));
        writer.close().unwrap();
        let day = DAY + 400 * (round + 1);
        writer = open(&sim, day);
        run_expire(&sim, &mut writer, Some(day), 0, false).unwrap();
    }
    drop(writer);
    let mut rng = Rng(3);
    let (mut hits, mut misses) = (0, 0);
    for _ in 0..3000 {
        let start = first_tick + rng.below(sim.tick() - first_tick);
        let step = [0, 10, 200, 3000, 30_000][usize::try_from(rng.below(5)).unwrap()];
        let reader = Reader::new(sim.past(start, sim.tick(), step, rng.number()), "sim");
        let (name, _) = &names[usize::try_from(rng.below(names.len() as u64)).unwrap()];
        match reader.get(&path(name)) {
            Ok(receipt) => {
                let right: Vec<u8> = name.bytes().cycle().take(20_000).collect();
                assert_eq!(receipt.data(), right, "{name}");
                hits += 1;
            }
            Err(Error::NotFound { .. } | Error::Pending { .. }) => misses += 1,
            Err(error) => panic!("{name}: {error}"),
        }
    }
    assert!(hits > 100 && misses > 100, "{hits} hits, {misses} misses");
}

/// The disk has not discarded anything, the segment table is lost, and a repair builds it anew: what was retired, removed and erased stays away.
#[test]
pub(in crate::sim) fn a_repair_of_the_segment_table_brings_nothing_back() {
    use crate::Device;
    use crate::layout::{PAGE_TABLE, page_offset};
    let sim = store(4 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(1));
    put(&mut writer, "removed", 0, 30_000);
    put(&mut writer, "erased", 0, 30_000);
    let mut names = fill(&sim, &mut writer, "s", &[1, 1, 1, 0], 90);
    writer.remove(&path("removed")).unwrap();
    writer.erase(&path("erased"), "order").unwrap();
    writer.close().unwrap();
    let mut before = vec![0; 4 << 20];
    sim.reader().read(0, &mut before).unwrap();
    let mut writer = open(&sim, DAY + 400);
    let mut freed = Vec::new();
    let reader = Reader::new(sim.reader_of_now(), "sim");
    expire(&reader, &mut |step| step(&mut writer), ExpireOptions::of_day(DAY + 400), |event| {
        if let ExpireEvent::Retired { segment, .. } = event {
            freed.push(segment);
        }
        Ok(())
    })
    .unwrap();
    writer.close().unwrap();
    assert!(freed.len() >= 4, "{freed:?}");
    let expected = listed(&sim);
    let device = sim.writer();
    let superblock = Reader::new(sim.reader(), "sim").superblock().unwrap();
    for segment in freed {
        // Only what nobody has written over since.
        let entry = crate::table::read_entry(&device, &superblock, segment).unwrap();
        if entry.state == crate::table::SegmentState::Free {
            let start = usize::try_from(segment * superblock.geometry.segment_bytes).unwrap();
            device.write(start as u64, &before[start..start + (256 << 10)]).unwrap();
        }
    }
    device.write(page_offset(PAGE_TABLE), &[0; 8192]).unwrap();
    device.flush().unwrap();
    let mut left = Vec::new();
    crate::repair::repair(sim.writer(), &options(DAY + 400), &mut |_| {}, &mut |outcome| {
        left.extend((!outcome.is_mended).then_some(outcome.finding));
        Ok(())
    })
    .unwrap();
    assert!(left.is_empty(), "{left:?}");
    is_clean(&sim, "repaired");
    assert_eq!(listed(&sim), expected);
    names.retain(|(name, _)| !expected.contains(name));
    let reader = Reader::new(sim.reader(), "sim");
    for name in names.iter().map(|(name, _)| name.as_str()).chain(["removed", "erased"]) {
        assert!(matches!(reader.get(&path(name)), Err(Error::NotFound { .. })), "{name} is back");
    }
    let mut writer = open(&sim, DAY + 400);
    fill(&sim, &mut writer, "later", &[0], 60); // into what is free
    writer.close().unwrap();
    is_clean(&sim, "written to after the repair");
}
