//! One virtio-blk request (virtio 1.2, 5.2.6), parsed and fully checked before anything touches the disk.
//!
//! The parts are found by bytes, not by descriptors: a header may be split over several
//! descriptors, and data may share one with the header or the status byte.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::chain::Chain;
use crate::limits::{MAX_ERASE_SECTORS, MAX_ERASE_SEGMENTS, MAX_REQUEST_BYTES, SECTOR_BYTES};
use crate::memory::{HostSlice, gather};
use crate::order::ByteRange;

/// Bytes of the request header: type u32, reserved u32, sector u64.
const HEADER_BYTES: usize = 16;

/// Bytes of one DISCARD or WRITE_ZEROES range: sector u64, sectors u32, flags u32.
const ERASE_SEGMENT_BYTES: usize = 16;

/// The status byte that ends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done as asked.
    Ok,
    /// Not done: refused, out of range, or the disk failed.
    IoErr,
    /// A request this device does not know.
    Unsupported,
}

impl Status {
    /// The value on the wire.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoErr => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        value.to_le_bytes()[0]
    }
}

/// Way of the data of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the disk into guest memory.
    Read,
    /// From guest memory onto the disk.
    Write,
}

/// One range of a DISCARD or WRITE_ZEROES.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EraseRange {
    /// The bytes to erase.
    pub range: ByteRange,
    /// Whether the host may give the space back.
    pub unmap: bool,
}

/// Which erasing request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erase {
    /// The guest does not need the data any more.
    Discard,
    /// The guest wants to read zeroes.
    WriteZeroes,
}

/// What a request asks for; every number is checked against the disk.
#[derive(Debug)]
pub enum Operation {
    /// Moves `range` between the disk and guest memory.
    Transfer {
        /// Way of the data.
        direction: Direction,
        /// Bytes on the disk, possibly none.
        range: ByteRange,
        /// Guest memory, as long as `range`.
        segments: Vec<HostSlice>,
    },
    /// Makes completed writes durable.
    Flush,
    /// Asks for the serial.
    GetId {
        /// Guest memory for it.
        segments: Vec<HostSlice>,
    },
    /// Discards or zeroes ranges.
    Erase {
        /// Which of the two.
        kind: Erase,
        /// The ranges; none is empty.
        ranges: Vec<EraseRange>,
    },
}

/// A chain that holds a request, or at least a status byte to refuse it with.
#[derive(Debug)]
pub struct Request {
    /// Where the status byte goes.
    pub status: HostSlice,
    /// What is asked, or the refusal.
    pub operation: Result<Operation, Status>,
}

impl Request {
    /// Parses the content of `chain` for a disk of `capacity_bytes`, leaving `chain` empty.
    /// `None` when there is not even a byte for the status.
    #[must_use]
    pub fn parse(chain: &mut Chain, capacity_bytes: u64) -> Option<Self> {
        let status = pop_last_byte(&mut chain.writable)?;
        Some(Self { status, operation: parse_operation(chain, capacity_bytes) })
    }

    /// Bytes that it reads or writes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        match &self.operation {
            Ok(Operation::Transfer { range, .. }) => range.end - range.start,
            _ => 0,
        }
    }
}

fn parse_operation(chain: &mut Chain, capacity_bytes: u64) -> Result<Operation, Status> {
    let mut header = [0; HEADER_BYTES];
    if chain.is_too_long || gather(&chain.readable, 0, &mut header) < HEADER_BYTES {
        return Err(Status::IoErr);
    }
    let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
    let start_sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    drop_first_bytes(&mut chain.readable, HEADER_BYTES);

    match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => {
            let segments = take_only(&mut chain.writable, &chain.readable)?;
            parse_transfer(Direction::Read, start_sector, segments, capacity_bytes)
        }
        VIRTIO_BLK_T_OUT => {
            let segments = take_only(&mut chain.readable, &chain.writable)?;
            parse_transfer(Direction::Write, start_sector, segments, capacity_bytes)
        }
        VIRTIO_BLK_T_FLUSH => Ok(Operation::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Operation::GetId { segments: std::mem::take(&mut chain.writable) }),
        VIRTIO_BLK_T_DISCARD => parse_erase(Erase::Discard, &chain.readable, capacity_bytes),
        VIRTIO_BLK_T_WRITE_ZEROES => parse_erase(Erase::WriteZeroes, &chain.readable, capacity_bytes),
        _ => Err(Status::Unsupported),
    }
}

