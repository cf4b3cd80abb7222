//! Going along the chain of records from a known place to the head: what a head note vouches for.

use crate::control::Control;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::WINDOW_RECORDS_MAX;
use crate::list::{read_summary, used_segments};
use crate::log::{Cursor, read_blocks, read_header};
use crate::note::Note;
use crate::reader::Reader;
use crate::record::{Header, Kind};
use crate::superblock::Superblock;
use crate::table::TableEntry;
use crate::verify_life::{Gap, Life};

fn damaged(block: u64, fact: &str) -> Error {
    Error::Corrupt(format!("record at block {block}: {fact}"))
}

/// The next record; `None` when the log goes on behind segments that were retired. What they were is left to `life` to prove.
pub(crate) fn advance<D: Device>(
    reader: &Reader<D>,
    superblock: &Superblock,
    cursor: &mut Cursor,
    life: &mut Life,
) -> Result<Option<Header>> {
    let at = cursor.clone();
    match step(reader, superblock, cursor) {
        Err(Error::Corrupt(_)) if reader.is_retired(superblock, at.block, at.seq + 1)? => {}
        answer => {
            let header = answer?;
            if header.kind == Kind::Retire {
                let buf = read_blocks(reader.device(), header.block, header.blocks)?;
                let data =
                    header.data(buf.as_slice()).map_err(|fault| damaged(header.block, &fault.to_string()))?;
                life.prove(superblock, &header, data);
            }
            return Ok(Some(header));
        }
    }
    let segments = used_segments(reader.device(), superblock)?;
    let behind = segments.iter().filter(|(_, entry)| entry.first_seq > at.seq + 1);
    let Some((segment, entry)) = behind.min_by_key(|(_, entry)| entry.first_seq) else {
        return Err(damaged(at.block, "is missing, and nothing follows"));
    };
    *cursor = start_of(reader, superblock, *segment, entry)?;
    life.gaps.push(Gap {
        first_seq: at.seq + 1,
        last_seq: cursor.seq,
        prev_hash: Some(at.prev_hash),
        last_hash: Some(cursor.prev_hash),
        segment: *segment,
    });
    Ok(None)
}

/// The place before a record.
fn before(header: &Header, block: u64) -> Cursor {
    Cursor {
        seq: header.seq - 1,
        block,
        generation: header.generation,
        prev_hash: header.prev_hash,
        epoch: 0,
    }
}

/// The place before the first record of a segment.
fn start_of<D: Device>(
    reader: &Reader<D>,
    superblock: &Superblock,
    segment: u64,
    entry: &TableEntry,
) -> Result<Cursor> {
    let block = superblock.geometry.first_block(segment);
    let (header, _) = read_header(reader.device(), superblock, block)?
        .map_err(|fault| damaged(block, &fault.to_string()))?;
    if (header.generation, header.seq) != (entry.generation, entry.first_seq) {
        return Err(damaged(block, "is of another time"));
    }
    Ok(before(&header, block))
}

/// The next record; it must be there.
fn step<D: Device>(reader: &Reader<D>, superblock: &Superblock, cursor: &mut Cursor) -> Result<Header> {
    let block = cursor.block;
    let (header, hash) = read_header(reader.device(), superblock, block)?
        .map_err(|fault| damaged(block, &fault.to_string()))?;
    if !cursor.accepts(&header, &superblock.geometry) {
        return Err(damaged(block, &format!("does not follow sequence {}: the chain is broken", cursor.seq)));
    }
    cursor.step(&header, hash, &superblock.geometry);
    Ok(header)
}

/// A place in the log at or before record `seq`, which is at most the head's replay position. The chain up to the place is not
/// checked. Behind it where everything up to `seq` was retired.
pub(crate) fn place_before<D: Device>(
    reader: &Reader<D>,
    superblock: &Superblock,
    control: &Control,
    seq: u64,
) -> Result<Cursor> {
    let geometry = &superblock.geometry;
    let segments = used_segments(reader.device(), superblock)?;
    let newest = segments.iter().filter(|(_, entry)| entry.first_seq <= seq.max(1));
    let Some((segment, entry)) = newest.max_by_key(|(_, entry)| entry.first_seq) else {
        // What comes first was retired.
        return match segments.iter().min_by_key(|(_, entry)| entry.first_seq) {
            Some((segment, entry)) => start_of(reader, superblock, *segment, entry),
            None => Err(Error::Corrupt(format!("no segment holds sequence {seq}"))),
        };
    };
    let mut summary = if entry.seal_block != 0 {
        geometry.first_block(*segment) + u64::from(entry.seal_block)
    } else if geometry.segment_of(control.head.replay.block) == *segment {
        control.head.replay.summary_block
    } else {
        0
    };
    // A prefix that no path has: only the descriptors are read.
    while summary != 0 {
        let (header, descriptor, _) = read_summary(reader.device(), superblock, summary, &[0xff; 2])?;
        if header.seq < seq {
            break;
        }
        if descriptor.previous_block >= summary {
            return Err(Error::Corrupt(format!("Summary at block {summary} links forward")));
        }
        summary = descriptor.previous_block;
    }
    let block = if summary == 0 { geometry.first_block(*segment) } else { summary };
    let (header, hash) = read_header(reader.device(), superblock, block)?
        .map_err(|fault| damaged(block, &fault.to_string()))?;
    let is_right = header.generation == entry.generation && (summary != 0 || header.seq == entry.first_seq);
    if !is_right {
        return Err(damaged(block, "is of another time"));
    }
    if header.seq < seq {
        return Ok(Cursor::behind(&header, hash, geometry));
    }
    Ok(before(&header, block))
}

