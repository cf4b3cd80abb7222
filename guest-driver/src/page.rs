//! Pages: 8 KiB of two slots; the newest valid slot is the page. Nothing else in the crate knows that slots exist.
//!
//! Invariants of the write rule (kept by [`crate::page_store::PageStore`]): only the slot that does not hold the newest version is
//! written, at most once between two flushes. So one slot is always valid and durable, whatever a crash tears.

use crate::device::{AlignedBuf, Device};
use crate::error::{Error, Result};
use crate::layout::{BLOCK_BYTES_USIZE, PAGE_READS_MAX, SLOT_BODY_BYTES, SLOT_HEADER_BYTES, page_offset};
use crate::rules::Rule;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every slot.
pub const SLOT_MAGIC: [u8; 4] = *b"RSPG";

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Superblock or its copy.
    Superblock,
    /// Who writes.
    Lease,
    /// Where the log ends.
    Head,
    /// Segment table.
    Table,
    /// Index entries.
    Index,
    /// Retention policy.
    Policy,
    /// Holds.
    Hold,
}

impl PageKind {
    /// The number on disk.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Superblock => 1,
            Self::Lease => 2,
            Self::Head => 3,
            Self::Table => 4,
            Self::Index => 5,
            Self::Policy => 6,
            Self::Hold => 7,
        }
    }
}

/// First 64 bytes of a slot.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SlotHeader {
    /// `RSPG`.
    pub magic: [u8; 4],
    /// CRC-32C of bytes 8 to 4096.
    pub crc32c: U32,
    /// First 8 bytes of the store's uuid.
    pub store_id: U64,
    /// Page number of the slot's page.
    pub page_no: U64,
    /// Newest valid version wins; the first is 1.
    pub version: U64,
    /// Epoch of the writer.
    pub epoch: U32,
    /// [`PageKind`].
    pub kind: U16,
    /// Entries in use (index pages).
    pub count: U16,
    /// Kind-specific: flags (index), applied sequence (table).
    pub aux: [u8; 24],
}
const _: () = assert!(size_of::<SlotHeader>() == SLOT_HEADER_BYTES);

/// Body of a slot.
pub type Body = [u8; SLOT_BODY_BYTES];

/// The newest valid slot of a page, or an empty page of version 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// 0 when the page was never written.
    pub version: u64,
    /// Epoch of the writer that wrote it.
    pub epoch: u32,
    /// Entries in use.
    pub count: u16,
    /// Kind-specific header bytes.
    pub aux: [u8; 24],
    /// Body.
    pub body: Box<Body>,
    /// 0 or 1: the slot that holds this version.
    pub slot: u8,
    /// The other slot, or both, hold bytes that do not verify and do not change: torn by a crash, or rotten.
    pub is_damaged: bool,
    /// Both slots do. A crash tears one at most, because the other is not written before the next flush.
    pub is_lost: bool,
}

impl Page {
    /// A page nobody has written. Its first version goes to slot 0.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            version: 0,
            epoch: 0,
            count: 0,
            aux: [0; 24],
            body: Box::new([0; SLOT_BODY_BYTES]),
            slot: 1,
            is_damaged: false,
            is_lost: false,
        }
    }
}

/// Which page is expected where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageId {
    /// Store, or `None` where it is not known yet (superblock).
    pub store_id: Option<u64>,
    /// Page number.
    pub page_no: u64,
    /// Kind.
    pub kind: PageKind,
}

/// One slot as found.
enum Slot {
    /// Zeroes, or of a store that was here before.
    Empty,
    /// Ours and whole.
    Valid(Page, u64),
    /// Ours, but it does not verify.
    Torn,
}

/// Builds the 4096 bytes of a slot.
///
/// Invariant: what is built reads back as a valid slot.
#[must_use]
pub fn encode_slot(store_id: u64, page_no: u64, kind: PageKind, page: &Page) -> AlignedBuf {
    assert!(page.version > 0, "version 0 means never written");
    let header = SlotHeader {
        magic: SLOT_MAGIC,
        crc32c: U32::ZERO,
        store_id: U64::new(store_id),
        page_no: U64::new(page_no),
        version: U64::new(page.version),
        epoch: U32::new(page.epoch),
        kind: U16::new(kind.number()),
        count: U16::new(page.count),
        aux: page.aux,
    };
    let mut buf = AlignedBuf::zeroed(1);
    let bytes = buf.as_mut_slice();
    bytes[..SLOT_HEADER_BYTES].copy_from_slice(header.as_bytes());
    bytes[SLOT_HEADER_BYTES..].copy_from_slice(page.body.as_slice());
    let crc = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    buf
}

