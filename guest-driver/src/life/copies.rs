//! What copies of expiry have left of a receipt in room that is not used, so that an erasure reaches it.
//!
//! A retired segment may keep its bytes: the disk cannot discard, a run of expiry was ended, or the segment was opened again and its end is not written over
//! yet. Nobody finds them by path, but an old locator does.

use crate::device::{AlignedBuf, Device};
use crate::error::Result;
use crate::layout::{BLOCK_BYTES_USIZE, block_offset};
use crate::list::{free_segments, used_segments};
use crate::log::read_header;
use crate::record::{Header, Kind};
use crate::retire::zero_record;
use crate::table::{SegmentState, TableEntry};
use crate::writer::Writer;
use std::ops::Range;

/// Blocks that are looked at in one read, 1 MiB.
const LOOK_BLOCKS: u64 = 256;

impl<D: Device> Writer<D> {
    /// Zeroes the data of receipts under a path outside of the log, durably. That needs no Erase record: nothing in the log names them any more.
    pub(super) fn zero_copies_left(&mut self, path: &[u8]) -> Result<()> {
        let copies = self.copies_left(path)?;
        if copies.is_empty() {
            return Ok(());
        }
        self.check_lease()?;
        self.check_erasable(&copies)?;
        // crash here: the erasure was not promised yet; the headers stay, so that the next one finds what is left.
        let zeroed = copies.iter().try_for_each(|copy| {
            zero_record(&self.device, &self.superblock, (copy.block, copy.seq), path).map(drop)
        });
        match zeroed.and_then(|()| Ok(self.device.flush()?)) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.stop(error)),
        }
    }

    /// Headers of receipts under a path outside of the log: in free segments that do not begin with zeroes, and behind the end of used ones.
    fn copies_left(&self, path: &[u8]) -> Result<Vec<Header>> {
        let mut found = Vec::new();
        let geometry = &self.superblock.geometry;
        for (segment, _) in free_segments(&self.device, &self.superblock)? {
            if !self.begins_with_zeroes(segment)? {
                let first = geometry.first_block(segment);
                self.look(first..first + geometry.blocks_per_segment(), path, &mut found)?;
            }
        }
        for (segment, entry) in used_segments(&self.device, &self.superblock)? {
            if let Some(end) = self.end_of(segment, &entry)? {
                let behind = geometry.first_block(segment) + geometry.blocks_per_segment();
                self.look(end..behind, path, &mut found)?;
            }
        }
        Ok(found)
    }

    /// The block behind the last record of a segment; none where its Seal is damaged.
    fn end_of(&self, segment: u64, entry: &TableEntry) -> Result<Option<u64>> {
        let first = self.superblock.geometry.first_block(segment);
        if entry.state == SegmentState::Open || entry.seal_block == 0 {
            let end = self.tail.cursor.block;
            return Ok((self.superblock.geometry.segment_of(end) == segment).then_some(end));
        }
        let seal = read_header(&self.device, &self.superblock, first + u64::from(entry.seal_block))?;
        Ok(seal
            .ok()
            .filter(|(seal, _)| seal.kind == Kind::Seal)
            .map(|(seal, _)| seal.block + u64::from(seal.blocks)))
    }

    fn look(&self, blocks: Range<u64>, path: &[u8], found: &mut Vec<Header>) -> Result<()> {
        let mut at = blocks.start;
        while at < blocks.end {
            let count = (blocks.end - at).min(LOOK_BLOCKS);
            let mut buf = AlignedBuf::zeroed(usize::try_from(count).unwrap_or_default());
            self.device.read(block_offset(at), buf.as_mut_slice())?;
            for (block, bytes) in (at..).zip(buf.as_slice().chunks_exact(BLOCK_BYTES_USIZE)) {
                if let Ok((header, _)) = Header::parse(bytes, self.superblock.record_seed())
                    && (header.kind, header.block, header.meta.as_slice()) == (Kind::Put, block, path)
                    && self.superblock.geometry.holds_record(block, header.blocks)
                {
                    found.push(header);
                }
            }
            at += count;
        }
        Ok(())
    }
}
