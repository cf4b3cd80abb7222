//! Retiring a segment: its records go, its room is free again. The steps, in this order:
//!
//! 1. a Retire record, flushed, says which segment goes and which part of the chain;
//! 2. the entries of its receipts leave the index, flushed;
//! 3. the table says that the segment is free; 4. its room is discarded, in pieces, unless something has opened it meanwhile.
//!
//! Invariants: the segment lies before the replay position, so no recovery needs its records; while the Retire record is in the replay window a
//! crash repeats steps 2 to 4, and after that every run of expiry step 4; a segment that was opened again since is not discarded. A reader that still holds an old entry finds another
//! record or none and starts again at the index.

use crate::apply::Pages;
use crate::batch::Batch;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{BLOCK_BYTES, Geometry, block_offset};
use crate::log::read_header;
use crate::page_store::PageStore;
use crate::record::{Header, Kind};
use crate::rules::Rule;
use crate::superblock::Superblock;
use crate::table::SegmentState;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Index pages that are changed between two flushes.
const PAGES_PER_FLUSH: usize = 256;

/// A part of the chain that has gone, on disk.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RangeRaw {
    /// First sequence that has gone.
    pub first_seq: U64,
    /// Last sequence that has gone.
    pub last_seq: U64,
    /// What the first record named as the hash of the header before it.
    pub prev_hash: [u8; 32],
    /// Hash of the last record's header: what the record after it names.
    pub last_hash: [u8; 32],
}
const _: () = assert!(size_of::<RangeRaw>() == 80);

/// The path field of a Retire record. Its data is a list of further [`RangeRaw`]: those that Retire records in the segment named.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RetireRaw {
    /// Segment.
    pub segment: U64,
    /// Its generation.
    pub generation: U32,
    /// Zero.
    pub reserved: U32,
    /// The records of the segment.
    pub range: RangeRaw,
}
const _: () = assert!(size_of::<RetireRaw>() == 96);

/// A part of the chain that has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sequence.
    pub first_seq: u64,
    /// Last sequence.
    pub last_seq: u64,
    /// Hash of the header before the first.
    pub prev_hash: [u8; 32],
    /// Hash of the last header.
    pub last_hash: [u8; 32],
}

impl Range {
    fn raw(&self) -> RangeRaw {
        RangeRaw {
            first_seq: U64::new(self.first_seq),
            last_seq: U64::new(self.last_seq),
            prev_hash: self.prev_hash,
            last_hash: self.last_hash,
        }
    }

    fn of_raw(raw: &RangeRaw) -> Option<Self> {
        let (first_seq, last_seq) = (raw.first_seq.get(), raw.last_seq.get());
        (first_seq > 0 && last_seq >= first_seq).then_some(Self {
            first_seq,
            last_seq,
            prev_hash: raw.prev_hash,
            last_hash: raw.last_hash,
        })
    }
}

/// What a Retire record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retired {
    /// Segment.
    pub segment: u64,
    /// Its generation then.
    pub generation: u32,
    /// Its records.
    pub range: Range,
}

impl Retired {
    /// The path field.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let raw = RetireRaw {
            segment: U64::new(self.segment),
            generation: U32::new(self.generation),
            reserved: U32::ZERO,
            range: self.range.raw(),
        };
        raw.as_bytes().to_vec()
    }

    /// Reads the path field of a Retire record.
    #[must_use]
    pub fn of(header: &Header, geometry: &Geometry) -> Option<Self> {
        let (raw, _) = RetireRaw::ref_from_prefix(&header.meta).ok()?;
        let range = Range::of_raw(&raw.range).filter(|range| range.last_seq < header.seq)?;
        let segment = raw.segment.get();
        (header.kind == Kind::Retire && geometry.is_data_segment(segment)).then_some(Self {
            segment,
            generation: raw.generation.get(),
            range,
        })
    }
}

/// The list of further parts as data of a Retire record.
#[must_use]
pub fn encode_ranges(ranges: &[Range]) -> Vec<u8> {
    ranges.iter().flat_map(|range| range.raw().as_bytes().to_vec()).collect()
}

/// Reads the list; `None` when it is not made of whole parts.
#[must_use]
pub fn decode_ranges(bytes: &[u8]) -> Option<Vec<Range>> {
    let raw = <[RangeRaw]>::ref_from_bytes(bytes).ok()?;
    raw.iter().map(Range::of_raw).collect()
}