/// Reads a page with one device read (more only while a slot is torn) and returns it with the store id it carries.
///
/// A torn slot is read again until two reads are equal: then it is a crash that left it, or a write whose put is not
/// acknowledged yet, and the other slot is the newest version that counts.
///
/// # Errors
/// A device error, or [`Error::Corrupt`] when the page keeps changing.
pub fn read_page(device: &dyn Device, id: PageId) -> Result<(Page, u64)> {
    let mut buf = AlignedBuf::zeroed(2);
    let mut previous: Option<AlignedBuf> = None;
    for _ in 0..PAGE_READS_MAX {
        device.read(page_offset(id.page_no), buf.as_mut_slice())?;
        let (found, torn_slots) = newest(buf.as_slice(), id);
        if torn_slots == 0 {
            return Ok(found);
        }
        if previous.as_ref().is_some_and(|p| p.as_slice() == buf.as_slice()) || !Rule::TornReadTwice.holds() {
            let (mut page, store_id) = found;
            page.is_damaged = true;
            page.is_lost = torn_slots == 2;
            return Ok((page, store_id));
        }
        previous = Some(buf.clone());
    }
    Err(Error::Corrupt(format!("page {} changes faster than it can be read", id.page_no)))
}

/// The newest valid slot of 8192 bytes, and the number of torn slots.
#[must_use]
pub fn newest(bytes: &[u8], id: PageId) -> ((Page, u64), u8) {
    assert_eq!(bytes.len(), 2 * BLOCK_BYTES_USIZE, "a page has two slots");
    let mut best: Option<(Page, u64)> = None;
    let mut torn_slots = 0;
    for (slot, bytes) in (0_u8..).zip(bytes.chunks_exact(BLOCK_BYTES_USIZE)) {
        match classify(bytes, id, slot) {
            Slot::Empty => {}
            Slot::Torn => torn_slots += 1,
            Slot::Valid(page, store_id) => {
                if best.as_ref().is_none_or(|(b, _)| page.version > b.version) {
                    best = Some((page, store_id));
                }
            }
        }
    }
    (best.unwrap_or_else(|| (Page::empty(), 0)), torn_slots)
}

fn classify(bytes: &[u8], id: PageId, slot: u8) -> Slot {
    let Ok((header, body)) = SlotHeader::ref_from_prefix(bytes) else {
        return Slot::Torn;
    };
    let store_id = header.store_id.get();
    let is_whole = header.magic == SLOT_MAGIC && crc32c::crc32c(&bytes[8..]) == header.crc32c.get();
    if !is_whole {
        return if has_trace(bytes, header, id) { Slot::Torn } else { Slot::Empty };
    }
    if id.store_id.is_some_and(|ours| ours != store_id) {
        return Slot::Empty;
    }
    if header.page_no.get() != id.page_no
        || header.kind.get() != id.kind.number()
        || header.version.get() == 0
    {
        return Slot::Torn;
    }
    let mut page = Page::empty();
    page.version = header.version.get();
    page.epoch = header.epoch.get();
    page.count = header.count.get();
    page.aux = header.aux;
    page.body.copy_from_slice(body);
    page.slot = slot;
    Slot::Valid(page, store_id)
}

