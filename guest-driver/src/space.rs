//! Free segments.

use crate::apply::Pages;
use crate::device::Device;
use crate::error::{Error, Result};
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
            return Ok((segment, generation));
        }
    }
    Err(Error::NoSpace { needed_blocks })
}
