//! Removing: what readers, listing, versions and recovery make of Tombstones. Crashes at every operation, with puts and removals.

use crate::sim::{Fate, Rng, Sim};
use crate::{Change, Error, FormatOptions, Put, Reader, ReceiptPath, Result, Writer, WriterOptions, format};
use std::collections::BTreeMap;

fn path(text: &str) -> ReceiptPath {
    ReceiptPath::new(text).unwrap()
}

fn store() -> Sim {
    let sim = Sim::new(4 << 20);
    let options = FormatOptions {
        segment_bytes: Some(256 << 10),
        fixed_identity: Some(([7; 16], [9; 32])),
        ..FormatOptions::default()
    };
    format(&sim.writer(), &options).unwrap();
    sim
}

fn listed(sim: &Sim) -> Vec<String> {
    let mut names = Vec::new();
    let seen = Reader::new(sim.reader(), "sim").list("", |locator| {
        names.push(locator.path.to_string());
        Ok(())
    });
    seen.unwrap();
    names.sort();
    names
}

fn verified(sim: &Sim, story: &str) {
    let reader = Reader::new(sim.reader(), "sim");
    crate::verify::verify(&reader, |finding| panic!("{story}: {finding:?}")).unwrap();
}

#[test]
fn a_removed_path_is_not_found_and_its_bytes_stay_reachable_by_locator() {
    let sim = store();
    let device = sim.writer();
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    let a = path("a");
    let first = writer.put(&Put::new(&a, b"one")).unwrap();
    writer.put(&Put::new(&path("b"), b"other")).unwrap();
    let second = writer.put(&Put { is_new_version: true, ..Put::new(&a, b"two") }).unwrap();
    let flushes = sim.counts().flushes;
    let removed = writer.remove(&a).unwrap();
    // One for the record, one so that no crash brings the removed version back to readers.
    assert_eq!((removed.version, sim.counts().flushes), (2, flushes + 2));
    let reader = || Reader::new(sim.reader(), "sim");
    assert!(matches!(reader().get(&a), Err(Error::NotFound { .. })));
    assert!(matches!(reader().get_version(&a, 1), Err(Error::NotFound { .. })));
    assert!(matches!(reader().get_locator(&removed.locator), Err(Error::NotFound { .. })));
    assert_eq!(reader().get_locator(&first.locator).unwrap().data(), b"one");
    assert_eq!(reader().get_locator(&second.locator).unwrap().data(), b"two");
    assert!(matches!(writer.remove(&a), Err(Error::NotFound { .. })));
    assert_eq!((listed(&sim), reader().usage().unwrap().live), (vec!["b".to_owned()], 1));
    verified(&sim, "removed");
    let again = writer.put(&Put::new(&a, b"three")).unwrap();
    assert_eq!((again.version, again.is_new), (1, true));
    assert_eq!(reader().get(&a).unwrap().data(), b"three");
    assert_eq!(listed(&sim), ["a", "b"]);
    writer.close().unwrap();
    verified(&sim, "stored again");
}

#[test]
fn one_batch_may_store_remove_and_store_again() {
    let sim = store();
    let device = sim.writer();
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    let (a, b) = (path("a"), path("b"));
    let changes = [
        Change::Put(Put::new(&a, b"one")),
        Change::Remove(&a),
        Change::Remove(&b),
        Change::Put(Put::new(&a, b"two")),
        Change::Put(Put::new(&b, b"b")),
        Change::Remove(&b),
    ];
    let answers: Vec<bool> = writer.commit_changes(&changes).unwrap().iter().map(Result::is_ok).collect();
    assert_eq!(answers, [true, true, false, true, true, true]);
    drop(writer);
    sim.crash_host(Fate::Keep);
    Writer::open(&sim.writer(), &WriterOptions::default()).unwrap().close().unwrap();
    let reader = Reader::new(sim.reader(), "sim");
    assert_eq!(reader.get(&a).unwrap().data(), b"two");
    assert!(matches!(reader.get(&b), Err(Error::NotFound { .. })));
    assert_eq!(listed(&sim), ["a"]);
    verified(&sim, "recovered");
}