/// The data buffers, provided that there are none of the other direction.
fn take_only(data: &mut Vec<HostSlice>, other: &[HostSlice]) -> Result<Vec<HostSlice>, Status> {
    if other.iter().all(HostSlice::is_empty) { Ok(std::mem::take(data)) } else { Err(Status::IoErr) }
}

fn parse_transfer(
    direction: Direction,
    start_sector: u64,
    segments: Vec<HostSlice>,
    capacity_bytes: u64,
) -> Result<Operation, Status> {
    let len_bytes = crate::memory::total_len(&segments) as u64;
    if len_bytes > MAX_REQUEST_BYTES || !len_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Status::IoErr);
    }
    let range = byte_range(start_sector, len_bytes / SECTOR_BYTES, capacity_bytes)?;
    Ok(Operation::Transfer { direction, range, segments })
}

fn parse_erase(kind: Erase, data: &[HostSlice], capacity_bytes: u64) -> Result<Operation, Status> {
    let mut bytes = [0; ERASE_SEGMENT_BYTES * MAX_ERASE_SEGMENTS as usize];
    let len = crate::memory::total_len(data);
    if len == 0 || !len.is_multiple_of(ERASE_SEGMENT_BYTES) || len > bytes.len() {
        return Err(Status::IoErr);
    }
    gather(data, 0, &mut bytes[..len]);
    let mut ranges = Vec::with_capacity(len / ERASE_SEGMENT_BYTES);
    for segment in bytes[..len].chunks_exact(ERASE_SEGMENT_BYTES) {
        let erase = parse_erase_segment(kind, segment, capacity_bytes)?;
        if erase.range.start < erase.range.end {
            ranges.push(erase);
        }
    }
    Ok(Operation::Erase { kind, ranges })
}

fn parse_erase_segment(kind: Erase, segment: &[u8], capacity_bytes: u64) -> Result<EraseRange, Status> {
    let &[s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = segment else {
        return Err(Status::IoErr);
    };
    let start_sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    let known_flags = match kind {
        Erase::Discard => 0,
        Erase::WriteZeroes => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
    };
    if flags & !known_flags != 0 {
        return Err(Status::Unsupported);
    }
    if sectors > MAX_ERASE_SECTORS {
        return Err(Status::IoErr);
    }
    let range = byte_range(start_sector, u64::from(sectors), capacity_bytes)?;
    Ok(EraseRange { range, unmap: kind == Erase::Discard || flags != 0 })
}

fn byte_range(start_sector: u64, sectors: u64, capacity_bytes: u64) -> Result<ByteRange, Status> {
    let start = start_sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoErr)?;
    let len = sectors.checked_mul(SECTOR_BYTES).ok_or(Status::IoErr)?;
    let end = start.checked_add(len).ok_or(Status::IoErr)?;
    if end > capacity_bytes {
        return Err(Status::IoErr);
    }
    Ok(ByteRange { start, end })
}

/// Takes the last byte off `slices`: in every request it is the status.
fn pop_last_byte(slices: &mut Vec<HostSlice>) -> Option<HostSlice> {
    while let Some(last) = slices.pop() {
        if let Some(rest_len) = last.len().checked_sub(1) {
            let (rest, status) = last.split(rest_len);
            if !rest.is_empty() {
                slices.push(rest);
            }
            return Some(status);
        }
    }
    None
}

fn drop_first_bytes(slices: &mut Vec<HostSlice>, mut count: usize) {
    slices.retain_mut(|slice| {
        let (dropped, rest) = slice.split(count);
        count -= dropped.len();
        *slice = rest;
        !rest.is_empty()
    });
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