/// Joins parts that follow each other.
#[must_use]
pub fn join_ranges(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_by_key(|range| range.first_seq);
    ranges.dedup();
    let mut joined: Vec<Range> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.last_seq + 1 == range.first_seq && last.last_hash == range.prev_hash => {
                last.last_seq = range.last_seq;
                last.last_hash = range.last_hash;
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Calls `visit` with the headers of a segment's life in order, as far as they verify.
///
/// # Errors
/// A device error, or what `visit` returns.
pub fn walk_segment(
    device: &dyn Device,
    superblock: &Superblock,
    segment: u64,
    generation: u32,
    mut visit: impl FnMut(&Header, [u8; 32]) -> Result<()>,
) -> Result<()> {
    let geometry = &superblock.geometry;
    let (mut block, end) = (geometry.first_block(segment), geometry.end_block(segment));
    while block < end {
        let Ok((header, hash)) = read_header(device, superblock, block)? else { return Ok(()) };
        if header.generation != generation || !geometry.holds_record(block, header.blocks) {
            return Ok(());
        }
        visit(&header, hash)?;
        block += u64::from(header.blocks);
        if header.kind == Kind::Seal {
            return Ok(());
        }
    }
    Ok(())
}

impl<D: Device> Pages<'_, D> {
    /// As [`Pages::remove_entries`], of every receipt that the segment holds: one read a record.
    fn remove_all_entries(&mut self, retired: &Retired) -> Result<()> {
        let mut dead: Vec<Header> = Vec::new();
        walk_segment(self.device, self.superblock, retired.segment, retired.generation, |header, _| {
            if header.kind == Kind::Put {
                dead.push(header.clone());
            }
            Ok(())
        })?;
        self.remove_entries(&dead)
    }

    /// Takes the entries that name these records out of the index: written and flushed when this returns.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    fn remove_entries(&mut self, dead: &[Header]) -> Result<()> {
        for header in dead {
            let hash = self.superblock.path_hash(&header.meta);
            for (page_no, entry) in self.search(hash)?.entries {
                if entry.seq != header.seq {
                    continue;
                }
                self.change_index_page(page_no, |page| page.entries.retain(|other| *other != entry))?;
            }
            if self.store.staged().count() >= PAGES_PER_FLUSH {
                self.write_and_flush()?;
            }
        }
        self.write_and_flush()
    }

    fn write_and_flush(&mut self) -> Result<()> {
        // crash here: some entries are gone, the others are in the way of nobody: the Retire record is durable and removes them again.
        self.store.write_staged(self.device)?;
        self.store.flush(self.device, Rule::EntriesFlushed)
    }
}

/// Gives the room of a retired segment back to the host; nothing relies on what is read there afterwards.
fn discard(device: &dyn Device, geometry: &Geometry, segment: u64) {
    let bytes = geometry.blocks_per_segment() * BLOCK_BYTES;
    // A disk that cannot is no error: the segment is written over some day.
    let _ = device.discard(block_offset(geometry.first_block(segment)), bytes);
}

/// Zeroes the data of the record that an Erase names, if it is still there. Header and path stay. True when there was something to zero.
///
/// The first block is written again with the same header: a write that tears at 512 bytes leaves it whole, because those bytes are equal.
pub(crate) fn zero_data(device: &dyn Device, superblock: &Superblock, erase: &Header) -> Result<bool> {
    let (block, seq) = (erase.previous_version_block, erase.previous_version_seq);
    if !superblock.geometry.holds_record(block, 1) {
        return Err(Error::Corrupt(format!("Erase at block {}: out of bounds", erase.block)));
    }
    zero_record(device, superblock, (block, seq), &erase.meta)
}

/// Zeroes the data of the record with this place, sequence and path, if it is still there.
pub(crate) fn zero_record(
    device: &dyn Device,
    superblock: &Superblock,
    (block, seq): (u64, u64),
    path: &[u8],
) -> Result<bool> {
    let mut first = crate::log::read_blocks(device, block, 1)?;
    let target = match Header::parse(first.as_slice(), superblock.record_seed()) {
        Ok((target, _)) if target.seq == seq && target.block == block && target.meta == path => target,
        _ => return Ok(false), // its segment was retired since
    };
    if let Some(data) = first.as_mut_slice().get_mut(target.len_bytes()..) {
        data.fill(0);
    }
    // crash here: any part of the data may be left; the Erase record is durable and recovery zeroes it again.
    if target.blocks > 1 {
        device.write_zeroes(block_offset(block + 1), u64::from(target.blocks - 1) * BLOCK_BYTES)?;
    }
    device.write(block_offset(block), first.as_slice())?;
    Ok(true)
}