#[test]
fn a_written_but_unfinished_removal_is_not_pending() {
    let sim = store();
    let base = sim.fork();
    let device = base.writer();
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    writer.put(&Put::new(&path("a"), b"one")).unwrap();
    let before = base.ops();
    writer.remove(&path("a")).unwrap();
    for op in before..base.ops() {
        let sim = sim.fork();
        let device = sim.writer();
        let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
        sim.stop_at(op, 0);
        writer.put(&Put::new(&path("a"), b"one")).unwrap();
        assert!(writer.remove(&path("a")).is_err());
        let answer = Reader::new(sim.reader(), "sim").get(&path("a"));
        assert!(matches!(answer, Ok(_) | Err(Error::NotFound { .. })), "{op}: {answer:?}");
    }
}

/// Names whose home is one page of the index.
fn crowd(sim: &Sim, count: usize) -> Vec<ReceiptPath> {
    let reader = Reader::new(sim.reader(), "sim");
    let superblock = reader.superblock().unwrap();
    let geometry = &superblock.geometry;
    let home = |name: &String| {
        geometry.home_page(&geometry.regions[0], superblock.path_hash(name.as_bytes()).bucket)
    };
    let names = (0..).map(|n: u32| format!("crowd/{n}"));
    let names = names.filter(|name| home(name) == geometry.pages_per_segment());
    names.take(count).map(|name| path(&name)).collect()
}

