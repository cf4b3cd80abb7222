//! Free segments.

use crate::apply::Pages;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::log::read_header;
use crate::rules::Rule;
use crate::table::SegmentState;

/// The next free segment behind `current` (and round the end of the device), with the generation it gets.
///
/// # Errors
/// [`Error::NoSpace`] when every segment is in use; a device error or [`Error::Corrupt`].
pub fn next_free<D: Device>(
    pages: &mut Pages<'_, D>,
    current: u64,
    needed_blocks: u64,
) -> Result<(u64, u32)> {
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
            check_is_free(pages, segment, generation, current)?;
            return Ok((segment, generation));
        }
    }
    Err(Error::NoSpace { needed_blocks })
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
