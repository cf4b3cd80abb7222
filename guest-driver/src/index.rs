//! Index pages: up to 126 entries, and the flag that sends a search on to the next page.
//!
//! Invariants: a path has at most one entry; an entry that is not in its home page lies at most four pages further, and
//! every page before it has the `spilled` flag, which is never taken back.

use crate::error::{Error, Result};
use crate::layout::{Geometry, RECORD_BLOCKS_MAX, SLOT_BODY_BYTES, SPILL_HOPS_MAX};
use crate::page::Page;
use crate::path::PathHash;
use crate::record::Header;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Entries of an index page.
pub const ENTRIES_MAX: usize = SLOT_BODY_BYTES / size_of::<EntryRaw>();
const _: () = assert!(ENTRIES_MAX as u64 == crate::layout::INDEX_PAGE_ENTRIES);
const _: () = assert!(ENTRIES_MAX == 126 && size_of::<EntryRaw>() == 32);

/// Bit of `aux[0]`: the page was full once, search on in the next one.
pub const AUX_SPILLED: u8 = 1;

/// An entry on disk.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EntryRaw {
    /// Second half of the path hash.
    pub tag: U64,
    /// First block of the record.
    pub first_block: U64,
    /// Blocks of the record.
    pub blocks: U32,
    /// Generation of its segment.
    pub generation: U32,
    /// Sequence of the record, unique for ever.
    pub seq: U64,
}

/// Where the newest record of a path lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Second half of the path hash.
    pub tag: u64,
    /// First block of the record.
    pub block: u64,
    /// Blocks of the record.
    pub blocks: u32,
    /// Generation of its segment.
    pub generation: u32,
    /// Sequence of the record.
    pub seq: u64,
}

impl Entry {
    /// The entry of a receipt.
    #[must_use]
    pub fn of(header: &Header, hash: PathHash) -> Self {
        let Header { block, blocks, generation, seq, .. } = *header;
        Self { tag: hash.tag, block, blocks, generation, seq }
    }
}

/// The entries of one page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexPage {
    /// Search on in the next page.
    pub is_spilled: bool,
    /// Entries in no order.
    pub entries: Vec<Entry>,
}

impl IndexPage {
    /// A page of which nothing can be read: it may have been full once.
    #[must_use]
    pub fn unknown() -> Self {
        Self { is_spilled: true, entries: Vec::new() }
    }

    /// Checks every entry against the geometry.
    ///
    /// # Errors
    /// [`Error::Corrupt`] names the page.
    pub fn decode(page: &Page, page_no: u64, geometry: &Geometry) -> Result<Self> {
        let corrupt = |text: String| Error::Corrupt(format!("index page {page_no}: {text}"));
        let count = usize::from(page.count);
        let raw =
            <[EntryRaw]>::ref_from_bytes(page.body.as_slice()).map_err(|_| corrupt("size".to_owned()))?;
        let raw = raw.get(..count).ok_or_else(|| corrupt(format!("{count} entries")))?;
        let mut entries = Vec::with_capacity(count);
        for raw in raw {
            let entry = Entry {
                tag: raw.tag.get(),
                block: raw.first_block.get(),
                blocks: raw.blocks.get(),
                generation: raw.generation.get(),
                seq: raw.seq.get(),
            };
            // The reader takes memory for so many blocks before it sees the record's own header.
            let is_too_large = u64::from(entry.blocks) > RECORD_BLOCKS_MAX;
            if is_too_large
                || !geometry.holds_record(entry.block, entry.blocks)
                || entry.seq == 0
                || entry.generation == 0
            {
                return Err(corrupt(format!("impossible entry {entry:?}")));
            }
            entries.push(entry);
        }
        Ok(Self { is_spilled: page.aux[0] & AUX_SPILLED != 0, entries })
    }

