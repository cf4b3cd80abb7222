//! Free segments.

use crate::apply::Pages;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::log::read_header;
use crate::rules::Rule;
use crate::sealed::{check_alive, is_writable};
use crate::table::SegmentState;

/// Blocks that receipts leave in the last segment.
const RESERVE_BLOCKS: u64 = 8;
/// Blocks that removals leave in it.
const RESERVE_BLOCKS_LAST: u64 = 4;
/// A store with so many data segments leaves one of them free.
const RESERVE_SEGMENT_FROM: u64 = 16;

/// How much room a record leaves for those that make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// Receipts: a full disk still takes removals.
    Kept,
    /// Removals: it still takes what frees segments.
    Shared,
    /// What frees segments.
    Used,
}

impl Reserve {
    /// Blocks to leave where there is no other segment.
    #[must_use]
    pub fn blocks(self) -> u64 {
        match self {
            Self::Kept if Rule::RoomReserved.holds() => RESERVE_BLOCKS,
            Self::Shared if Rule::RoomReserved.holds() => RESERVE_BLOCKS_LAST,
            _ => 0,
        }
    }

    fn segments(self, data_segment_count: u64) -> u64 {
        let has_reserve = data_segment_count >= RESERVE_SEGMENT_FROM && Rule::RoomReserved.holds();
        u64::from(self == Self::Kept && has_reserve)
    }
}

/// What a search for a free segment has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The next free segment and the generation it gets.
    pub free: Option<(u64, u32)>,
    /// Free segments before it that refuse writes: the host has sealed them, or they are broken.
    pub refused_segments: u64,
}

/// The next free segment behind `current` (and round the end of the device) by the table; none when every segment that `reserve` may take is in
/// use or, where that is tried, refuses writes.
///
/// # Errors
/// A device error or [`Error::Corrupt`].
pub fn find_free<D: Device>(
    pages: &mut Pages<'_, D>,
    current: u64,
    reserve: Reserve,
    is_tried: bool,
) -> Result<Found> {
    let mut spare = reserve.segments(pages.superblock.geometry.data_segment_count());
    let mut found = Found::default();
    let mut first = None;
    let count = pages.superblock.geometry.segment_count;
    for distance in 1..count {
        let segment = (current + distance) % count;
        if !pages.superblock.geometry.is_data_segment(segment) {
            continue;
        }
        let entry = pages.table_entry(segment)?;
        if entry.state == SegmentState::Free
            && let Some(generation) = entry.generation.checked_add(1)
        {
            // Nobody seals what was never closed; and where a writer that was replaced still runs, its trial could put back what
            // the block held before the other one wrote there.
            let is_tried = is_tried && entry.generation > 0;
            if is_tried && !is_writable(pages.device, pages.superblock.geometry.first_block(segment))? {
                found.refused_segments += 1;
                continue;
            }
            let next = *first.get_or_insert((segment, generation));
            if spare == 0 {
                found.free = Some(next);
                return Ok(found);
            }
            spare -= 1;
        }
    }
    if found.refused_segments > 0 {
        check_alive(pages.device)?;
    }
    Ok(found)
}

/// As [`find_free`]; the segment was looked at.
///
/// # Errors
/// [`Error::NoSpace`] when there is none; a device error or [`Error::Corrupt`].
pub fn next_free<D: Device>(
    pages: &mut Pages<'_, D>,
    current: u64,
    needed_blocks: u64,
    reserve: Reserve,
) -> Result<(u64, u32)> {
    let Found { free, refused_segments } = find_free(pages, current, reserve, true)?;
    let (segment, generation) = free.ok_or(Error::NoSpace { needed_blocks, refused_segments })?;
    check_is_free(pages, segment, generation, current)?;
    Ok((segment, generation))
}

/// A page of the segment table that has lost what was written says free of segments in use. Then the first block of the segment holds a
/// record of this life, older than all of the open segment. What a dead writer left there is younger, or of an older life.
fn check_is_free<D: Device>(
    pages: &mut Pages<'_, D>,
    segment: u64,
    generation: u32,
    open: u64,
) -> Result<()> {
    let first_seq = pages.table_entry(open)?.first_seq;
    let block = pages.superblock.geometry.first_block(segment);
    match read_header(pages.device, pages.superblock, block)? {
        Ok((header, _))
            if header.generation >= generation && header.seq < first_seq && Rule::FreeIsChecked.holds() =>
        {
            Err(Error::Corrupt(format!(
                "the segment table says that segment {segment} is free, but it holds sequence {}: run `receipt scrub --repair`",
                header.seq
            )))
        }
        _ => Ok(()),
    }
}
