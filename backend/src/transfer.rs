//! One read or write on its way: which IO comes next, until all bytes are moved.
//!
//! Invariant: `moved + left == the length of the request`; a transfer is finished only when nothing
//! is left, so a short read or write can never pass for a whole one.
//!
//! Direct IO takes only aligned requests. What is not aligned goes through a bounce buffer, piece by
//! piece; a write whose ends are not aligned reads the piece first (its range was admitted
//! rounded out, so nobody else changes those edges meanwhile).

use crate::limits::{MAX_BUSY_TRIES, MAX_IOVECS};
use crate::memory::{HostSlice, gather, scatter};
use crate::order::ByteRange;
use crate::request::Direction;

/// What direct IO demands of a request, in bytes, powers of two; 1 where it demands nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Of buffer addresses.
    pub memory_bytes: usize,
    /// Of file offsets and segment lengths.
    pub offset_bytes: u64,
}

impl Alignment {
    /// Nothing demanded: the page cache.
    pub const NONE: Self = Self { memory_bytes: 1, offset_bytes: 1 };

    fn offset_usize(self) -> usize {
        usize::try_from(self.offset_bytes).unwrap_or(1)
    }

    /// Whether the disk takes this request as it is.
    #[must_use]
    pub fn suits(self, range: ByteRange, segments: &[HostSlice]) -> bool {
        let mask = self.offset_bytes - 1;
        (range.start | range.end) & mask == 0
            && segments.iter().all(|s| s.is_aligned(self.memory_bytes, self.offset_usize()))
    }
}

/// One system call to make: `segments` stay where they are until it has ended.
#[derive(Debug, Clone, Copy)]
pub struct Io {
    /// Way of the data.
    pub direction: Direction,
    /// Position on the disk.
    pub offset_bytes: u64,
    /// First segment.
    pub segments: *const HostSlice,
    /// Number of segments, at most [`MAX_IOVECS`].
    pub segment_count: u32,
}

/// A read or write that is not finished.
#[derive(Debug)]
pub struct Transfer {
    direction: Direction,
    range: ByteRange,
    offset: u64,
    len: usize,
    left: usize,
    segments: Vec<HostSlice>,
    /// Direct: segments already moved. Bounced: bytes already moved.
    moved: usize,
    alignment: Alignment,
    bounce: Option<Bounce>,
    /// Times that an IO moved nothing because the host was busy.
    busy: u32,
}

/// An aligned buffer and the piece of the disk it stands for.
#[derive(Debug)]
struct Bounce {
    buffer: AlignedBuffer,
    stage: Stage,
    start: u64,
    len: usize,
    done: usize,
    rest: [HostSlice; 1],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No piece is under way.
    Idle,
    /// The piece is read: for a read, or for the edges of a write.
    Fill,
    /// The piece is written.
    Drain,
}

impl Transfer {
    /// Starts a transfer of `range`, which is not empty, to or from `segments` of the same length.
    #[must_use]
    pub fn new(
        direction: Direction,
        range: ByteRange,
        segments: Vec<HostSlice>,
        alignment: Alignment,
    ) -> Self {
        let left = crate::memory::total_len(&segments);
        debug_assert_eq!(left as u64, range.end - range.start);
        Self {
            direction,
            range,
            offset: range.start,
            len: left,
            left,
            segments,
            moved: 0,
            alignment,
            bounce: None,
            busy: 0,
        }
    }

    /// Whether an IO that the host was too busy for is to be tried again: not for ever, a broken disk may always say so.
    pub fn may_try_again(&mut self) -> bool {
        self.busy += 1;
        self.busy <= MAX_BUSY_TRIES
    }

    /// Way of the data.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// All the bytes of the disk that it may change or has read: those of the request, and for a
    /// bounced write those around them that are written back.
    #[must_use]
    pub fn touched_range(&self) -> ByteRange {
        self.range.rounded_out(self.alignment.offset_bytes)
    }

    /// Position of the next byte on the disk.
    #[must_use]
    pub fn offset_bytes(&self) -> u64 {
        self.offset
    }

