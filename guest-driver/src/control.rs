//! Lease and head: the two pages that say who writes and where the log ends.
//!
//! Invariants: the epoch in the lease only grows and is durable before a record carries it; the head's replay position
//! never lies behind (after) the first record whose index entry is not yet durable; `published_seq` is written only
//! after that record was flushed, so it proves that the log reaches so far.

use crate::device::{AlignedBuf, Device};
use crate::error::{Error, Result};
use crate::layout::{BLOCK_BYTES_USIZE, PAGE_HEAD, PAGE_LEASE, page_offset};
use crate::page::{Page, PageId, PageKind, newest, read_page};
use crate::superblock::Superblock;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Body of the lease page.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LeaseRaw {
    /// Epoch of the last writer.
    pub epoch: U32,
    /// 0 closed, 1 open.
    pub state: U32,
    /// Milliseconds since 1970 when it was opened.
    pub opened_at_ms: U64,
    /// Random identity of the writer.
    pub writer_uuid: [u8; 16],
    /// Host name of the writer's guest, zero padded.
    pub guest_name: [u8; 64],
}
const _: () = assert!(size_of::<LeaseRaw>() == 96);

/// Body of the head page.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HeadRaw {
    /// Sequence before the replay position.
    pub replay_seq: U64,
    /// Block of the next record.
    pub replay_block: U64,
    /// Generation of its segment.
    pub replay_generation: U32,
    /// Zero.
    pub reserved: U32,
    /// Last Summary of that segment before the replay position, 0 = none.
    pub summary_block: U64,
    /// Hash of the last record header before the replay position.
    pub prev_hash: [u8; 32],
    /// Last sequence that readers may see.
    pub published_seq: U64,
    /// Block after that record.
    pub end_block: U64,
}
const _: () = assert!(size_of::<HeadRaw>() == 80);

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Epoch of the last writer; every opening raises it.
    pub epoch: u32,
    /// A writer is at work, or died at it.
    pub is_open: bool,
    /// Milliseconds since 1970.
    pub opened_at_ms: u64,
    /// Random identity of the writer.
    pub writer_uuid: [u8; 16],
    /// Host name of the writer's guest.
    pub guest_name: String,
}

impl Lease {
    /// The page.
    #[must_use]
    pub fn encode(&self) -> Page {
        let mut guest_name = [0; 64];
        for (to, from) in guest_name.iter_mut().zip(self.guest_name.bytes()) {
            *to = from;
        }
        let raw = LeaseRaw {
            epoch: U32::new(self.epoch),
            state: U32::new(u32::from(self.is_open)),
            opened_at_ms: U64::new(self.opened_at_ms),
            writer_uuid: self.writer_uuid,
            guest_name,
        };
        let mut page = Page::empty();
        page.body[..size_of::<LeaseRaw>()].copy_from_slice(raw.as_bytes());
        page
    }

    /// `None` for a page nobody has written.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a field is out of bounds.
    pub fn decode(page: &Page) -> Result<Option<Self>> {
        if page.version == 0 {
            return Ok(None);
        }
        let (raw, _) = LeaseRaw::ref_from_prefix(page.body.as_slice())
            .map_err(|_| Error::Corrupt("lease too short".to_owned()))?;
        let is_open = match raw.state.get() {
            0 => false,
            1 => true,
            state => return Err(Error::Corrupt(format!("lease state {state}"))),
        };
        let name = raw.guest_name.split(|b| *b == 0).next().unwrap_or_default();
        Ok(Some(Self {
            epoch: raw.epoch.get(),
            is_open,
            opened_at_ms: raw.opened_at_ms.get(),
            writer_uuid: raw.writer_uuid,
            guest_name: String::from_utf8_lossy(name).into_owned(),
        }))
    }
}

/// A place between two records of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// Sequence of the record before.
    pub seq: u64,
    /// Block of the record after.
    pub block: u64,
    /// Generation of the segment of `block`.
    pub generation: u32,
    /// Hash of the header of the record before.
    pub prev_hash: [u8; 32],
    /// Last Summary of the segment before this place, 0 = none.
    pub summary_block: u64,
}

/// Where the log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// From here a writer that opens the store re-indexes.
    pub replay: LogPosition,
    /// Last sequence that readers may see.
    pub published_seq: u64,
    /// Block after that record.
    pub end_block: u64,
}

