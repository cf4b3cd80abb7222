//! The writer's pages: read once, changed in memory, written together after the flush of a group commit.
//!
//! Invariants (the write rule): a page goes to the slot that does not hold its newest version, and at most once between two flushes;
//! what is staged is not visible to anybody until [`PageStore::write_staged`].

use crate::device::{AlignedBuf, BlockRead, BlockWrite, Device};
use crate::error::{Error, Result};
use crate::layout::{BLOCK_BYTES, BLOCK_BYTES_USIZE, CACHED_PAGES_MAX, PAGE_TABLE, page_offset};
use crate::page::{Page, PageId, PageKind, encode_slot, newest, read_page};
use crate::rules::Rule;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A version of a page that is not written yet.
struct NextSlot {
    page_no: u64,
    page: Page,
    bytes: AlignedBuf,
}

impl NextSlot {
    fn offset_bytes(&self) -> u64 {
        page_offset(self.page_no) + u64::from(self.page.slot) * BLOCK_BYTES
    }

    fn write(&self) -> BlockWrite<'_> {
        BlockWrite { offset_bytes: self.offset_bytes(), bytes: self.bytes.as_slice() }
    }
}

/// Pages of one writer.
#[derive(Debug)]
pub struct PageStore {
    store_id: u64,
    epoch: u32,
    pages: HashMap<u64, Page>,
    staged: BTreeMap<u64, (PageKind, Page)>,
    written_since_flush: HashSet<u64>,
    accepts_damaged: bool,
}

impl PageStore {
    /// An empty cache for a writer of `epoch`.
    #[must_use]
    pub fn new(store_id: u64, epoch: u32) -> Self {
        Self {
            store_id,
            epoch,
            pages: HashMap::new(),
            staged: BTreeMap::new(),
            written_since_flush: HashSet::new(),
            accepts_damaged: false,
        }
    }

    /// During recovery a crash may have torn the pages of the last commits; afterwards a slot that does not verify is rot.
    pub fn accept_damaged(&mut self, accepts: bool) {
        self.accepts_damaged = accepts;
    }

    /// Puts a page that was read already into the cache.
    pub fn remember(&mut self, page_no: u64, page: Page) {
        self.pages.insert(page_no, page);
    }

    /// The page with all staged changes.
    ///
    /// # Errors
    /// A device error, or [`Error::Corrupt`] when a slot is damaged.
    pub fn load<D: Device>(&mut self, device: &D, page_no: u64, kind: PageKind) -> Result<&Page> {
        if let Some((_, page)) = self.staged.get(&page_no) {
            return Ok(page);
        }
        if !self.pages.contains_key(&page_no) {
            let id = PageId { store_id: Some(self.store_id), page_no, kind };
            let (page, _) = read_page(device, id)?;
            if page.is_lost {
                return Err(Error::Corrupt(format!("page {page_no} has two damaged slots")));
            }
            if page.is_damaged && !self.accepts_damaged {
                return Err(Error::Corrupt(format!("page {page_no} has a damaged slot")));
            }
            self.pages.insert(page_no, page);
        }
        self.pages.get(&page_no).ok_or_else(|| Error::Corrupt(format!("page {page_no} is not cached")))
    }

    /// The page for changing.
    ///
    /// # Errors
    /// As [`PageStore::load`].
    pub fn stage<D: Device>(&mut self, device: &D, page_no: u64, kind: PageKind) -> Result<&mut Page> {
        let page = self.load(device, page_no, kind)?.clone();
        let (_, page) = self.staged.entry(page_no).or_insert((kind, page));
        Ok(page)
    }

    /// Reads those of the pages that are not cached, all at the same time. Only a hint: what cannot be read now, or has a torn slot, is left to
    /// [`PageStore::load`], which says what is wrong.
    pub fn prefetch<D: Device>(&mut self, device: &D, page_nos: impl Iterator<Item = u64>, kind: PageKind) {
        let missing: BTreeSet<u64> = page_nos.filter(|page_no| !self.pages.contains_key(page_no)).collect();
        if missing.len() < 2 {
            return;
        }
        let mut buf = AlignedBuf::zeroed(2 * missing.len());
        let places = missing.iter().zip(buf.as_mut_slice().chunks_exact_mut(2 * BLOCK_BYTES_USIZE));
        let mut reads: Vec<BlockRead<'_>> =
            places.map(|(page_no, bytes)| BlockRead { offset_bytes: page_offset(*page_no), bytes }).collect();
        if device.read_many(&mut reads).is_err() {
            return;
        }
        for (page_no, bytes) in missing.into_iter().zip(buf.as_slice().chunks_exact(2 * BLOCK_BYTES_USIZE)) {
            let id = PageId { store_id: Some(self.store_id), page_no, kind };
            if let ((page, _), 0) = newest(bytes, id) {
                self.pages.insert(page_no, page);
            }
        }
    }

