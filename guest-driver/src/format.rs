//! Making a store.

use crate::control::{Head, Lease, LogPosition};
use crate::device::{AlignedBuf, Device};
use crate::error::{Error, Result};
use crate::layout::{
    BLOCK_BYTES, Geometry, PAGE_BYTES, PAGE_HEAD, PAGE_LEASE, PAGE_SUPERBLOCK, ZONE_SEGMENTS_DEFAULT,
    block_offset, page_offset,
};
use crate::page::{Page, PageKind, encode_slot};
use crate::superblock::{Superblock, superblock_pages};
use crate::table::{self, SegmentState, TableEntry};

/// How `format` makes a store.
#[derive(Clone, Debug, Default)]
pub struct FormatOptions {
    /// Bytes of a segment; `None` = by the size of the device.
    pub segment_bytes: Option<u64>,
    /// Segments of a zone; `None` = 128. Fewer give the index a larger share.
    pub zone_segments: Option<u64>,
    /// Overwrite what is there.
    pub force: bool,
    /// Identity and path key for tests; `None` = random.
    pub fixed_identity: Option<([u8; 16], [u8; 32])>,
    /// Epoch before the first writer's for tests; `None` = random, or 0 with a fixed identity.
    pub fixed_epoch: Option<u32>,
    /// Clock in milliseconds since 1970 for tests.
    pub fixed_clock_ms: Option<u64>,
}

/// Blocks at the beginning of the device that must be zero unless forced.
const CHECKED_BLOCKS: u64 = 256;

/// Makes a store. Index and segment table are zeroed, and every place where a superblock may lie: nothing that was there before is taken
/// for a part of it, and a reader of an older store finds nothing any more.
///
/// # Errors
/// [`Error::NotEmpty`] when the device holds something and `force` is not set, [`Error::BadGeometry`], or a device error.
pub fn format<D: Device>(device: &D, options: &FormatOptions) -> Result<Superblock> {
    format_with_progress(device, options, &mut |_, _| {})
}