impl Head {
    /// The page.
    #[must_use]
    pub fn encode(&self) -> Page {
        let raw = HeadRaw {
            replay_seq: U64::new(self.replay.seq),
            replay_block: U64::new(self.replay.block),
            replay_generation: U32::new(self.replay.generation),
            reserved: U32::ZERO,
            summary_block: U64::new(self.replay.summary_block),
            prev_hash: self.replay.prev_hash,
            published_seq: U64::new(self.published_seq),
            end_block: U64::new(self.end_block),
        };
        let mut page = Page::empty();
        page.body[..size_of::<HeadRaw>()].copy_from_slice(raw.as_bytes());
        page
    }

    /// Checks every field against the geometry.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the head is missing or a field is out of bounds.
    pub fn decode(page: &Page, superblock: &Superblock) -> Result<Self> {
        let corrupt = |text: &str| Error::Corrupt(format!("head: {text}"));
        if page.version == 0 {
            return Err(corrupt("missing"));
        }
        let (raw, _) = HeadRaw::ref_from_prefix(page.body.as_slice()).map_err(|_| corrupt("too short"))?;
        let replay = LogPosition {
            seq: raw.replay_seq.get(),
            block: raw.replay_block.get(),
            generation: raw.replay_generation.get(),
            prev_hash: raw.prev_hash,
            summary_block: raw.summary_block.get(),
        };
        let geometry = &superblock.geometry;
        if !geometry.holds_record(replay.block, 1) || replay.generation == 0 {
            return Err(corrupt("replay position outside the data segments"));
        }
        let segment = geometry.segment_of(replay.block);
        if replay.summary_block != 0
            && (geometry.segment_of(replay.summary_block) != segment || replay.summary_block >= replay.block)
        {
            return Err(corrupt("summary block outside the open segment"));
        }
        if raw.published_seq.get() < replay.seq {
            return Err(corrupt("published before the replay position"));
        }
        Ok(Self { replay, published_seq: raw.published_seq.get(), end_block: raw.end_block.get() })
    }
}

/// Lease and head as one device read sees them.
#[derive(Clone, Debug)]
pub struct Control {
    /// Lease; `None` when a crash tore both slots of it while it was being opened.
    pub lease: Option<Lease>,
    /// Its page.
    pub lease_page: Page,
    /// Head.
    pub head: Head,
    /// Its page; the epoch of the page bounds the epochs of the records after the replay position.
    pub head_page: Page,
}

impl Control {
    /// Reads lease and head: one device read of 16 KiB, more only while a slot is torn.
    ///
    /// # Errors
    /// A device error, or [`Error::Corrupt`].
    pub fn read(device: &dyn Device, superblock: &Superblock) -> Result<Self> {
        const _: () = assert!(PAGE_HEAD == PAGE_LEASE + 1, "lease and head are read together");
        let store_id = Some(superblock.store_id());
        let lease_id = PageId { store_id, page_no: PAGE_LEASE, kind: PageKind::Lease };
        let head_id = PageId { store_id, page_no: PAGE_HEAD, kind: PageKind::Head };
        let mut buf = AlignedBuf::zeroed(4);
        device.read(page_offset(PAGE_LEASE), buf.as_mut_slice())?;
        let (lease_bytes, head_bytes) = buf.as_slice().split_at(2 * BLOCK_BYTES_USIZE);
        let lease_page = match newest(lease_bytes, lease_id) {
            ((page, _), 0) => page,
            _ => read_page(device, lease_id)?.0,
        };
        let head_page = match newest(head_bytes, head_id) {
            ((page, _), 0) => page,
            _ => read_page(device, head_id)?.0,
        };
        let lease = Lease::decode(&lease_page)?;
        if lease.is_none() && !lease_page.is_damaged {
            return Err(Error::Corrupt("lease: missing".to_owned()));
        }
        let head = Head::decode(&head_page, superblock)?;
        Ok(Self { lease, lease_page, head, head_page })
    }

    /// No writer is at work and none died at it. A damaged lease proves nothing: the newer slot may have said "open".
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !self.lease_page.is_damaged && self.lease.as_ref().is_some_and(|lease| !lease.is_open)
    }
}
