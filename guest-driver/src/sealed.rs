//! Which bytes of the disk nobody needs to write any more, for a host that can refuse writes to them; and the writer on such a disk.
//!
//! A host that has sealed a segment refuses every write to it. Then a segment that was retired can be opened again, and a receipt be erased, only once
//! the host has let go of it. Invariants: a segment counts as sealed only when its Seal lies before the replay position, so no
//! recovery rewrites anything in it; the writer opens no segment that refuses writes; it promises no erasure that the disk refuses.

use crate::control::Control;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{BLOCK_BYTES, Geometry, TABLE_ENTRIES_PER_PAGE, block_offset};
use crate::list::{free_segments, used_segments};
use crate::log::read_blocks;
use crate::reader::Reader;
use crate::record::{Header, Kind};
use crate::retire::walk_segment;
use crate::rules::Rule;
use crate::table::SegmentState;
use crate::writer::Writer;

/// Most bytes of one discard: a file system keeps other requests waiting meanwhile.
const DISCARD_BYTES_MAX: u64 = 1 << 20;

/// Bytes of the disk: a whole segment, or neighbours joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSpan {
    /// First byte.
    pub start_bytes: u64,
    /// First byte behind.
    pub end_bytes: u64,
}

impl std::fmt::Display for ByteSpan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.start_bytes, self.end_bytes)
    }
}

/// The bytes of a segment.
#[must_use]
pub fn span_of(geometry: &Geometry, segment: u64) -> ByteSpan {
    let start_bytes = block_offset(geometry.first_block(segment));
    ByteSpan { start_bytes, end_bytes: start_bytes + geometry.segment_bytes }
}

/// Joins neighbours.
#[must_use]
pub fn join_spans(mut spans: Vec<ByteSpan>) -> Vec<ByteSpan> {
    spans.sort_by_key(|span| span.start_bytes);
    let mut joined: Vec<ByteSpan> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if last.end_bytes == span.start_bytes => last.end_bytes = span.end_bytes,
            _ => joined.push(span),
        }
    }
    joined
}

/// What a search for room that was not given back has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Undiscarded {
    /// A retired segment and its generation.
    pub segment: Option<(u64, u32)>,
    /// Where to go on.
    pub next: Option<u64>,
}

/// A segment that was retired and not opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetiredSegment {
    /// Its bytes.
    pub span: ByteSpan,
    /// Receipts whose records still lie there: none once the room was given back.
    pub receipts: u64,
    /// The newest day of issue among them, days since 1970.
    pub newest_issue_day: Option<u32>,
}

impl<D: Device> Reader<D> {
    /// The bytes of all segments that are ended by a Seal which no recovery writes again. Neither pages nor the open segment are among them.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn sealed_spans(&self) -> Result<Vec<ByteSpan>> {
        let superblock = &*self.superblock_now()?;
        // Before the table: what the table calls sealed later was sealed before this position, or is left out.
        let replay = Control::read(self.device(), superblock)?.head.replay;
        let mut used = used_segments(self.device(), superblock)?;
        used.sort_by_key(|(_, entry)| entry.first_seq);
        let next_seqs = used.iter().skip(1).map(|(_, entry)| entry.first_seq).collect::<Vec<_>>();
        // The Seal of a segment has the sequence before the first one of the next segment.
        let spans = used
            .iter()
            .zip(next_seqs)
            .filter(|((_, entry), next_seq)| entry.state == SegmentState::Sealed && *next_seq <= replay.seq);
        Ok(join_spans(spans.map(|((segment, _), _)| span_of(&superblock.geometry, *segment)).collect()))
    }

    /// Segments that were retired, for whoever must let go of them: what lies there is looked at, not what the table says.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn retired_segments(&self) -> Result<Vec<RetiredSegment>> {
        let superblock = &*self.superblock_now()?;
        let mut retired = Vec::new();
        for (segment, generation) in free_segments(self.device(), superblock)? {
            let (mut receipts, mut newest_issue_day) = (0, None);
            walk_segment(self.device(), superblock, segment, generation, |header, _| {
                if header.kind == Kind::Put {
                    receipts += 1;
                    newest_issue_day = newest_issue_day.max(Some(header.issued_day));
                }
                Ok(())
            })?;
            let span = span_of(&superblock.geometry, segment);
            retired.push(RetiredSegment { span, receipts, newest_issue_day });
        }
        Ok(retired)
    }
}