/// Whether the data of a record is all zeroes and not by its nature: it was erased, or a disk has lost it.
pub(crate) fn is_zeroed(device: &dyn Device, header: &Header) -> Result<bool> {
    let buf = crate::log::read_blocks(device, header.block, header.blocks)?;
    let is_as_stored = header.data(buf.as_slice()).is_ok() && header.is_padded(buf.as_slice());
    Ok(!is_as_stored && is_all_zero(header, buf.as_slice()))
}

/// Whether everything behind the header is zero.
pub(crate) fn is_all_zero(header: &Header, bytes: &[u8]) -> bool {
    bytes.get(header.len_bytes()..).is_some_and(|data| data.iter().all(|byte| *byte == 0))
}

/// The part of a commit that follows its pages: what Erase and Retire records order. Puts wait meanwhile, so it reads no record: who looked at the segment
/// knows its receipts.
///
/// # Errors
/// A device error or [`Error::Corrupt`]; recovery does it again.
pub(crate) fn carry_out<D: Device>(
    device: &D,
    superblock: &Superblock,
    store: &mut PageStore,
    batch: &Batch<'_>,
) -> Result<()> {
    let mut has_erased = false;
    for header in &batch.headers {
        match header.kind {
            Kind::Erase if Rule::EraseZeroes.holds() => {
                has_erased |= zero_data(device, superblock, header)?;
            }
            Kind::Retire => {
                let mut pages = Pages { device, superblock, store: &mut *store, window_puts: 0 };
                pages.remove_entries(&batch.dead)?;
                // crash here: nothing points into the segment; recovery frees and discards it.
                pages.apply(header)?;
                store.write_staged(device)?;
            }
            _ => {}
        }
    }
    if has_erased {
        store.flush(device, Rule::ErasureFlushed)?;
    }
    Ok(())
}

/// Recovery, before it applies the window: takes out the entries of segments that a Retire record in the window names. A later Seal in the window that opens
/// the segment again proves that this was done.
pub(crate) fn remove_entries_again<D: Device>(pages: &mut Pages<'_, D>, window: &[Header]) -> Result<()> {
    for (position, header) in window.iter().enumerate().filter(|(_, header)| header.kind == Kind::Retire) {
        let geometry = &pages.superblock.geometry;
        let Some(retired) = Retired::of(header, geometry) else { continue };
        let opens = |later: &Header| crate::log::seal_link(later, geometry).map(|link| link.0);
        let is_open_again = window[position..].iter().any(|later| opens(later) == Some(retired.segment));
        if !is_open_again && Rule::RetireRepeats.holds() {
            pages.remove_all_entries(&retired)?;
        }
    }
    Ok(())
}

/// Recovery, after it has applied the window: erases again, and discards retired segments that are still free.
///
/// # Errors
/// A device error or [`Error::Corrupt`].
pub(crate) fn carry_out_again<D: Device>(
    device: &D,
    superblock: &Superblock,
    store: &mut PageStore,
    window: &[Header],
) -> Result<()> {
    let mut has_erased = false;
    for header in window {
        match header.kind {
            Kind::Erase if Rule::EraseRepeats.holds() => has_erased |= zero_data(device, superblock, header)?,
            Kind::Retire => {
                let Some(retired) = Retired::of(header, &superblock.geometry) else { continue };
                let mut pages = Pages { device, superblock, store: &mut *store, window_puts: 0 };
                let entry = pages.table_entry(retired.segment)?;
                let is_free = entry.state == SegmentState::Free && entry.generation == retired.generation;
                if is_free || !Rule::OnlyFreeDiscarded.holds() {
                    discard(device, &superblock.geometry, retired.segment);
                }
            }
            _ => {}
        }
    }
    if has_erased {
        store.flush(device, Rule::ErasureFlushed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first_seq: u64, last_seq: u64) -> Range {
        let hash = |seq: u64| [u8::try_from(seq).unwrap(); 32];
        Range { first_seq, last_seq, prev_hash: hash(first_seq - 1), last_hash: hash(last_seq) }
    }

    #[test]
    fn parts_round_trip_and_join_where_they_follow_each_other() {
        let ranges = vec![range(1, 4), range(5, 9), range(20, 22)];
        assert_eq!(decode_ranges(&encode_ranges(&ranges)), Some(ranges.clone()));
        assert_eq!(decode_ranges(&encode_ranges(&ranges)[1..]), None);
        assert_eq!(
            join_ranges(vec![range(20, 22), range(5, 9), range(1, 4)]),
            vec![range(1, 9), range(20, 22)]
        );
        let stranger = Range { prev_hash: [99; 32], ..range(5, 9) };
        assert_eq!(join_ranges(vec![range(1, 4), stranger]).len(), 2, "another chain does not join");
    }
}
