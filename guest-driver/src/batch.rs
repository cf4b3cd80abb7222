//! A group commit while it is planned: its records and where the log ends after them; and the one place that writes records.

use crate::checksum::{DataSums, fill_padding, has_room};
use crate::device::{AlignedBuf, BlockWrite, Device, DeviceResult};
use crate::layout::{BLOCK_BYTES_USIZE, Geometry, WRITE_PIECE_BLOCKS, block_offset};
use crate::log::Tail;
use crate::record::{FLAG_BATCH_START, FLAG_CHECKSUM, Header, Kind, record_blocks};
use crate::summary::{Descriptor, encode_items};
use std::borrow::Cow;
use std::collections::HashMap;

/// A record that is not written yet.
#[derive(Debug)]
struct Planned<'a> {
    block: u64,
    blocks: usize,
    header: Vec<u8>,
    data: Cow<'a, [u8]>,
    checksum: Option<u64>,
}

impl Planned<'_> {
    fn end_block(&self) -> u64 {
        self.block + self.blocks as u64
    }

    /// Lays the record out.
    fn fill(&self, bytes: &mut [u8]) {
        let (header, rest) = bytes.split_at_mut(self.header.len());
        let (data, padding) = rest.split_at_mut(self.data.len());
        header.copy_from_slice(&self.header);
        data.copy_from_slice(&self.data);
        fill_padding(padding, self.checksum);
    }
}

/// What the writer says about a record; the log says the rest.
#[derive(Debug)]
pub struct Draft<'a> {
    /// Kind.
    pub kind: Kind,
    /// Path or descriptor.
    pub meta: Vec<u8>,
    /// Data.
    pub data: Cow<'a, [u8]>,
    /// Hash and checksum of the data.
    pub sums: DataSums,
    /// Retention class.
    pub class: u8,
    /// Days since 1970.
    pub issued_day: u32,
    /// Version of the path, from 1; 0 for Summaries and Seals.
    pub version: u16,
    /// Block and sequence of the version before; zeroes = none.
    pub previous: (u64, u64),
    /// Flags besides [`FLAG_BATCH_START`] and [`FLAG_CHECKSUM`].
    pub flags: u16,
    /// When a copied receipt was recorded; `None` = now.
    pub recorded_at_ms: Option<u64>,
}

impl<'a> Draft<'a> {
    fn list(kind: Kind, descriptor: &Descriptor, data: Vec<u8>) -> Self {
        Self::statement(kind, descriptor.encode(), data)
    }

    /// A record without a path: what it says is its path field, under the checksum of the header.
    #[must_use]
    pub fn statement(kind: Kind, meta: Vec<u8>, data: Vec<u8>) -> Self {
        Self {
            kind,
            meta,
            sums: DataSums::of(&data),
            data: Cow::Owned(data),
            class: 0,
            issued_day: 0,
            version: 0,
            previous: (0, 0),
            flags: 0,
            recorded_at_ms: None,
        }
    }
}

/// Records of one group commit.
#[derive(Debug)]
pub struct Batch<'a> {
    /// End of the log behind the batch.
    pub tail: Tail,
    /// Records in order, for the index and the table.
    pub headers: Vec<Header>,
    /// Receipts of the segment that it retires whose entries leave the index.
    pub dead: Vec<Header>,
    records: Vec<Planned<'a>>,
    by_seq: HashMap<u64, usize>,
    epoch: u32,
    recorded_at_ms: u64,
    store_seed: u32,
}

impl<'a> Batch<'a> {
    /// An empty batch behind `tail`; `store_seed` is [`crate::Superblock::record_seed`].
    #[must_use]
    pub fn new(tail: Tail, epoch: u32, recorded_at_ms: u64, store_seed: u32) -> Self {
        Self {
            tail,
            headers: Vec::new(),
            dead: Vec::new(),
            records: Vec::new(),
            by_seq: HashMap::new(),
            epoch,
            recorded_at_ms,
            store_seed,
        }
    }

    /// The header of a record of this batch.
    #[must_use]
    pub fn header(&self, seq: u64) -> Option<&Header> {
        self.by_seq.get(&seq).and_then(|at| self.headers.get(*at))
    }