impl<D: Device> Reader<D> {
    /// What the head is now: all that is acknowledged.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn note(&self) -> Result<Note> {
        let superblock = &*self.superblock_now()?;
        let control = Control::read(self.device(), superblock)?;
        let mut cursor = Cursor::at(&control.head.replay, 0);
        for _ in 0..=WINDOW_RECORDS_MAX {
            if cursor.seq >= control.head.published_seq {
                break;
            }
            step(self, superblock, &mut cursor)?;
        }
        if cursor.seq != control.head.published_seq {
            return Err(Error::Corrupt("the replay window does not end".to_owned()));
        }
        Ok(Note { uuid: superblock.uuid, seq: cursor.seq, hash: cursor.prev_hash })
    }

    /// Checks that the store has grown from `note` to its head: the same store, not an older copy of it, and every record in
    /// between follows the one before. Reads headers only; returns their number and the note of the head.
    ///
    /// # Errors
    /// [`Error::Corrupt`] says what does not fit; a device error.
    pub fn verify_from(&self, note: &Note, mut progress: impl FnMut(u64, u64)) -> Result<(u64, Note)> {
        let superblock = &*self.superblock_now()?;
        if superblock.uuid != note.uuid {
            return Err(Error::Corrupt("the note is of another store".to_owned()));
        }
        let head = self.note()?;
        if head.seq < note.seq {
            let fact = format!(
                "it ends at sequence {}, the note has {}: this is an older copy, or the end is lost",
                head.seq, note.seq
            );
            return Err(Error::Corrupt(fact));
        }
        let control = Control::read(self.device(), superblock)?;
        if head.seq == 0 {
            return if head == *note {
                Ok((0, head))
            } else {
                Err(Error::Corrupt("the note does not fit".to_owned()))
            };
        }
        let mut cursor = place_before(self, superblock, &control, note.seq)?;
        let mut life = Life::default();
        while cursor.seq < note.seq {
            advance(self, superblock, &mut cursor, &mut life)?;
        }
        if note.seq == 0 && cursor.seq > 0 && note.hash == superblock.genesis_hash() {
            life.gaps.push(Gap {
                first_seq: 1,
                last_seq: cursor.seq,
                prev_hash: Some(note.hash),
                last_hash: Some(cursor.prev_hash),
                segment: superblock.geometry.segment_of(cursor.block),
            });
        } else if cursor.seq != note.seq {
            return Err(Error::Refused(format!(
                "record {}, which the note has seen, was retired since: check from a younger note",
                note.seq
            )));
        } else if cursor.prev_hash != note.hash {
            return Err(Error::Corrupt(format!(
                "record {} is not the one that the note has seen: history was changed",
                note.seq
            )));
        }
        while cursor.seq < head.seq {
            advance(self, superblock, &mut cursor, &mut life)?;
            progress(cursor.seq - note.seq, head.seq - note.seq);
        }
        if let Some(gap) = life.gaps.iter().find(|gap| !life.bridges(gap)) {
            return Err(Error::Corrupt(format!(
                "records {} to {} are missing, and no Retire record says why",
                gap.first_seq, gap.last_seq
            )));
        }
        if cursor.prev_hash != head.hash {
            return Err(Error::Corrupt("the chain does not lead to the head".to_owned()));
        }
        Ok((head.seq - note.seq, head))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sim::Sim;
    use crate::{FormatOptions, Put, ReceiptPath, Writer, WriterOptions, format};

    pub(crate) fn store() -> Sim {
        let sim = Sim::new(8 << 20);
        format(&sim.writer(), &FormatOptions { segment_bytes: Some(256 << 10), ..FormatOptions::default() })
            .unwrap();
        sim
    }

    pub(crate) fn put(sim: &Sim, numbers: std::ops::Range<u32>) {
        let device = sim.writer();
        let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
        for number in numbers {
            let path = ReceiptPath::new(&format!("n/{number}")).unwrap();
            writer.put(&Put::new(&path, &[1; 9000])).unwrap();
        }
        writer.close().unwrap();
    }

    pub(crate) fn reader(sim: &Sim) -> Reader<crate::sim::SimReader> {
        Reader::new(sim.reader(), "sim")
    }

    #[test]
    fn every_note_fits_every_later_store_and_no_earlier_one() {
        let sim = store();
        let mut notes = vec![reader(&sim).note().unwrap()];
        let mut copies = vec![sim.fork()];
        for round in 0..6 {
            put(&sim, round * 37..(round + 1) * 37);
            notes.push(reader(&sim).note().unwrap());
            copies.push(sim.fork());
        }
        for (at, note) in notes.iter().enumerate() {
            for (now, copy) in copies.iter().enumerate() {
                let answer = reader(copy).verify_from(note, |_, _| {});
                match answer {
                    Ok((count, head)) if now >= at => {
                        assert_eq!((note.seq + count, head), (notes[now].seq, notes[now].clone()))
                    }
                    Err(Error::Corrupt(fact)) if now < at => assert!(fact.contains("older copy"), "{fact}"),
                    answer => panic!("note {at}, copy {now}: {answer:?}"),
                }
            }
        }
        let changed = Note { hash: [0; 32], ..notes[3].clone() };
        assert!(reader(&sim).verify_from(&changed, |_, _| {}).unwrap_err().to_string().contains("history"));
        assert!(
            reader(&store())
                .verify_from(&notes[0], |_, _| {})
                .unwrap_err()
                .to_string()
                .contains("another store")
        );
    }
}
