//! The checksum behind the data: it may spare a reader the hash, and decides nothing else.

use super::fault_tests::{path, store};
use super::{Fate, Sim};
use crate::layout::{BLOCK_BYTES, block_offset};
use crate::record::{FLAG_CHECKSUM, FLAG_MOVED};
use crate::verify::verify;
use crate::{Device, Error, Locator, Put, Reader, Receipt, Result, Writer, WriterOptions};

fn end_offset(locator: &Locator) -> u64 {
    block_offset(locator.block + u64::from(locator.blocks))
}

/// By path, by locator and by version.
fn gets(sim: &Sim, locator: &Locator) -> [Result<Receipt>; 3] {
    let reader = Reader::new(sim.reader(), "sim");
    [reader.get(&locator.path), reader.get_locator(locator), reader.get_version(&locator.path, 1)]
}

fn findings(sim: &Sim) -> Vec<String> {
    let mut findings = Vec::new();
    verify(&Reader::new(sim.reader(), "sim"), |finding| {
        findings.push(format!("{}: {}", finding.path.unwrap_or_default(), finding.fact));
        Ok(())
    })
    .unwrap();
    findings
}

#[test]
pub(super) fn a_wrong_checksum_takes_no_receipt_away() {
    let (sim, stored) = store();
    let locator = &stored[3].locator;
    for at in 1..=8 {
        let rotten = sim.fork();
        rotten.rot(end_offset(locator) - at, 0x40);
        for receipt in gets(&rotten, locator) {
            assert_eq!(receipt.unwrap().data(), [3; 30_000]);
        }
        assert_eq!(findings(&rotten), [format!("{}: what is behind the data is wrong", locator.path)]);
    }
}

/// A disk that has written the first block of a record and lost the others, which still hold a record of before.
#[test]
pub(super) fn data_with_a_checksum_of_another_record_is_refused() {
    let (sim, stored) = store();
    let (locator, other) = (&stored[3].locator, &stored[4].locator);
    let mut behind = vec![0; usize::try_from((u64::from(other.blocks) - 1) * BLOCK_BYTES).unwrap()];
    sim.reader().read(block_offset(other.block + 1), &mut behind).unwrap();
    let device = sim.writer();
    device.write(block_offset(locator.block + 1), &behind).unwrap();
    // All of its data, but for the header.
    for at in 144 + 8..BLOCK_BYTES {
        sim.rot(block_offset(locator.block) + at, 3 ^ 4);
    }
    for receipt in gets(&sim, locator) {
        assert_eq!(receipt.unwrap_err().exit_code(), 5);
    }
}

/// Who changes the data on purpose may write the checksum that goes with it: only the hash tells.
#[test]
fn a_forged_checksum_is_told_by_the_hash_alone() {
    let (sim, stored) = store();
    let locator = &stored[3].locator;
    let reader = Reader::new(sim.reader(), "sim");
    let header = reader.get(&locator.path).unwrap().stat().header;
    assert!(reader.get(&locator.path).unwrap().check_hash().is_ok());
    let mut data = vec![3; 30_000];
    data[20_000] = 9;
    let forged = crate::checksum::DataSums::of_hashed(&data, header.data_hash).checksum.to_le_bytes();
    let right = crate::checksum::DataSums::of_hashed(&[3; 30_000], header.data_hash).checksum.to_le_bytes();
    sim.rot(block_offset(locator.block) + header.len_bytes() as u64 + 20_000, 3 ^ 9);
    for (at, (forged, right)) in (1..).zip(forged.into_iter().zip(right).rev()) {
        sim.rot(end_offset(locator) - at, forged ^ right);
    }
    for receipt in gets(&sim, locator) {
        let receipt = receipt.unwrap();
        assert_eq!(receipt.data(), data, "it was accepted by its checksum");
        let error = receipt.check_hash().unwrap_err();
        assert!(matches!(error, Error::CorruptReceipt { .. }), "{error}");
    }
    assert_eq!(findings(&sim), ["r/3: data does not match its hash"]);
}

#[test]
pub(super) fn an_erasure_takes_the_checksum_with_it() {
    let (sim, stored) = store();
    let last = |sim: &Sim, locator: &Locator| {
        let mut block = vec![0; 4096];
        sim.reader().read(end_offset(locator) - BLOCK_BYTES, &mut block).unwrap();
        u64::from_le_bytes(*block.last_chunk().unwrap())
    };
    // Receipt 0 is zeroes: its hash fits before and after.
    let mut writer = Writer::open(sim.writer(), &WriterOptions::default()).unwrap();
    for Put { path, .. } in [Put::new(&path("r/0"), b""), Put::new(&path("r/3"), b"")] {
        let locator = &stored.iter().find(|stored| stored.locator.path == *path).unwrap().locator;
        assert_ne!(last(&sim, locator), 0);
        writer.erase(path, "order").unwrap();
        assert_eq!(last(&sim, locator), 0);
        let again = writer.erase(path, "order").unwrap_err();
        assert!(matches!(again, Error::NotFound { .. }), "{again}");
    }
    writer.close().unwrap();
    assert_eq!(findings(&sim), Vec::<String>::new());
}

/// The last sector was not written when the power failed: it holds no data, but the checksum.
#[test]
pub(super) fn recovery_mends_a_checksum_that_was_torn_off() {
    let (sim, _) = store();
    let mut writer = Writer::open(sim.writer(), &WriterOptions::default()).unwrap();
    let locator = writer.put(&Put::new(&path("torn"), &[7; 5000])).unwrap().locator;
    drop(writer);
    sim.crash_host(Fate::Keep);
    for at in 1..=8 {
        let mut block = vec![0; 4096];
        sim.reader().read(end_offset(&locator) - BLOCK_BYTES, &mut block).unwrap();
        sim.rot(end_offset(&locator) - at, block[block.len() - usize::try_from(at).unwrap()]);
    }
    Writer::open(sim.writer(), &WriterOptions::default()).and_then(Writer::close).unwrap();
    assert_eq!(findings(&sim), Vec::<String>::new());
    for receipt in gets(&sim, &locator) {
        assert_eq!(receipt.unwrap().data(), [7; 5000]);
    }
}

#[test]
fn records_and_copies_of_them_have_checksums() {
    let (sim, stored) = store();
    let mut writer = Writer::open(sim.writer(), &WriterOptions::default()).unwrap();
    let header = |name: &crate::ReceiptPath| Reader::new(sim.reader(), "sim").stat(name).unwrap().header;
    let before = header(&stored[0].locator.path);
    assert_eq!(before.flags & (FLAG_CHECKSUM | FLAG_MOVED), FLAG_CHECKSUM);
    writer.move_out(&[before]).unwrap();
    writer.close().unwrap();
    let now = Reader::new(sim.reader(), "sim").get(&stored[0].locator.path).unwrap();
    assert_eq!(now.stat().header.flags & (FLAG_CHECKSUM | FLAG_MOVED), FLAG_CHECKSUM | FLAG_MOVED);
    assert_eq!(findings(&sim), Vec::<String>::new());
}