    /// Appends a record; the caller has made sure that it fits.
    pub fn push(&mut self, draft: Draft<'a>, geometry: &Geometry) -> Header {
        let cursor = &self.tail.cursor;
        let blocks = record_blocks(draft.meta.len(), draft.data.len() as u64);
        let batch_start = if self.headers.is_empty() { FLAG_BATCH_START } else { 0 };
        let mut header = Header {
            seq: cursor.seq + 1,
            epoch: self.epoch,
            generation: cursor.generation,
            block: cursor.block,
            blocks: u32::try_from(blocks).unwrap_or_default(),
            kind: draft.kind,
            class: draft.class,
            meta: draft.meta,
            data_len: draft.data.len() as u64,
            recorded_at_ms: draft.recorded_at_ms.unwrap_or(self.recorded_at_ms),
            issued_day: draft.issued_day,
            flags: draft.flags | batch_start | FLAG_CHECKSUM,
            version: draft.version,
            previous_version_block: draft.previous.0,
            previous_version_seq: draft.previous.1,
            prev_hash: cursor.prev_hash,
            data_hash: draft.sums.hash,
        };
        let checksum = has_room(header.len_bytes(), header.data_len).then_some(draft.sums.checksum);
        if checksum.is_none() {
            header.flags &= !FLAG_CHECKSUM;
        }
        assert!(geometry.holds_record(header.block, header.blocks), "a record never crosses a segment");
        let bytes = header.encode(self.store_seed);
        self.tail.advance(&header, *blake3::hash(&bytes).as_bytes(), geometry);
        let blocks = usize::try_from(blocks).unwrap_or_default();
        self.records.push(Planned { block: header.block, blocks, header: bytes, data: draft.data, checksum });
        self.by_seq.insert(header.seq, self.headers.len());
        self.headers.push(header.clone());
        header
    }

    /// Appends the Summary over everything pending.
    pub fn push_summary(&mut self, geometry: &Geometry) -> Header {
        self.push_list(Kind::Summary, None, geometry)
    }

    /// Appends the Seal that ends the open segment and goes on in the next one.
    pub fn push_seal(&mut self, next: (u64, u32), geometry: &Geometry) -> Header {
        self.push_list(Kind::Seal, Some(next), geometry)
    }

    fn push_list(&mut self, kind: Kind, next: Option<(u64, u32)>, geometry: &Geometry) -> Header {
        let descriptor = Descriptor::of(&self.tail.pending, self.tail.summary_block, next);
        let data = encode_items(&self.tail.pending);
        self.push(Draft::list(kind, &descriptor, data), geometry)
    }

    /// Blocks of all records.
    #[must_use]
    pub fn block_count(&self) -> usize {
        self.records.iter().map(|record| record.blocks).sum()
    }

    /// Writes all records: those that lie side by side in pieces, which the device may write at the same time; the first pieces are on their way
    /// while the last ones are laid out in `buffer`.
    ///
    /// # Errors
    /// A device error; which records are on the medium is unknown then.
    pub fn write<D: Device>(&self, device: &D, buffer: &mut AlignedBuf) -> DeviceResult<()> {
        let mut room = buffer.at_least(self.block_count());
        let mut writes = pieces(&self.records).map(|piece| {
            let blocks: usize = piece.iter().map(|record| record.blocks).sum();
            let (bytes, rest) = std::mem::take(&mut room).split_at_mut(blocks * BLOCK_BYTES_USIZE);
            room = rest;
            let mut unfilled = &mut *bytes;
            for record in piece {
                let (own, behind) = unfilled.split_at_mut(record.blocks * BLOCK_BYTES_USIZE);
                record.fill(own);
                unfilled = behind;
            }
            assert!(unfilled.is_empty(), "every byte of the piece is of this batch");
            let first_block = piece.first().map_or(0, |record| record.block);
            BlockWrite { offset_bytes: block_offset(first_block), bytes }
        });
        device.write_many(&mut writes)
    }
}

/// Runs of records side by side, of at most [`WRITE_PIECE_BLOCKS`] unless one record alone is longer.
fn pieces<'r, 'a>(records: &'r [Planned<'a>]) -> impl Iterator<Item = &'r [Planned<'a>]> {
    let mut blocks = 0;
    records.chunk_by(move |record, next| {
        blocks = if blocks == 0 { record.blocks } else { blocks };
        let goes_on = record.end_block() == next.block && blocks + next.blocks <= WRITE_PIECE_BLOCKS;
        blocks = if goes_on { blocks + next.blocks } else { 0 };
        goes_on
    })
}