    /// Writes the entries into a page; version and slot stay as they are.
    pub fn encode(&self, page: &mut Page) {
        assert!(self.entries.len() <= ENTRIES_MAX, "a page holds 126 entries");
        page.body.fill(0);
        for (raw, entry) in page.body.chunks_exact_mut(size_of::<EntryRaw>()).zip(&self.entries) {
            let value = EntryRaw {
                tag: U64::new(entry.tag),
                first_block: U64::new(entry.block),
                blocks: U32::new(entry.blocks),
                generation: U32::new(entry.generation),
                seq: U64::new(entry.seq),
            };
            raw.copy_from_slice(value.as_bytes());
        }
        page.count = u16::try_from(self.entries.len()).unwrap_or_default();
        page.aux = [0; 24];
        page.aux[0] = if self.is_spilled { AUX_SPILLED } else { 0 };
    }
}

/// What a search in a bucket found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Entries with the tag and their pages, newest first. More than one only if two paths share a tag.
    pub entries: Vec<(u64, Entry)>,
    /// First page on the way that has room.
    pub room: Option<u64>,
    /// Pages on the way, home page first.
    pub pages: Vec<u64>,
    /// A page on the way has a slot that does not verify, so an entry may be missing.
    pub is_damaged: bool,
    /// Both slots of a page on the way do not verify: no crash does that.
    pub is_lost: bool,
}

/// Searches a bucket: the home page and, while a page is spilled, the next one, at most four further.
///
/// # Errors
/// What `load` returns.
pub fn search(
    geometry: &Geometry,
    home_page: u64,
    tag: u64,
    load: &mut dyn FnMut(u64) -> Result<(IndexPage, bool)>,
) -> Result<Found> {
    let mut found = Found::default();
    let mut page_no = home_page;
    for _ in 0..=SPILL_HOPS_MAX {
        let (page, is_damaged) = load(page_no)?;
        found.pages.push(page_no);
        found.is_damaged |= is_damaged;
        found.entries.extend(page.entries.iter().filter(|e| e.tag == tag).map(|e| (page_no, *e)));
        if found.room.is_none() && page.entries.len() < ENTRIES_MAX {
            found.room = Some(page_no);
        }
        if !page.is_spilled {
            break;
        }
        page_no = geometry.spill_page(page_no);
    }
    found.entries.sort_by_key(|(_, e)| std::cmp::Reverse(e.seq));
    Ok(found)
}

/// The page that takes one more entry, and the full pages before it that must get the `spilled` flag.
///
/// # Errors
/// [`Error::IndexFull`], or what `load` returns.
pub fn find_room(
    geometry: &Geometry,
    home_page: u64,
    mut load: impl FnMut(u64) -> Result<IndexPage>,
) -> Result<(Vec<u64>, u64)> {
    let mut full = Vec::new();
    let mut page_no = home_page;
    for _ in 0..=SPILL_HOPS_MAX {
        if load(page_no)?.entries.len() < ENTRIES_MAX {
            return Ok((full, page_no));
        }
        full.push(page_no);
        page_no = geometry.spill_page(page_no);
    }
    Err(Error::IndexFull { page_no: home_page })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of an index that somebody else writes must not cost the reader a segment of memory.
    #[test]
    fn entry_of_more_than_a_record_is_refused() {
        let geometry = Geometry::plan(64 << 30, Some(1 << 30), 128).unwrap();
        let segment = (0..64).find(|segment| geometry.is_data_segment(*segment)).unwrap();
        let block = segment * (1 << 30) / crate::layout::BLOCK_BYTES;
        let decoded = |blocks: u64| {
            let blocks = u32::try_from(blocks).unwrap();
            assert!(geometry.holds_record(block, blocks), "the segment has room for it");
            let entry = Entry { tag: 1, block, blocks, generation: 1, seq: 1 };
            let mut page = Page::empty();
            IndexPage { is_spilled: false, entries: vec![entry] }.encode(&mut page);
            IndexPage::decode(&page, 7, &geometry)
        };
        assert_eq!(decoded(RECORD_BLOCKS_MAX).unwrap().entries.len(), 1);
        assert!(
            matches!(decoded(RECORD_BLOCKS_MAX + 1), Err(Error::Corrupt(text)) if text.contains("page 7"))
        );
    }
}
