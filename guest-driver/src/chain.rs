//! Following the chain of records from a known place: head notes, `verify --from`, and new receipts as they are acknowledged.
//!
//! A head note names a record by its sequence and the hash of its header. Every header holds the hash of the one before, so a
//! note that is kept off this disk vouches for everything up to it.

use crate::control::Control;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::WINDOW_RECORDS_MAX;
use crate::list::{read_summary, used_segments};
use crate::log::{Cursor, read_blocks, read_header};
use crate::path::ReceiptPath;
use crate::reader::{Reader, Stat};
use crate::record::{Header, Kind};
use crate::table::TableEntry;
use crate::verify_life::{Gap, Life};
use crate::{Superblock, hex};

/// First word of a head note.
const NOTE_MAGIC: &str = "receipt-note-1";

/// What the head of a store was at some time: one line `receipt-note-1 UUID SEQ HASH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Identity of the store.
    pub uuid: [u8; 16],
    /// Sequence of the last record.
    pub seq: u64,
    /// BLAKE3 of its header; for sequence 0 what the first record names as its predecessor.
    pub hash: [u8; 32],
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{NOTE_MAGIC} {} {} {}", hex(&self.uuid), self.seq, hex(&self.hash))
    }
}

impl Note {
    /// Reads the text form; white space around it does not count.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        if words.next() != Some(NOTE_MAGIC) {
            return None;
        }
        let note = Self {
            uuid: from_hex(words.next()?)?,
            seq: words.next()?.parse().ok()?,
            hash: from_hex(words.next()?)?,
        };
        words.next().is_none().then_some(note)
    }
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// A change that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What the record says.
    pub stat: Stat,
    /// The path was removed; otherwise it was stored.
    pub is_removal: bool,
}

/// Where somebody who follows the store stands.
#[derive(Clone, Debug)]
pub struct Follower {
    cursor: Cursor,
    /// Events before this sequence were seen.
    from_seq: u64,
    /// Segments that were retired meanwhile.
    retirements: u64,
}

impl Follower {
    /// The sequence to resume from.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.from_seq.max(self.cursor.seq + 1)
    }

    /// How many segments were retired since the beginning: their receipts have gone without an event each.
    #[must_use]
    pub fn retirements(&self) -> u64 {
        self.retirements
    }
}

fn damaged(block: u64, fact: &str) -> Error {
    Error::Corrupt(format!("record at block {block}: {fact}"))
}

