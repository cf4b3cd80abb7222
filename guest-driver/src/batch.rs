//! A group commit while it is planned: the bytes of its records and where the log ends after them. Nothing is written here.

use crate::device::AlignedBuf;
use crate::layout::{BLOCK_BYTES_USIZE, Geometry};
use crate::log::Tail;
use crate::record::{FLAG_BATCH_START, Header, Kind, record_blocks};
use crate::summary::{Descriptor, encode_items};
use std::collections::HashMap;

/// Blocks that lie side by side on the device.
#[derive(Debug)]
pub struct Extent {
    /// First block.
    pub block: u64,
    /// Bytes.
    pub buf: AlignedBuf,
}

/// What the writer says about a record; the log says the rest.
#[derive(Debug)]
pub struct Draft<'a> {
    /// Kind.
    pub kind: Kind,
    /// Path or descriptor.
    pub meta: Vec<u8>,
    /// Data.
    pub data: &'a [u8],
    /// Hash of the data.
    pub data_hash: [u8; 32],
    /// Retention class.
    pub class: u8,
    /// Days since 1970.
    pub issued_day: u32,
    /// Version of the path, from 1; 0 for Summaries and Seals.
    pub version: u16,
    /// Block and sequence of the version before; zeroes = none.
    pub previous: (u64, u64),
}

impl<'a> Draft<'a> {
    fn list(kind: Kind, descriptor: &Descriptor, data: &'a [u8]) -> Self {
        Self {
            kind,
            meta: descriptor.encode(),
            data,
            data_hash: *blake3::hash(data).as_bytes(),
            class: 0,
            issued_day: 0,
            version: 0,
            previous: (0, 0),
        }
    }
}

/// Records of one group commit.
#[derive(Debug)]
pub struct Batch {
    /// End of the log behind the batch.
    pub tail: Tail,
    /// Records in order, for the index and the table.
    pub headers: Vec<Header>,
    /// Bytes to write.
    pub extents: Vec<Extent>,
    by_seq: HashMap<u64, usize>,
    epoch: u32,
    recorded_at_ms: u64,
    store_seed: u32,
}

impl Batch {
    /// An empty batch behind `tail`; `store_seed` is [`crate::Superblock::record_seed`].
    #[must_use]
    pub fn new(tail: Tail, epoch: u32, recorded_at_ms: u64, store_seed: u32) -> Self {
        Self {
            tail,
            headers: Vec::new(),
            extents: Vec::new(),
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
    pub fn push(&mut self, draft: Draft<'_>, geometry: &Geometry) -> Header {
        let cursor = &self.tail.cursor;
        let blocks = record_blocks(draft.meta.len(), draft.data.len() as u64);
        let header = Header {
            seq: cursor.seq + 1,
            epoch: self.epoch,
            generation: cursor.generation,
            block: cursor.block,
            blocks: u32::try_from(blocks).unwrap_or_default(),
            kind: draft.kind,
            class: draft.class,
            meta: draft.meta,
            data_len: draft.data.len() as u64,
            recorded_at_ms: self.recorded_at_ms,
            issued_day: draft.issued_day,
            flags: if self.headers.is_empty() { FLAG_BATCH_START } else { 0 },
            version: draft.version,
            previous_version_block: draft.previous.0,
            previous_version_seq: draft.previous.1,
            prev_hash: cursor.prev_hash,
            data_hash: draft.data_hash,
        };
        assert!(geometry.holds_record(header.block, header.blocks), "a record never crosses a segment");
        let bytes = header.encode(self.store_seed);
        let into = self.extend(header.block, header.blocks);
        into[..bytes.len()].copy_from_slice(&bytes);
        into[bytes.len()..bytes.len() + draft.data.len()].copy_from_slice(draft.data);
        self.tail.advance(&header, *blake3::hash(&bytes).as_bytes(), geometry);
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
        self.push(Draft::list(kind, &descriptor, &data), geometry)
    }

    fn extend(&mut self, block: u64, blocks: u32) -> &mut [u8] {
        let is_adjacent =
            self.extents.last().is_some_and(|last| last.block + last.buf.block_count() as u64 == block);
        if !is_adjacent {
            self.extents.push(Extent { block, buf: AlignedBuf::default() });
        }
        let count = usize::try_from(blocks).unwrap_or_default();
        let bytes = match self.extents.last_mut() {
            Some(last) => last.buf.grow(count),
            None => &mut [],
        };
        assert_eq!(bytes.len(), count * BLOCK_BYTES_USIZE, "the record has its blocks");
        bytes
    }
}