/// Numbers of paths with their new data, `None` = removed.
type Batch = Vec<(usize, Option<&'static [u8]>)>;

/// Puts and removals on full index pages, so that the room of one path is taken by the next; stopped everywhere.
#[test]
fn a_crash_with_removals_on_full_pages_keeps_what_was_acknowledged() {
    let base = store();
    let names = crowd(&base, 260);
    {
        let device = base.writer();
        let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
        for chunk in names[..252].chunks(200) {
            let puts: Vec<Put<'_>> = chunk.iter().map(|name| Put::new(name, b"old")).collect();
            assert!(writer.commit(&puts).unwrap().iter().all(Result::is_ok));
        }
        writer.close().unwrap();
    }
    let put = |n: usize, data: &'static [u8]| (n, Some(data));
    let batches: [Batch; 5] = [
        vec![(0, None), put(252, b"in the place of 0"), put(253, b"spills")],
        vec![(252, None), put(0, b"back"), (130, None)],
        vec![put(254, b"x"), (254, None), put(255, b"y"), put(1, b"second version")],
        vec![(1, None), (253, None), put(254, b"z")],
        vec![put(1, b"third"), put(253, b"again")],
    ];
    let work = |sim: &Sim, stop: Option<(u64, u64)>| {
        let device = sim.writer();
        if let Some((op, sectors)) = stop {
            sim.stop_at(op, sectors);
        }
        let mut acknowledged = 0;
        let done = Writer::open(&device, &WriterOptions::default()).and_then(|mut writer| {
            for batch in &batches {
                let changes: Vec<Change<'_>> = batch
                    .iter()
                    .map(|(n, data)| match data {
                        Some(data) => Change::Put(Put { is_new_version: true, ..Put::new(&names[*n], data) }),
                        None => Change::Remove(&names[*n]),
                    })
                    .collect();
                for answer in writer.commit_changes(&changes)? {
                    answer?;
                }
                acknowledged += 1;
            }
            writer.close()
        });
        (acknowledged, done)
    };
    let after = |count: usize| {
        let mut state: BTreeMap<usize, &[u8]> = (0..252).map(|n| (n, b"old".as_slice())).collect();
        for (n, data) in batches[..count].iter().flatten() {
            match data {
                Some(data) => state.insert(*n, data),
                None => state.remove(n),
            };
        }
        state
    };
    let check = |sim: &Sim, acknowledged: usize, story: &str| {
        let reader = Reader::new(sim.reader(), "sim");
        let mut state = BTreeMap::new();
        let found: Vec<Option<Vec<u8>>> = names
            .iter()
            .map(|name| match reader.get(name) {
                Ok(receipt) => Some(receipt.data().to_vec()),
                Err(Error::NotFound { .. }) => None,
                Err(error) => panic!("{story}: {name}: {error}"),
            })
            .collect();
        for (n, data) in found.iter().enumerate() {
            if let Some(data) = data {
                state.insert(n, data.as_slice());
            }
        }
        let newest = (acknowledged + 1).min(batches.len());
        let (old, new) = (after(acknowledged), after(newest));
        for (n, name) in names.iter().enumerate() {
            let is_right = state.get(&n) == old.get(&n) || state.get(&n) == new.get(&n);
            // a removal and a put of the same path may lie in one batch that was cut
            let is_cut = batches[..newest].last().is_some_and(|b| b.iter().filter(|c| c.0 == n).count() > 1);
            assert!(is_right || is_cut, "{story}: {name} has {:?}", state.get(&n));
        }
        verified(sim, story);
        let mut expected: Vec<String> = state.keys().map(|n| names[*n].to_string()).collect();
        expected.sort();
        assert_eq!(listed(sim), expected, "{story}");
    };
    let whole = base.fork();
    let (acknowledged, done) = work(&whole, None);
    done.unwrap();
    check(&whole, acknowledged, "no crash");
    let mut rng = Rng(3);
    for op in 0..whole.ops() {
        for fate in 0..4 {
            let sim = base.fork();
            let (acknowledged, _) = work(&sim, Some((op, rng.below(20))));
            match fate {
                0 => sim.crash_guest(),
                1 => sim.crash_host(Fate::Lose),
                _ => sim.crash_host(Fate::Random(&mut rng)),
            }
            let story = format!("stopped at operation {op}, fate {fate}");
            let device = sim.writer();
            let recovered = Writer::open(&device, &WriterOptions::default()).and_then(Writer::close);
            recovered.unwrap_or_else(|error| panic!("{story}: {error}"));
            check(&sim, acknowledged, &story);
        }
    }
}

/// A receipt goes to the next page, because its home page has become full in the same commit, and is removed by the next commit. A crash that
/// keeps the next page and takes the home page back hides the entry: recovery has to look for it.
#[test]
pub(crate) fn a_crash_that_takes_the_spilled_flag_back_leaves_no_entry_behind() {
    let base = store();
    let names = crowd(&base, 128);
    {
        let device = base.writer();
        let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
        let puts: Vec<Put<'_>> = names[..125].iter().map(|name| Put::new(name, b"old")).collect();
        assert!(writer.commit(&puts).unwrap().iter().all(Result::is_ok));
        writer.close().unwrap();
    }
    let commits: [Vec<Change<'_>>; 3] = [
        vec![
            Change::Put(Put::new(&names[125], b"takes the room")),
            Change::Put(Put::new(&names[126], b"spills")),
        ],
        vec![Change::Remove(&names[125]), Change::Remove(&names[126])],
        vec![Change::Put(Put::new(&names[127], b"in the place of 125"))],
    ];
    let work = |sim: &Sim, stop: Option<(u64, u64)>| -> Result<()> {
        let device = sim.writer();
        if let Some((op, sectors)) = stop {
            sim.stop_at(op, sectors);
        }
        let mut writer = Writer::open(&device, &WriterOptions::default())?;
        for changes in &commits {
            for answer in writer.commit_changes(changes)? {
                answer?;
            }
        }
        Ok(())
    };
    let whole = base.fork();
    work(&whole, None).unwrap();
    let mut rng = Rng(5);
    for op in 0..whole.ops() {
        for round in 0..40 {
            let sim = base.fork();
            let _ = work(&sim, Some((op, rng.below(20)))); // stopped on the way
            sim.crash_host(Fate::Random(&mut rng));
            Writer::open(&sim.writer(), &WriterOptions::default()).unwrap().close().unwrap();
            verified(&sim, &format!("stopped at operation {op}, round {round}"));
        }
    }
}