    /// Writes every staged page once, in any order, none flushed.
    ///
    /// # Errors
    /// A device error; which pages are written is unknown then.
    pub fn write_staged<D: Device>(&mut self, device: &D) -> Result<()> {
        let mut slots = Vec::with_capacity(self.staged.len());
        for (page_no, (kind, page)) in std::mem::take(&mut self.staged) {
            slots.push(self.next_slot(device, page_no, kind, page)?);
        }
        // crash here: any of these slots may be torn; the other one of each page is durable and the change is in the replay window.
        device.write_many(&mut slots.iter().map(NextSlot::write))?;
        self.pages.extend(slots.into_iter().map(|slot| (slot.page_no, slot.page)));
        Ok(())
    }

    /// Writes one page to the slot that does not hold its newest version. Only the content of `page` counts.
    ///
    /// # Errors
    /// A device error.
    pub fn write<D: Device>(&mut self, device: &D, page_no: u64, kind: PageKind, page: Page) -> Result<()> {
        let slot = self.next_slot(device, page_no, kind, page)?;
        // crash here: this slot may be torn; the other one is durable and the page's change is in the replay window.
        device.write(slot.offset_bytes(), slot.bytes.as_slice())?;
        self.pages.insert(page_no, slot.page);
        Ok(())
    }

    /// The next version of a page. From here on the page counts as written since the last flush.
    fn next_slot<D: Device>(
        &mut self,
        device: &D,
        page_no: u64,
        kind: PageKind,
        page: Page,
    ) -> Result<NextSlot> {
        assert!(self.written_since_flush.insert(page_no), "page {page_no} written twice between two flushes");
        let id = PageId { store_id: Some(self.store_id), page_no, kind };
        let (version, slot) = match self.pages.get(&page_no) {
            Some(old) => (old.version, old.slot),
            None => read_page(device, id).map(|(old, _)| (old.version, old.slot))?,
        };
        let version = version.checked_add(1).ok_or_else(|| Error::Corrupt("page version".to_owned()))?;
        let page = Page {
            version,
            slot: if Rule::OtherSlot.holds() { 1 - slot } else { slot },
            epoch: self.epoch,
            is_damaged: false,
            ..page
        };
        let bytes = encode_slot(self.store_id, page_no, kind, &page);
        Ok(NextSlot { page_no, page, bytes })
    }

    /// Flushes the device, as `rule` demands: every page may be written again.
    ///
    /// # Errors
    /// A device error; the writer must stop then.
    pub fn flush<D: Device>(&mut self, device: &D, rule: Rule) -> Result<()> {
        if rule.holds() {
            device.flush()?;
        }
        self.written_since_flush.clear();
        Ok(())
    }

    /// The version of a page that was read or written before.
    #[must_use]
    pub fn version(&self, page_no: u64) -> Option<u64> {
        self.pages.get(&page_no).map(|page| page.version)
    }

    /// Whether a page was written since the last flush.
    #[must_use]
    pub fn has_unflushed(&self) -> bool {
        !self.written_since_flush.is_empty()
    }

    /// Page numbers and pages with staged changes.
    pub fn staged(&self) -> impl Iterator<Item = (u64, PageKind, &Page)> {
        self.staged.iter().map(|(page_no, (kind, page))| (*page_no, *kind, page))
    }

    /// Takes what is staged, in the order of pages.
    pub fn take_staged(&mut self) -> Vec<(u64, PageKind, Page)> {
        let staged = std::mem::take(&mut self.staged).into_iter();
        staged.map(|(page_no, (kind, page))| (page_no, kind, page)).collect()
    }

    /// Forgets all pages but lease and head: they are read again.
    pub fn forget(&mut self) {
        assert!(self.staged.is_empty(), "staged changes would be lost");
        self.pages.retain(|page_no, _| *page_no < PAGE_TABLE);
    }

    /// Forgets clean pages when there are too many; never lease and head, whose versions say that no other writer came.
    pub fn shrink(&mut self) {
        assert!(self.staged.is_empty(), "shrinking between commits only");
        if self.pages.len() > CACHED_PAGES_MAX {
            self.pages.retain(|page_no, _| *page_no < PAGE_TABLE);
        }
    }
}
