//! A small workload stopped at every single device operation, with every fate of what was not flushed, and recovery
//! stopped at every operation, too.

use super::{Fate, Rng, Sim};
use crate::{Error, FormatOptions, Put, Reader, ReceiptPath, Result, Writer, WriterOptions, format};

const BATCHES: [&[(&str, usize)]; 5] = [
    &[("a", 100)],
    &[("b", 50_000), ("c", 5_000)],
    &[("a", 90_000), ("d", 60_000), ("e", 10)], // a second version, and the Seal of the first segment
    &[("f", 80_000)],
    &[("g", 1), ("h", 4096)],
];

fn options() -> WriterOptions {
    WriterOptions { fixed_clock_ms: Some(1), fixed_uuid: Some([1; 16]), ..WriterOptions::default() }
}

fn new_store() -> Sim {
    let sim = Sim::new(2 << 20);
    let format_options = FormatOptions {
        segment_bytes: Some(256 << 10),
        fixed_identity: Some(([7; 16], [9; 32])),
        fixed_clock_ms: Some(1),
        ..FormatOptions::default()
    };
    format(&sim.writer(), &format_options).unwrap();
    sim
}

fn data(path: &str, len: usize) -> Vec<u8> {
    path.bytes().chain(std::iter::repeat(u8::try_from(len % 251).unwrap())).take(len).collect()
}

/// Runs the workload; returns how many batches were acknowledged.
fn work(sim: &Sim, stop: Option<(u64, u64)>) -> (usize, Result<()>) {
    let device = sim.writer();
    if let Some((op, sectors)) = stop {
        sim.stop_at(op, sectors);
    }
    let mut acknowledged = 0;
    let done = Writer::open(&device, &options()).and_then(|mut writer| {
        for batch in BATCHES {
            let items: Vec<(ReceiptPath, Vec<u8>)> =
                batch.iter().map(|(path, len)| (ReceiptPath::new(path).unwrap(), data(path, *len))).collect();
            let puts: Vec<Put<'_>> = items
                .iter()
                .map(|(path, data)| Put { is_new_version: true, ..Put::new(path, data) })
                .collect();
            for result in writer.commit(&puts)? {
                result?;
            }
            acknowledged += 1;
        }
        writer.close()
    });
    (acknowledged, done)
}

/// The value that a path has after so many batches.
fn value_after(batches: usize, path: &str) -> Option<Vec<u8>> {
    let mut puts = BATCHES[..batches].iter().flat_map(|batch| batch.iter()).rev();
    puts.find(|(p, _)| *p == path).map(|(p, len)| data(p, *len))
}

/// After recovery every path has the value of the acknowledged batches, or of the one in flight.
fn check(sim: &Sim, acknowledged: usize, story: &str) {
    let reader = Reader::new(sim.reader(), "sim");
    let newest = (acknowledged + 1).min(BATCHES.len());
    for path in ["a", "b", "c", "d", "e", "f", "g", "h", "never"] {
        let found = match reader.get(&ReceiptPath::new(path).unwrap()) {
            Ok(receipt) => Some(receipt.data().to_vec()),
            Err(Error::NotFound { .. }) => None,
            Err(error) => panic!("{story}: {path}: {error}"),
        };
        let is_right = found == value_after(acknowledged, path) || found == value_after(newest, path);
        assert!(is_right, "{story}: {path} has {:?} bytes", found.map(|f| f.len()));
    }
    let totals = crate::verify::verify(&reader, |finding| panic!("{story}: {finding:?}")).unwrap();
    assert_eq!(totals.findings, 0);
    let mut listed = Vec::new();
    reader
        .list("", |locator| {
            listed.push(locator.path.to_string());
            Ok(())
        })
        .unwrap();
    listed.sort();
    let there = |path: &&str| reader.get(&ReceiptPath::new(path).unwrap()).is_ok();
    let expected: Vec<&str> = ["a", "b", "c", "d", "e", "f", "g", "h"].into_iter().filter(there).collect();
    assert_eq!(listed, expected, "{story}: listing");
}

fn recover(sim: &Sim, stop: Option<(u64, u64)>) -> Result<()> {
    let device = sim.writer();
    if let Some((op, sectors)) = stop {
        sim.stop_at(op, sectors);
    }
    Writer::open(&device, &options()).and_then(Writer::close)
}

#[test]
pub(super) fn a_crash_at_every_operation_keeps_what_was_acknowledged() {
    let base = new_store();
    let whole = base.fork();
    let (acknowledged, done) = work(&whole, None);
    done.unwrap();
    assert_eq!(acknowledged, BATCHES.len());
    check(&whole, acknowledged, "no crash");
    let mut rng = Rng(1);
    for op in 0..whole.ops() {
        for fate in 0..6 {
            let sim = base.fork();
            let (acknowledged, done) = work(&sim, Some((op, rng.below(60))));
            assert!(done.is_err(), "operation {op} stops the writer");
            match fate {
                0 => sim.crash_host(Fate::Keep),
                1 => sim.crash_host(Fate::Lose),
                2 => sim.crash_guest(),
                _ => sim.crash_host(Fate::Random(&mut rng)),
            }
            let story = format!("stopped at operation {op}, fate {fate}");
            recover(&sim, None).unwrap_or_else(|error| panic!("{story}: {error}"));
            check(&sim, acknowledged, &story);
        }
    }
}

#[test]
pub(super) fn a_crash_at_every_operation_of_recovery_changes_nothing() {
    let base = new_store();
    let whole = base.fork();
    work(&whole, None).1.unwrap();
    let mut rng = Rng(2);
    for op in (0..whole.ops()).step_by(2) {
        let crashed = base.fork();
        let (acknowledged, _) = work(&crashed, Some((op, 3)));
        crashed.crash_host(Fate::Random(&mut rng));
        for recovery_op in 0.. {
            let sim = crashed.fork();
            if recover(&sim, Some((recovery_op, rng.below(8)))).is_ok() {
                break;
            }
            sim.crash_host(Fate::Random(&mut rng));
            let story = format!("stopped at operation {op}, recovery at {recovery_op}");
            recover(&sim, None).unwrap_or_else(|error| panic!("{story}: {error}"));
            check(&sim, acknowledged, &story);
        }
    }
}

#[test]
pub(super) fn a_device_that_fails_once_stops_the_writer_and_loses_nothing() {
    let base = new_store();
    let whole = base.fork();
    work(&whole, None).1.unwrap();
    for op in 0..whole.ops() {
        let sim = base.fork();
        let device = sim.writer();
        sim.fail_at(op);
        let mut acknowledged = Vec::new();
        let done = Writer::open(&device, &options()).and_then(|mut writer| {
            for (number, batch) in BATCHES.iter().enumerate() {
                for (path, len) in *batch {
                    let name = ReceiptPath::new(&format!("{number}/{path}")).unwrap();
                    if writer.put(&Put::new(&name, &data(path, *len))).is_ok() {
                        acknowledged.push((name, data(path, *len)));
                    }
                }
            }
            writer.close()
        });
        drop(done);
        sim.crash_host(Fate::Lose);
        recover(&sim, None).unwrap();
        let reader = Reader::new(sim.reader(), "sim");
        for (name, data) in acknowledged {
            assert_eq!(reader.get(&name).unwrap().data(), data, "failed at operation {op}");
        }
    }
}