/// As [`format`](fn@format); `progress` gets the bytes that are zeroed and those that have to be: the one part that can take long.
///
/// # Errors
/// As there.
pub fn format_with_progress<D: Device>(
    device: &D,
    options: &FormatOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Superblock> {
    let zone_segments = options.zone_segments.unwrap_or(ZONE_SEGMENTS_DEFAULT);
    let geometry = Geometry::plan(device.size_bytes(), options.segment_bytes, zone_segments)?;
    if !options.force
        && let Some(what) = find_content(device)?
    {
        return Err(Error::NotEmpty { what });
    }
    let (uuid, path_key) = match options.fixed_identity {
        Some(identity) => identity,
        None => (crate::random_bytes()?, crate::random_bytes()?),
    };
    // Records of an older store on this disk have other epochs, so they are never taken for a part of this log.
    let epoch = match (options.fixed_epoch, options.fixed_identity) {
        (Some(epoch), _) => epoch,
        (None, Some(_)) => 0,
        (None, None) => u32::from_le_bytes(crate::random_bytes()?) >> 1,
    };
    let created_at_ms = options.fixed_clock_ms.unwrap_or_else(crate::clock_ms);
    let superblock = Superblock {
        uuid,
        path_key,
        geometry,
        created_at_ms,
        is_read_only: false,
        has_life: false,
        feature_compat: 0,
    };
    let copy_page = superblock.geometry.superblock_copy_page();
    for page_no in superblock_pages(device.size_bytes()) {
        // crash here: no superblock, or one of an older store with all that it had; `format` runs again.
        device.write_zeroes(page_offset(page_no), PAGE_BYTES)?;
    }
    device.flush()?;
    // crash here, and below: no superblock, no store.
    let all_bytes = superblock.geometry.zeroed_pages().map(|(_, page_count)| page_count * PAGE_BYTES).sum();
    let mut done_bytes = 0;
    for (first_page, page_count) in superblock.geometry.zeroed_pages() {
        device.write_zeroes(page_offset(first_page), page_count * PAGE_BYTES)?;
        done_bytes += page_count * PAGE_BYTES;
        progress(done_bytes, all_bytes);
    }
    device.flush()?;
    write_first_pages(device, &superblock, epoch)?;
    device.flush()?;
    for page_no in [PAGE_SUPERBLOCK, copy_page] {
        // crash here: as above, or one superblock of two, which is enough.
        write_page(device, &superblock, page_no, PageKind::Superblock, superblock.encode())?;
    }
    device.flush()?;
    Ok(superblock)
}

fn write_first_pages<D: Device>(device: &D, superblock: &Superblock, epoch: u32) -> Result<()> {
    let geometry = &superblock.geometry;
    let first = (1..geometry.segment_count).find(|s| geometry.is_data_segment(*s)).unwrap_or_default();
    let (table_page, position) = geometry.table_slot(first);
    let mut table = Page::empty();
    let entry =
        TableEntry { generation: 1, state: SegmentState::Open, first_seq: 1, ..TableEntry::default() };
    table::set_entry(&mut table, position, &entry);
    let lease = Lease {
        epoch,
        is_open: false,
        opened_at_ms: superblock.created_at_ms,
        writer_uuid: [0; 16],
        guest_name: String::new(),
    };
    let block = geometry.first_block(first);
    let replay =
        LogPosition { seq: 0, block, generation: 1, prev_hash: superblock.genesis_hash(), summary_block: 0 };
    let head = Head { replay, published_seq: 0, end_block: block };
    // crash here: no superblock yet, no store.
    write_page(device, superblock, table_page, PageKind::Table, table)?;
    write_page(device, superblock, PAGE_LEASE, PageKind::Lease, lease.encode())?;
    write_page(device, superblock, PAGE_HEAD, PageKind::Head, Page { epoch, ..head.encode() })
}

/// Writes both slots of a page: version 1 and an empty slot, so that nothing older is left in it.
fn write_page<D: Device>(
    device: &D,
    superblock: &Superblock,
    page_no: u64,
    kind: PageKind,
    page: Page,
) -> Result<()> {
    let page = Page { version: 1, slot: 0, ..page };
    let mut both = AlignedBuf::zeroed(2);
    let slot = encode_slot(superblock.store_id(), page_no, kind, &page);
    both.as_mut_slice()[..slot.as_slice().len()].copy_from_slice(slot.as_slice());
    device.write(page_offset(page_no), both.as_slice())?;
    Ok(())
}

/// What the device holds already, in words; `None` when its beginning is all zeroes.
fn find_content<D: Device>(device: &D) -> Result<Option<String>> {
    match Superblock::read(device, "device") {
        Ok(_) => return Ok(Some("a receipt store".to_owned())),
        Err(Error::NewerFormat { .. } | Error::UnknownFeature { .. } | Error::BadGeometry(_)) => {
            return Ok(Some("a receipt store (of another version or size)".to_owned()));
        }
        Err(error @ Error::Device(_)) => return Err(error),
        Err(_) => {}
    }
    let blocks = CHECKED_BLOCKS.min(device.size_bytes() / BLOCK_BYTES);
    for block in 0..blocks {
        let mut buf = AlignedBuf::zeroed(1);
        device.read(block_offset(block), buf.as_mut_slice())?;
        if buf.as_slice().iter().any(|byte| *byte != 0) {
            let what = signature(block, buf.as_slice()).unwrap_or("data");
            return Ok(Some(format!("{what} (block {block} is not zero)")));
        }
    }
    Ok(None)
}

/// Names of what is often found at the beginning of a disk.
fn signature(block: u64, bytes: &[u8]) -> Option<&'static str> {
    let has = |at: usize, text: &[u8]| bytes.get(at..at + text.len()) == Some(text);
    if block != 0 {
        return None;
    }
    [
        (1080, b"\x53\xef".as_slice(), "an ext2, ext3 or ext4 file system"),
        (0, b"XFSB", "an XFS file system"),
        (536, b"LABELONE", "an LVM physical volume"),
        (512, b"EFI PART", "a GPT partition table"),
        (0, b"LUKS\xba\xbe", "a LUKS volume"),
        (0, b"QFI\xfb", "a qcow2 image"),
        (510, b"\x55\xaa", "a partition table or boot sector"),
    ]
    .into_iter()
    .find_map(|(at, text, name)| has(at, text).then_some(name))
}
