//! The end of the log: what the next record must look like, and when a Summary or a Seal is due.
//!
//! Invariant: in the open segment there is always room for the Seal over everything pending.

use crate::control::LogPosition;
use crate::device::{AlignedBuf, Device};
use crate::error::{Error, Result};
use crate::layout::{BLOCK_BYTES_USIZE, Geometry, SUMMARY_BLOCKS_MAX, SUMMARY_RECORDS_MAX, block_offset};
use crate::record::{Header, Kind, RecordFault, record_blocks};
use crate::rules::Rule;
use crate::summary::{DESCRIPTOR_BYTES_MAX, Descriptor, ITEM_BYTES, Item};
use crate::superblock::Superblock;

/// A place in the log from which headers can be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Sequence of the record before.
    pub seq: u64,
    /// Block of the record after.
    pub block: u64,
    /// Generation of the segment of `block`.
    pub generation: u32,
    /// Hash of the header before.
    pub prev_hash: [u8; 32],
    /// Epoch of the record before; epochs never fall.
    pub epoch: u32,
}

impl Cursor {
    /// Starts at `position`; records of an epoch before `epoch` do not count: they are what a dead writer left behind.
    #[must_use]
    pub fn at(position: &LogPosition, epoch: u32) -> Self {
        Self {
            seq: position.seq,
            block: position.block,
            generation: position.generation,
            prev_hash: position.prev_hash,
            epoch,
        }
    }

    /// Behind a record.
    #[must_use]
    pub fn behind(header: &Header, hash: [u8; 32], geometry: &Geometry) -> Self {
        let (seq, block, generation) = (header.seq, header.block, header.generation);
        let mut cursor = Self { seq, block, generation, prev_hash: hash, epoch: header.epoch };
        cursor.step(header, hash, geometry);
        cursor
    }

    /// Whether `header` is the next record.
    #[must_use]
    pub fn accepts(&self, header: &Header, geometry: &Geometry) -> bool {
        self.seq.checked_add(1) == Some(header.seq)
            && header.block == self.block
            && header.generation == self.generation
            && (header.prev_hash == self.prev_hash || !Rule::Chain.holds())
            && (header.epoch >= self.epoch || !Rule::EpochsRise.holds())
            && geometry.holds_record(header.block, header.blocks)
            && (header.kind != Kind::Seal || seal_link(header, geometry).is_some())
    }

    /// Moves behind `header`, into the next segment when it is a Seal.
    pub fn step(&mut self, header: &Header, hash: [u8; 32], geometry: &Geometry) {
        self.seq = header.seq;
        self.prev_hash = hash;
        self.epoch = header.epoch;
        self.block = header.block + u64::from(header.blocks);
        if let Some((segment, generation)) = seal_link(header, geometry) {
            self.block = geometry.first_block(segment);
            self.generation = generation;
        }
    }
}

/// The segment and generation that a Seal links to.
#[must_use]
pub fn seal_link(header: &Header, geometry: &Geometry) -> Option<(u64, u32)> {
    if header.kind != Kind::Seal {
        return None;
    }
    Descriptor::decode(header)?
        .next
        .filter(|(segment, generation)| geometry.is_data_segment(*segment) && *generation > 0)
}

/// Reads the header at `block`: one device read of 4 KiB.
///
/// # Errors
/// A device error. Bytes that are no header are `Ok(Err(fault))`.
pub fn read_header(
    device: &dyn Device,
    superblock: &Superblock,
    block: u64,
) -> Result<std::result::Result<(Header, [u8; 32]), RecordFault>> {
    let mut buf = AlignedBuf::zeroed(1);
    device.read(block_offset(block), buf.as_mut_slice())?;
    let parsed = Header::parse(buf.as_slice(), superblock.record_seed());
    Ok(parsed.and_then(|(h, hash)| {
        if h.block == block { Ok((h, hash)) } else { Err(RecordFault::BadField("self_block")) }
    }))
}

/// Reads all blocks of a record: one device read.
///
/// # Errors
/// A device error.
pub fn read_blocks(device: &dyn Device, block: u64, blocks: u32) -> Result<AlignedBuf> {
    read_blocks_into(device, block, blocks, AlignedBuf::default())
}

/// As [`read_blocks`], in the memory of `buf` where that is enough. Nothing of what it held is left.
///
/// # Errors
/// A device error.
pub fn read_blocks_into(device: &dyn Device, block: u64, blocks: u32, buf: AlignedBuf) -> Result<AlignedBuf> {
    let count = usize::try_from(blocks).map_err(|_| Error::Corrupt("record size".to_owned()))?;
    let mut buf = buf.resized(count);
    device.read(block_offset(block), buf.as_mut_slice())?;
    assert_eq!(buf.as_slice().len(), count * BLOCK_BYTES_USIZE, "whole blocks");
    Ok(buf)
}

/// The end of the log with what the next Summary has to list.
#[derive(Clone, Debug)]
pub struct Tail {
    /// Where the next record goes.
    pub cursor: Cursor,
    /// Last Summary of the open segment, 0 = none.
    pub summary_block: u64,
    /// Records since then.
    pub pending: Vec<Item>,
    pending_bytes: u64,
    blocks_since_summary: u64,
    /// Blocks between the last Summary and here in which no record was found where one begins.
    pub damaged_blocks: Vec<u64>,
}