    /// Bytes of the request.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Pieces of guest memory for which it keeps room.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.segments.capacity()
    }

    /// Bytes of the request that are moved so far.
    #[must_use]
    pub fn moved_bytes(&self) -> u32 {
        u32::try_from(self.len - self.left).unwrap_or(u32::MAX)
    }

    /// Gives the transfer the buffer it bounces through.
    pub fn use_bounce_buffer(&mut self, buffer: AlignedBuffer) {
        debug_assert!(self.bounce.is_none());
        // SAFETY: an empty slice is never accessed.
        let rest = unsafe { [HostSlice::of_buffer(std::ptr::null_mut(), 0)] };
        self.bounce = Some(Bounce { buffer, stage: Stage::Idle, start: 0, len: 0, done: 0, rest });
    }

    /// Takes the buffer back when the transfer has ended.
    pub fn take_bounce_buffer(&mut self) -> Option<AlignedBuffer> {
        self.bounce.take().map(|bounce| bounce.buffer)
    }

    /// Takes the list of segments back for its memory; the transfer has ended.
    pub fn take_segments(&mut self) -> Vec<HostSlice> {
        std::mem::take(&mut self.segments)
    }

    /// The next IO, or `None` when all bytes are moved.
    pub fn next_io(&mut self) -> Option<Io> {
        if self.left == 0 {
            return None;
        }
        match &mut self.bounce {
            None => {
                let segments = &self.segments[self.moved..];
                let count = segments.len().min(MAX_IOVECS);
                Some(Io::new(self.direction, self.offset, &segments[..count]))
            }
            Some(bounce) => {
                if bounce.stage == Stage::Idle {
                    bounce.begin(self.direction, self.offset, self.left, self.alignment);
                    if bounce.stage == Stage::Drain {
                        bounce.load(&self.segments, self.moved, self.offset, self.left);
                    }
                }
                Some(bounce.io())
            }
        }
    }

    /// Notes that the last IO moved `count` bytes, more than none.
    pub fn advance(&mut self, count: usize) {
        let Some(bounce) = &mut self.bounce else {
            return self.advance_direct(count);
        };
        bounce.done += count;
        if bounce.done < bounce.len {
            return;
        }
        let (skip, take) = bounce.data_part(self.offset, self.left);
        match (bounce.stage, self.direction) {
            (Stage::Fill, Direction::Write) => {
                bounce.load(&self.segments, self.moved, self.offset, self.left);
                bounce.stage = Stage::Drain;
                bounce.done = 0;
                return;
            }
            (Stage::Fill, Direction::Read) => {
                let data = &bounce.buffer.as_slice()[skip..skip + take];
                scatter(&self.segments, self.moved, data);
            }
            (Stage::Idle | Stage::Drain, _) => {}
        }
        bounce.stage = Stage::Idle;
        self.moved += take;
        self.left -= take;
        self.offset += take as u64;
    }

    fn advance_direct(&mut self, mut count: usize) {
        assert!(count <= self.left, "an IO cannot move more bytes than it was given");
        self.left -= count;
        self.offset += count as u64;
        while let Some(segment) = self.segments.get_mut(self.moved) {
            let (gone, rest) = segment.split(count);
            count -= gone.len();
            if !rest.is_empty() {
                *segment = rest;
                return;
            }
            self.moved += 1;
        }
    }
}

impl Bounce {
    /// Chooses the next piece and whether it must be read first.
    fn begin(&mut self, direction: Direction, offset: u64, left: usize, alignment: Alignment) {
        let wanted = ByteRange { start: offset, end: offset + left as u64 };
        let whole = wanted.rounded_out(alignment.offset_bytes);
        let longest = self.buffer.len() as u64;
        self.start = whole.start;
        self.len = usize::try_from((whole.end - whole.start).min(longest)).unwrap_or(self.buffer.len());
        self.done = 0;
        let has_edges = self.data_part(offset, left) != (0, self.len);
        self.stage = if direction == Direction::Read || has_edges { Stage::Fill } else { Stage::Drain };
    }

    /// Where in the piece the bytes of the request are: (skip, length).
    fn data_part(&self, offset: u64, left: usize) -> (usize, usize) {
        let skip = usize::try_from(offset - self.start).unwrap_or(0);
        (skip, left.min(self.len - skip))
    }

    /// Copies the request's bytes for this piece into the buffer.
    fn load(&mut self, segments: &[HostSlice], moved: usize, offset: u64, left: usize) {
        let (skip, take) = self.data_part(offset, left);
        gather(segments, moved, &mut self.buffer.as_mut_slice()[skip..skip + take]);
    }

    fn io(&mut self) -> Io {
        let direction = if self.stage == Stage::Fill { Direction::Read } else { Direction::Write };
        let rest = &mut self.buffer.as_mut_slice()[self.done..self.len];
        // SAFETY: the buffer lives and stays in place as long as this transfer, which the worker
        // keeps until its last IO has ended.
        self.rest = unsafe { [HostSlice::of_buffer(rest.as_mut_ptr(), rest.len())] };
        Io::new(direction, self.start + self.done as u64, &self.rest)
    }
}

impl Io {
    fn new(direction: Direction, offset_bytes: u64, segments: &[HostSlice]) -> Self {
        debug_assert!(segments.len() <= MAX_IOVECS);
        let segment_count = u32::try_from(segments.len()).unwrap_or(u32::MAX);
        Self { direction, offset_bytes, segments: segments.as_ptr(), segment_count }
    }
}

/// Alignment of buffers that suits every disk: the page size.
pub const BUFFER_ALIGNMENT_BYTES: usize = 4096;

/// Heap memory with the alignment that direct IO wants.
#[derive(Debug)]
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    skip: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zero bytes whose address is a multiple of `align_bytes` (a power of two).
    #[must_use]
    pub fn new(len: usize, align_bytes: usize) -> Self {
        let bytes = vec![0; len + align_bytes];
        let skip = bytes.as_ptr().addr().wrapping_neg() & (align_bytes - 1);
        Self { bytes, skip, len }
    }

    /// Length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.skip..self.skip + self.len]
    }

    /// The bytes, to change them.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + self.len]
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
