//! What a dry run would have done so far, so that its later steps see what those of a run would see.

use super::inspect::Inspected;
use crate::control::Control;
use crate::device::Device;
use crate::error::Result;
use crate::list::Usage;
use crate::reader::Reader;
use crate::superblock::Superblock;
use std::collections::HashSet;

/// Blocks of a Retire record, or of a removal.
const SMALL_RECORD_BLOCKS: u64 = 1;

/// Changes that were not made.
#[derive(Debug, Default)]
pub(super) struct Forecast {
    /// Segments that would be retired.
    pub gone: HashSet<u64>,
    /// Blocks that would be appended to the log.
    appended_blocks: u64,
}

impl Forecast {
    /// What stays would be copied, and the segment retired.
    pub fn retire(&mut self, found: &Inspected) {
        self.gone.insert(found.segment);
        self.appended_blocks += found.staying_blocks() + SMALL_RECORD_BLOCKS;
    }

    /// What is over would be removed by path.
    pub fn remove_expired(&mut self, found: &Inspected) {
        self.appended_blocks += found.expired.len() as u64 * SMALL_RECORD_BLOCKS;
    }

    /// How full the store would be.
    pub fn usage<D: Device>(&self, reader: &Reader<D>, superblock: &Superblock) -> Result<Usage> {
        let mut usage = reader.usage()?;
        if self.appended_blocks == 0 {
            return Ok(usage);
        }
        let geometry = &superblock.geometry;
        let end_block = Control::read(reader.device(), superblock)?.head.end_block;
        let room_blocks = geometry.end_block(geometry.segment_of(end_block)).saturating_sub(end_block);
        let beyond_blocks = self.appended_blocks.saturating_sub(room_blocks);
        let opened = beyond_blocks.div_ceil(geometry.blocks_per_segment());
        let gone = self.gone.len() as u64;
        usage.used_segments = (usage.used_segments + opened).saturating_sub(gone);
        usage.free_segments = (usage.free_segments + gone).saturating_sub(opened);
        Ok(usage)
    }
}