/// Whether bytes that do not verify were once (partly) written by this store. Zeroes were not, and neither was
/// what another store or file system left here: such a slot is empty, so that `format` need not clear the index.
fn has_trace(bytes: &[u8], header: &SlotHeader, id: PageId) -> bool {
    let Some(ours) = id.store_id else {
        return header.magic == SLOT_MAGIC;
    };
    if header.store_id.get() == ours {
        return true;
    }
    if bytes[..512].iter().all(|b| *b == 0) {
        return bytes[512..].iter().any(|b| *b != 0);
    }
    let mut patched = *header; // a slot that only lost its store id
    patched.store_id = U64::new(ours);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&patched.as_bytes()[8..]), &bytes[SLOT_HEADER_BYTES..]);
    header.magic == SLOT_MAGIC && crc == header.crc32c.get()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const ID: PageId = PageId { store_id: Some(42), page_no: 7, kind: PageKind::Index };

    fn slot(store_id: u64, version: u64) -> AlignedBuf {
        let mut page = Page { version, epoch: 3, count: 1, ..Page::empty() };
        page.body.fill(0x5a);
        encode_slot(store_id, 7, PageKind::Index, &page)
    }

    fn pair(one: &AlignedBuf, two: &AlignedBuf) -> Vec<u8> {
        [one.as_slice(), two.as_slice()].concat()
    }

    #[test]
    fn newest_valid_slot_wins() {
        let ((page, store), torn) = newest(&pair(&slot(42, 4), &slot(42, 5)), ID);
        assert_eq!((page.version, page.slot, store, torn), (5, 1, 42, 0));
        let ((page, _), torn) = newest(&pair(&slot(42, 6), &slot(42, 5)), ID);
        assert_eq!((page.version, page.slot, torn), (6, 0, 0));
    }

    #[test]
    fn zeroes_and_slots_of_another_store_are_empty() {
        let zero = AlignedBuf::zeroed(1);
        let ((page, _), torn) = newest(&pair(&zero, &slot(41, 9)), ID);
        assert_eq!((page.version, page.slot, torn), (0, 1, 0));
        let mut garbage = AlignedBuf::zeroed(1);
        garbage.as_mut_slice().fill(0xee);
        assert_eq!(newest(&pair(&garbage, &zero), ID).1, 0, "left by another program");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        for at in 0..4096 {
            let mut bad = slot(42, 5);
            bad.as_mut_slice()[at] ^= 0x11;
            let ((page, _), torn) = newest(&pair(&slot(42, 4), &bad), ID);
            assert_eq!((page.version, torn), (4, 1), "byte {at}");
        }
    }

    #[test]
    fn slots_of_another_place_or_kind_do_not_count() {
        let other = PageId { page_no: 8, ..ID };
        assert_eq!(newest(&pair(&slot(42, 4), &slot(42, 5)), other).1, 2);
        let other = PageId { kind: PageKind::Table, ..ID };
        assert_eq!(newest(&pair(&slot(42, 4), &slot(42, 5)), other).0.0.version, 0);
    }

    #[test]
    fn lost_first_sector_is_torn() {
        let mut torn = slot(42, 5);
        torn.as_mut_slice()[..512].fill(0);
        assert_eq!(newest(&pair(&slot(42, 4), &torn), ID).1, 1);
    }

    /// Answers each read of a page with the next of its states.
    struct Scripted(std::cell::RefCell<Vec<Vec<u8>>>);

    impl Device for Scripted {
        fn size_bytes(&self) -> u64 {
            1 << 20
        }
        fn read(&self, _: u64, buf: &mut [u8]) -> crate::device::DeviceResult<()> {
            let mut states = self.0.borrow_mut();
            let state = if states.len() > 1 { states.remove(0) } else { states[0].clone() };
            buf.copy_from_slice(&state);
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> crate::device::DeviceResult<()> {
            unreachable!()
        }
        fn flush(&self) -> crate::device::DeviceResult<()> {
            unreachable!()
        }
    }

    #[test]
    pub(crate) fn one_torn_read_is_not_trusted() {
        // Slot 0 was read as version 5; then 6 (slot 1) was acknowledged, 7 written to slot 0, and 8 is on its way.
        let mut torn = slot(42, 8);
        torn.as_mut_slice()[3000] ^= 1;
        let states =
            vec![pair(&slot(42, 5), &torn), pair(&slot(42, 7), &torn), pair(&slot(42, 7), &slot(42, 8))];
        let (page, _) = read_page(&Scripted(states.into()), ID).unwrap();
        assert_eq!((page.version, page.is_damaged), (8, false));
        let stable = vec![pair(&slot(42, 7), &torn)];
        let (page, _) = read_page(&Scripted(stable.into()), ID).unwrap();
        assert_eq!((page.version, page.is_damaged), (7, true), "left by a crash");
    }
}