/// The next record; `None` when the log goes on behind segments that were retired. What they were is left to `life` to prove.
fn advance<D: Device>(
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
fn place_before<D: Device>(
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

    /// Begins to follow at the first change with sequence `from_seq` or later; `None` = after all that is acknowledged now.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn follow(&self, from_seq: Option<u64>) -> Result<Follower> {
        let superblock = &*self.superblock_now()?;
        let control = Control::read(self.device(), superblock)?;
        let replay = &control.head.replay;
        let from_seq = from_seq.unwrap_or(control.head.published_seq + 1);
        let cursor = if from_seq <= replay.seq {
            place_before(self, superblock, &control, from_seq)?
        } else {
            Cursor::at(replay, 0)
        };
        // Where the place was retired, it begins behind what has gone.
        let retirements = u64::from(cursor.seq + 1 > from_seq.max(1));
        Ok(Follower { cursor, from_seq, retirements })
    }

    /// Calls `visit` with every change that was acknowledged since the last call, in order: one device read of lease and head, and
    /// one a record.
    ///
    /// # Errors
    /// A device error, [`Error::Corrupt`], or what `visit` returns; the follower then stands before that record.
    pub fn poll(&self, follower: &mut Follower, mut visit: impl FnMut(Event) -> Result<()>) -> Result<()> {
        let known = self.superblock()?;
        match self.poll_in(&known, follower, &mut visit) {
            // What lies beyond the store as it was known is no damage.
            Err(Error::Corrupt(_)) if self.superblock_now()? != known => {
                self.poll_in(&*self.superblock()?, follower, &mut visit)
            }
            answer => answer,
        }
    }

    fn poll_in(
        &self,
        superblock: &Superblock,
        follower: &mut Follower,
        visit: &mut impl FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let published_seq = Control::read(self.device(), superblock)?.head.published_seq;
        while follower.cursor.seq < published_seq {
            let mut cursor = follower.cursor.clone();
            let Some(header) = advance(self, superblock, &mut cursor, &mut Life::default())? else {
                follower.cursor = cursor; // behind what was retired
                follower.retirements += 1;
                continue;
            };
            let is_new = header.seq >= follower.from_seq;
            follower.retirements += u64::from(header.kind == Kind::Retire && is_new);
            if header.changes_index() && is_new {
                let is_removal = header.kind != Kind::Put;
                let path = ReceiptPath::from_bytes(&header.meta)?;
                visit(Event { stat: Stat { path, header }, is_removal })?;
            }
            follower.cursor = cursor;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Sim;
    use crate::{FormatOptions, Put, Writer, WriterOptions, format};

    fn store() -> Sim {
        let sim = Sim::new(8 << 20);
        format(&sim.writer(), &FormatOptions { segment_bytes: Some(256 << 10), ..FormatOptions::default() })
            .unwrap();
        sim
    }

    fn put(sim: &Sim, numbers: std::ops::Range<u32>) {
        let device = sim.writer();
        let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
        for number in numbers {
            let path = ReceiptPath::new(&format!("n/{number}")).unwrap();
            writer.put(&Put::new(&path, &[1; 9000])).unwrap();
        }
        writer.close().unwrap();
    }

    fn reader(sim: &Sim) -> Reader<crate::sim::SimReader> {
        Reader::new(sim.reader(), "sim")
    }

    #[test]
    fn notes_round_trip() {
        let note = Note { uuid: [0xab; 16], seq: 7, hash: [1; 32] };
        assert_eq!(Note::parse(&format!("{note}\n")), Some(note.clone()));
        for bad in [
            "",
            "receipt-note-1",
            &format!("{note} x"),
            &note.to_string().replace("ab", "xy"),
            &note.to_string()[1..],
        ] {
            assert_eq!(Note::parse(bad), None, "{bad}");
        }
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

    #[test]
    fn following_from_any_sequence_sees_each_change_once_and_in_order() {
        let sim = store();
        put(&sim, 0..150);
        let last = reader(&sim).note().unwrap().seq;
        let mut all = Vec::new();
        let collect = |from, all: &mut Vec<(u64, String)>| {
            let reader = reader(&sim);
            let mut follower = reader.follow(from).unwrap();
            reader
                .poll(&mut follower, |event| {
                    all.push((event.stat.header.seq, event.stat.path.to_string()));
                    Ok(())
                })
                .unwrap();
            follower.next_seq()
        };
        assert_eq!(collect(Some(0), &mut all), last + 1);
        assert_eq!(all.len(), 150);
        assert!(all.iter().zip(0..).all(|((_, path), n)| *path == format!("n/{n}")));
        for from in 1..=last + 1 {
            let mut some = Vec::new();
            collect(Some(from), &mut some);
            let expected: Vec<_> = all.iter().filter(|(seq, _)| *seq >= from).cloned().collect();
            assert_eq!(some, expected, "from {from}");
        }
        let mut none = Vec::new();
        assert_eq!(collect(None, &mut none), last + 1);
        assert!(none.is_empty());
    }

    #[test]
    fn a_follower_sees_what_comes_and_what_goes() {
        let sim = store();
        let first = reader(&sim);
        let follower = first.follow(None).unwrap();
        put(&sim, 0..3);
        let device = sim.writer();
        let mut writer = Writer::open(&device, &WriterOptions::default()).unwrap();
        writer.remove(&ReceiptPath::new("n/1").unwrap()).unwrap();
        let mut seen = Vec::new();
        reader(&sim)
            .poll(&mut follower.clone(), |event| {
                seen.push((event.stat.path.to_string(), event.is_removal));
                Ok(())
            })
            .unwrap();
        assert_eq!(
            seen.iter().map(|(p, r)| (p.as_str(), *r)).collect::<Vec<_>>(),
            [("n/0", false), ("n/1", false), ("n/2", false), ("n/1", true)]
        );
    }
}