impl Tail {
    /// A tail at `position` with nothing pending.
    #[must_use]
    pub fn at(position: &LogPosition, epoch: u32) -> Self {
        Self {
            cursor: Cursor::at(position, epoch),
            summary_block: position.summary_block,
            pending: Vec::new(),
            pending_bytes: 0,
            blocks_since_summary: 0,
            damaged_blocks: Vec::new(),
        }
    }

    /// The place as the head stores it.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        LogPosition {
            seq: self.cursor.seq,
            block: self.cursor.block,
            generation: self.cursor.generation,
            prev_hash: self.cursor.prev_hash,
            summary_block: self.summary_block,
        }
    }

    /// Notes a record; the next Summary has to list it if it has a path.
    pub fn pass(&mut self, header: &Header) {
        self.blocks_since_summary += u64::from(header.blocks);
        if header.changes_index() {
            let item = Item::of(header);
            self.pending_bytes += item.len_bytes();
            self.pending.push(item);
        }
    }

    /// Moves behind `header`.
    pub fn advance(&mut self, header: &Header, hash: [u8; 32], geometry: &Geometry) {
        match header.kind {
            Kind::Put | Kind::Tombstone | Kind::Erase | Kind::Hold | Kind::Policy | Kind::Retire => {
                self.pass(header);
            }
            Kind::Summary | Kind::Seal => {
                self.pending.clear();
                self.pending_bytes = 0;
                self.blocks_since_summary = 0;
                self.summary_block = if header.kind == Kind::Seal { 0 } else { header.block };
            }
        }
        self.cursor.step(header, hash, geometry);
    }

    /// Blocks of the open segment that hold nothing yet.
    #[must_use]
    pub fn room_blocks(&self, geometry: &Geometry) -> u64 {
        geometry.end_block(geometry.segment_of(self.cursor.block)).saturating_sub(self.cursor.block)
    }

    /// Whether a record with a path fits, with the Seal over everything pending behind it.
    #[must_use]
    pub fn fits(&self, geometry: &Geometry, blocks: u64, path_len: usize) -> bool {
        let list_bytes = self.pending_bytes + (ITEM_BYTES + path_len) as u64;
        let seal = if Rule::SealRoom.holds() { list_blocks(list_bytes) } else { 0 };
        blocks.saturating_add(seal) <= self.room_blocks(geometry)
    }

    /// Whether a Summary should be written now; it must leave room for an empty Seal.
    #[must_use]
    pub fn is_summary_due(&self, geometry: &Geometry) -> bool {
        let is_long =
            self.pending.len() >= SUMMARY_RECORDS_MAX || self.blocks_since_summary >= SUMMARY_BLOCKS_MAX;
        is_long && list_blocks(self.pending_bytes) + list_blocks(0) < self.room_blocks(geometry)
    }
}

/// Most blocks of a Summary or Seal over a list of `list_bytes`.
#[must_use]
pub fn list_blocks(list_bytes: u64) -> u64 {
    record_blocks(DESCRIPTOR_BYTES_MAX, list_bytes)
}

/// Most bytes of data that a record with the longest path may have in segments of this geometry.
#[must_use]
pub fn data_bytes_max(geometry: &Geometry) -> u64 {
    let seal = list_blocks((ITEM_BYTES + crate::layout::PATH_BYTES_MAX) as u64);
    let blocks = geometry.blocks_per_segment().saturating_sub(seal + 1);
    (blocks * crate::layout::BLOCK_BYTES).min(crate::layout::DATA_BYTES_MAX)
}

/// Follows the headers from the last Summary before `position` (or the start of its segment) to `position`: at most one
/// Summary's worth. Returns the tail with the records that the next Summary has to list, and where headers in between do not verify.
///
/// # Errors
/// A device error, or [`Error::Corrupt`] when the records do not lead to `position`.
pub fn load_tail(
    device: &dyn Device,
    superblock: &Superblock,
    position: &LogPosition,
    epoch: u32,
) -> Result<Tail> {
    let geometry = &superblock.geometry;
    let mut tail = Tail::at(position, epoch);
    let segment = geometry.segment_of(position.block);
    let mut block = geometry.first_block(segment);
    if position.summary_block != 0 {
        block = position.summary_block;
    }
    let mut is_at_summary = position.summary_block != 0;
    while block < position.block {
        let parsed = read_header(device, superblock, block)?.ok();
        let is_of_now =
            |header: &Header| header.generation == position.generation && header.seq <= position.seq;
        let Some((header, _)) = parsed.filter(|(header, _)| is_of_now(header)) else {
            // Rot. The position is known without it, so the log goes on; this record will be in no Summary.
            tail.damaged_blocks.push(block);
            is_at_summary = false;
            block += 1;
            continue;
        };
        if !header.kind.is_list() {
            tail.pass(&header);
        } else if !is_at_summary {
            return Err(Error::Corrupt(format!("unexpected Summary at block {block}")));
        }
        is_at_summary = false;
        block += u64::from(header.blocks);
    }
    if block != position.block {
        return Err(Error::Corrupt(format!("records overlap block {}", position.block)));
    }
    Ok(tail)
}
