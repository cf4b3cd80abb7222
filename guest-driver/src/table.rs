//! The segment table: 32 bytes a segment, 126 segments a page.
//!
//! Invariants: `generation` grows by one each time a segment is opened and is never 0 in use; `live` is a hint (pages of one commit
//! land in any order); `applied_seq` of a page is the last record whose effect it shows, so replay skips what is not newer.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{SLOT_BODY_BYTES, TABLE_ENTRIES_PER_PAGE};
use crate::page::{Page, PageId, PageKind, read_page};
use crate::superblock::Superblock;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// State of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SegmentState {
    /// Never used, or retired.
    #[default]
    Free,
    /// The log grows here.
    Open,
    /// Ended by a Seal.
    Sealed,
}

/// A table entry on disk.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TableEntryRaw {
    /// Times the segment was opened.
    pub generation: U32,
    /// 0 free, 1 open, 2 sealed.
    pub state: u8,
    /// Retention class.
    pub class: u8,
    /// Zero.
    pub reserved_a: U16,
    /// Records that an index entry points at; a hint.
    pub live: U32,
    /// Newest issue day of its records, days since 1970.
    pub newest_issue_day: U32,
    /// Sequence of the first record.
    pub first_seq: U64,
    /// Block of the Seal inside the segment, 0 = none.
    pub seal_block: U32,
    /// Zero.
    pub reserved_b: U32,
}
const _: () = assert!(size_of::<TableEntryRaw>() == 32);
const _: () = assert!(TABLE_ENTRIES_PER_PAGE == (SLOT_BODY_BYTES / size_of::<TableEntryRaw>()) as u64);

/// What the table says of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableEntry {
    /// Times the segment was opened.
    pub generation: u32,
    /// State.
    pub state: SegmentState,
    /// Records that an index entry points at; a hint.
    pub live: u32,
    /// Days since 1970.
    pub newest_issue_day: u32,
    /// Sequence of the first record.
    pub first_seq: u64,
    /// Block of the Seal inside the segment, 0 = none.
    pub seal_block: u32,
}

/// Reads one entry of a table page.
///
/// # Errors
/// [`Error::Corrupt`] when the state is unknown.
pub fn entry(page: &Page, position: usize) -> Result<TableEntry> {
    let corrupt = |text: String| Error::Corrupt(format!("segment table: {text}"));
    let raw = <[TableEntryRaw]>::ref_from_bytes(page.body.as_slice())
        .ok()
        .and_then(|entries| entries.get(position))
        .ok_or_else(|| corrupt(format!("no entry {position}")))?;
    let state = match raw.state {
        0 => SegmentState::Free,
        1 => SegmentState::Open,
        2 => SegmentState::Sealed,
        state => return Err(corrupt(format!("segment state {state}"))),
    };
    Ok(TableEntry {
        generation: raw.generation.get(),
        state,
        live: raw.live.get(),
        newest_issue_day: raw.newest_issue_day.get(),
        first_seq: raw.first_seq.get(),
        seal_block: raw.seal_block.get(),
    })
}

/// What the table on the disk says of a segment now: one device read.
///
/// # Errors
/// A device error, or as [`entry`].
pub(crate) fn read_entry(device: &dyn Device, superblock: &Superblock, segment: u64) -> Result<TableEntry> {
    let (page_no, position) = superblock.geometry.table_slot(segment);
    let id = PageId { store_id: Some(superblock.store_id()), page_no, kind: PageKind::Table };
    entry(&read_page(device, id)?.0, position)
}

/// Whether the segment of a block holds only records younger than `seq`, or none.
///
/// # Errors
/// As [`read_entry`].
pub(crate) fn is_retired(device: &dyn Device, superblock: &Superblock, block: u64, seq: u64) -> Result<bool> {
    let entry = read_entry(device, superblock, superblock.geometry.segment_of(block))?;
    Ok(entry.state == SegmentState::Free || entry.first_seq > seq)
}

/// Whether this life of the segment of a block is over: nothing in it counts any more.
///
/// # Errors
/// As [`read_entry`].
pub(crate) fn is_over(
    device: &dyn Device,
    superblock: &Superblock,
    block: u64,
    generation: u32,
) -> Result<bool> {
    let geometry = &superblock.geometry;
    if !geometry.holds_record(block, 1) {
        return Ok(false); // beyond the store as it is known here
    }
    let entry = read_entry(device, superblock, geometry.segment_of(block))?;
    Ok(entry.generation > generation || (entry.generation == generation && entry.state == SegmentState::Free))
}

/// Writes one entry of a table page.
pub fn set_entry(page: &mut Page, position: usize, entry: &TableEntry) {
    let raw = TableEntryRaw {
        generation: U32::new(entry.generation),
        state: match entry.state {
            SegmentState::Free => 0,
            SegmentState::Open => 1,
            SegmentState::Sealed => 2,
        },
        live: U32::new(entry.live),
        newest_issue_day: U32::new(entry.newest_issue_day),
        first_seq: U64::new(entry.first_seq),
        seal_block: U32::new(entry.seal_block),
        ..TableEntryRaw::default()
    };
    let start = position * size_of::<TableEntryRaw>();
    page.body[start..start + size_of::<TableEntryRaw>()].copy_from_slice(raw.as_bytes());
}

/// Last sequence whose effect a table page shows.
#[must_use]
pub fn applied_seq(page: &Page) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page.aux[..8]);
    u64::from_le_bytes(bytes)
}

/// Notes that the page shows the effect of `seq`.
pub fn set_applied_seq(page: &mut Page, seq: u64) {
    page.aux[..8].copy_from_slice(&seq.to_le_bytes());
}