/// Whether the block can be written: it is written with what it holds. Where it cannot, [`check_alive`] tells a block that is refused from a disk
/// that takes nothing any more.
pub(crate) fn is_writable(device: &dyn Device, block: u64) -> Result<bool> {
    let buf = read_blocks(device, block, 1)?;
    // crash here: the block holds the same bytes before and after.
    Ok(device.write(block_offset(block), buf.as_slice()).is_ok())
}

/// Fails where the disk is gone.
pub(crate) fn check_alive(device: &dyn Device) -> Result<()> {
    Ok(device.flush()?)
}

impl<D: Device> Writer<D> {
    /// Refuses an erasure that the disk would refuse once it is promised.
    pub(crate) fn check_erasable(&self, versions: &[Header]) -> Result<()> {
        let geometry = &self.superblock.geometry;
        for header in versions {
            if !is_writable(&self.device, header.block)? {
                check_alive(&self.device)?;
                let span = span_of(geometry, geometry.segment_of(header.block));
                return Err(Error::Refused(format!(
                    "the disk refuses to change bytes {span}, where version {} lies: if the host has sealed them, it must unseal them first",
                    header.version
                )));
            }
        }
        Ok(())
    }

    /// The first of some retired segments from the number `first` on whose room was not given back, and where to go on.
    pub(crate) fn find_undiscarded(&mut self, first: u64) -> Result<Undiscarded> {
        let count = self.superblock.geometry.segment_count;
        let end = first.saturating_add(TABLE_ENTRIES_PER_PAGE).min(count);
        for segment in first..end {
            if !self.superblock.geometry.is_data_segment(segment) {
                continue;
            }
            let entry = self.pages().table_entry(segment)?;
            if entry.state == SegmentState::Free
                && entry.generation > 0
                && !self.begins_with_zeroes(segment)?
            {
                let next = segment + 1;
                return Ok(Undiscarded {
                    segment: Some((segment, entry.generation)),
                    next: (next < count).then_some(next),
                });
            }
        }
        Ok(Undiscarded { segment: None, next: (end < count).then_some(end) })
    }

    /// Gives back the piece of a retired segment that ends at `end_bytes` of it, or its last one, if nothing has opened the segment since. Returns
    /// where the piece before ends: 0 when there is none, or the disk takes none. The first block goes last: while it is not zeroes, the next
    /// run of expiry begins again.
    pub(crate) fn discard_piece(&mut self, segment: u64, generation: u32, end_bytes: u64) -> Result<u64> {
        self.check_lease()?;
        let entry = self.pages().table_entry(segment)?;
        let is_free = entry.state == SegmentState::Free && entry.generation == generation;
        if !is_free && Rule::DiscardLooks.holds() {
            return Ok(0);
        }
        let geometry = &self.superblock.geometry;
        let end_bytes = end_bytes.min(geometry.segment_bytes);
        let start_bytes = end_bytes.saturating_sub(DISCARD_BYTES_MAX);
        let first_bytes = block_offset(geometry.first_block(segment));
        let done = self.device.discard(first_bytes + start_bytes, end_bytes - start_bytes);
        Ok(if done.is_ok() { start_bytes } else { 0 })
    }
}

impl<D: Device> Writer<D> {
    /// Only saves a discard: a disk may leave anything behind.
    pub(crate) fn begins_with_zeroes(&self, segment: u64) -> Result<bool> {
        let buf = read_blocks(&self.device, self.superblock.geometry.first_block(segment), 1)?;
        Ok(buf.as_slice().iter().all(|byte| *byte == 0))
    }
}

const _: () = assert!(BLOCK_BYTES == 4096, "the host seals multiples of 4096 bytes");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined() {
        let span = |start_bytes, end_bytes| ByteSpan { start_bytes, end_bytes };
        let spans = vec![span(30, 40), span(0, 10), span(10, 20), span(40, 50)];
        assert_eq!(join_spans(spans), [span(0, 20), span(30, 50)]);
        assert_eq!(span(4096, 8192).to_string(), "4096-8192");
    }
}
