//! Writes that are under way at the same time: they land in any mixture, one of them may fail alone.

use super::{Fate, Rng, Sim};
use crate::device::{BlockWrite, Device};
use crate::{Error, FormatOptions, Put, Reader, ReceiptPath, Writer, WriterOptions, format};

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

/// Six receipts in four pieces of records, six index pages.
fn receipts(round: u8) -> Vec<(ReceiptPath, Vec<u8>)> {
    (0..6)
        .map(|n| (ReceiptPath::new(&format!("{round}/{n}")).unwrap(), vec![round * 10 + n; 15_000]))
        .collect()
}

fn puts(receipts: &[(ReceiptPath, Vec<u8>)]) -> Vec<Put<'_>> {
    receipts.iter().map(|(path, data)| Put::new(path, data)).collect()
}

#[test]
fn simulated_writes_land_in_any_mixture() {
    let mut is_second_ahead = false;
    let mut is_mixed = false;
    for sectors in 0..16 {
        for ticks in 0..8 {
            let sim = Sim::new(1 << 20);
            let device = sim.writer();
            (0..ticks).for_each(|_| device.flush().unwrap());
            sim.stop_at(ticks + 1, sectors);
            let (one, two) = ([1; 4096], [2; 4096]);
            let writes = [(0, &one), (65_536, &two)];
            let mut writes = writes
                .iter()
                .map(|(offset_bytes, bytes)| BlockWrite { offset_bytes: *offset_bytes, bytes: *bytes });
            device.write_many(&mut writes).unwrap_err();
            let landed = |offset_bytes| {
                let mut buf = [0; 4096];
                sim.reader().read(offset_bytes, &mut buf).unwrap();
                buf.iter().filter(|byte| **byte != 0).count() / 512
            };
            let (first, second) = (landed(0), landed(65_536));
            assert_eq!(
                first + second,
                8 + usize::try_from(sectors).unwrap().min(8),
                "sectors before the stop"
            );
            is_second_ahead |= second == 8 && first < 8;
            is_mixed |= first < 8 && second < 8 || sectors > 8;
        }
    }
    assert!(is_second_ahead && is_mixed, "the order is not always the same");
}

#[test]
fn one_of_several_writes_that_fails_stops_the_writer_and_loses_nothing() {
    let base = store();
    let ops = {
        let sim = base.fork();
        let device = sim.writer();
        let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
        writer.commit(&puts(&receipts(1))).unwrap();
        let before = sim.ops();
        writer.commit(&puts(&receipts(2))).unwrap();
        before..sim.ops()
    };
    assert!(ops.end - ops.start > 16, "pieces and pages: {ops:?}");
    let mut stopped = 0;
    for op in ops {
        for fate in 0..3 {
            let sim = base.fork();
            let device = sim.writer();
            let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
            let first = receipts(1);
            writer.commit(&puts(&first)).unwrap();
            sim.fail_at(op);
            let second = receipts(2);
            let answers = writer.commit(&puts(&second));
            let is_acknowledged =
                |number: usize| answers.as_ref().is_ok_and(|answers| answers[number].is_ok());
            if answers.is_err() {
                stopped += 1;
                let again = writer.commit(&puts(&receipts(3)));
                assert!(matches!(again, Err(Error::WriterStopped)), "operation {op}");
            }
            match fate {
                0 => sim.crash_host(Fate::Lose),
                1 => sim.crash_host(Fate::Random(&mut Rng(op))),
                _ => sim.crash_guest(),
            }
            Writer::open(&sim.writer(), &WriterOptions::default()).and_then(Writer::close).unwrap();
            let reader = Reader::new(sim.reader(), "sim");
            let acknowledged = first.iter().chain(
                second
                    .iter()
                    .enumerate()
                    .filter(|(number, _)| is_acknowledged(*number))
                    .map(|(_, receipt)| receipt),
            );
            for (path, data) in acknowledged {
                assert_eq!(reader.get(path).unwrap().data(), data, "operation {op}");
            }
            let totals = crate::verify::verify(&reader, |finding| panic!("operation {op}: {finding:?}"));
            assert_eq!(totals.unwrap().findings, 0);
        }
    }
    assert!(stopped > 30, "most of these operations are writes: {stopped}");
}

#[test]
fn index_pages_that_cannot_be_read_together_are_read_alone() {
    let sim = store();
    let device = sim.writer();
    let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
    sim.fail_at(sim.ops()); // the first of the pages that are read together
    let answers = writer.commit(&puts(&receipts(1))).unwrap();
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}
