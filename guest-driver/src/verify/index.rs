//! Log to index and index to log.

use super::{Check, Step};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::index::{Entry, Found, IndexPage, search};
use crate::log::read_header;
use crate::page::{PageId, PageKind, read_page};
use crate::path::PathHash;
use crate::record::Kind;
use crate::table::{self, SegmentState};

impl Check<'_> {
    /// One index page and whether a slot of it is damaged. Of a page that cannot be read nothing is known, also not whether it was full
    /// once: the search goes on behind it.
    fn load(&self, page_no: u64) -> Result<(IndexPage, bool)> {
        let id = PageId { store_id: Some(self.superblock.store_id()), page_no, kind: PageKind::Index };
        let (page, _) = read_page(self.device, id)?;
        let mut index = match IndexPage::decode(&page, page_no, &self.superblock.geometry) {
            Ok(index) if !page.is_lost => index,
            Ok(_) | Err(Error::Corrupt(_)) => return Ok((IndexPage::unknown(), true)),
            Err(error) => return Err(error),
        };
        index.is_spilled |= page.is_damaged;
        Ok((index, page.is_damaged))
    }

    pub(super) fn search(&self, hash: PathHash) -> Result<Found> {
        let geometry = &self.superblock.geometry;
        let mut all = Found::default();
        for region in geometry.regions.iter().rev() {
            let home = geometry.home_page(region, hash.bucket);
            let found = search(geometry, home, hash.tag, &mut |page_no| self.load(page_no))?;
            all.entries.extend(found.entries);
            all.pages.extend(found.pages);
            all.is_damaged |= found.is_damaged;
        }
        Ok(all)
    }

    /// A receipt is in the index unless a newer version of its path is, or it was removed; a removed one is not. `removes_seq` is what a
    /// Tombstone names.
    pub(super) fn check_is_indexed(
        &mut self,
        kind: Kind,
        path: &[u8],
        hash: PathHash,
        record: Entry,
        removes_seq: u64,
    ) -> Result<()> {
        let place = format!("block {}", record.block);
        let found = self.search(hash)?;
        self.missing.remove(&hash);
        if found.is_damaged {
            self.found(Some(path), &place, "its index page has a damaged slot")?;
        }
        if kind == Kind::Put {
            let is_known = found.entries.iter().any(|(_, entry)| entry.seq > record.seq || *entry == record);
            if !is_known {
                self.missing.insert(hash, record);
            }
            return Ok(());
        }
        for (page_no, entry) in found.entries.into_iter().filter(|(_, entry)| entry.seq < record.seq) {
            if entry.seq == removes_seq || self.is_of(&entry, path)? {
                self.found(Some(path), &place, "removed, but still in the index")?;
                self.plan.stale.push((page_no, entry));
            }
        }
        Ok(())
    }

    pub(super) fn check_index(&mut self) -> Result<()> {
        let all = self.superblock.geometry.index_pages().count() as u64;
        for (done, page_no) in (1..).zip(self.superblock.geometry.index_pages()) {
            (self.progress)(Step::Index(done, all));
            let (page, is_damaged) = self.load(page_no)?;
            if is_damaged {
                self.plan.damaged_pages.insert(page_no);
                self.found(None, &format!("index page {page_no}"), "a slot is damaged")?;
            }
            for entry in &page.entries {
                self.check_entry(page_no, entry)?;
            }
        }
        Ok(())
    }

    /// An entry names a record with its sequence and its path's hash. Damage of the record itself was found on the way
    /// through the log.
    fn check_entry(&mut self, page_no: u64, entry: &Entry) -> Result<()> {
        self.plan.newest_seq = self.plan.newest_seq.max(entry.seq);
        if entry.seq > self.end_seq {
            return self.check_is_written_since(page_no, entry);
        }
        self.totals.entries += 1;
        *self.plan.live.entry(self.superblock.geometry.segment_of(entry.block)).or_default() += 1;
        if self.is_retired(entry) {
            return self.check_entry_of_the_past(page_no, entry);
        }
        let Ok((header, _)) = read_header(self.device, self.superblock, entry.block)? else {
            return Ok(());
        };
        let is_named = header.kind == Kind::Put
            && (header.seq, header.generation, header.blocks) == (entry.seq, entry.generation, entry.blocks);
        let place = format!("index page {page_no}");
        let hash = self.superblock.path_hash(&header.meta);
        if !is_named || hash.tag != entry.tag {
            let fact =
                format!("the entry for sequence {} at block {} names another record", entry.seq, entry.block);
            if is_named {
                self.plan.stale.push((page_no, *entry)); // its record is looked for under its own path
            }
            return self.found(Some(&header.meta), &place, &fact);
        }
        // A newer entry of the path, or a way that does not lead here: left behind, and in the way of later ones.
        let mut first = None;
        for (page, other) in self.search(hash)?.entries {
            if (page, other) == (page_no, *entry) || self.is_of(&other, &header.meta)? {
                first = Some((page, other));
                break;
            }
        }
        if first.is_none_or(|(page, other)| other.seq <= self.end_seq && (page, other) != (page_no, *entry)) {
            let fact = format!("the entry for sequence {} is not the one that its path leads to", entry.seq);
            // Where the log is damaged before its record, nothing else knows it: then it stays.
            if first.is_some() || self.plan.missing.iter().any(|(_, record)| record.seq == entry.seq) {
                self.plan.stale.push((page_no, *entry));
            }
            self.found(Some(&header.meta), &place, &fact)?;
        }
        Ok(())
    }

    /// Whether a Retire record says that the record of an entry has gone.
    fn is_retired(&self, entry: &Entry) -> bool {
        let segment = self.superblock.geometry.segment_of(entry.block);
        self.life.has_retired(segment, entry.generation)
    }

    /// An entry of a segment that was retired; one that is being retired may still lose it.
    fn check_entry_of_the_past(&mut self, page_no: u64, entry: &Entry) -> Result<()> {
        let segment = self.superblock.geometry.segment_of(entry.block);
        let table = table::read_entry(self.device, self.superblock, segment)?;
        let is_new = table.state != SegmentState::Free && table.generation == entry.generation;
        if is_new || !self.load(page_no)?.0.entries.contains(entry) {
            return Ok(());
        }
        self.plan.stale.push((page_no, *entry));
        let fact = format!("the entry for sequence {} names a segment that is not in use", entry.seq);
        self.found(None, &format!("index page {page_no}"), &fact)
    }

    /// An entry behind the end of the log is of a commit that runs, or the log has lost its end.
    fn check_is_written_since(&mut self, page_no: u64, entry: &Entry) -> Result<()> {
        let now = Control::read(self.device, self.superblock)?;
        if entry.seq <= now.head.published_seq || !now.is_closed() {
            return Ok(());
        }
        let fact = format!("the entry for sequence {} lies behind the end of the log", entry.seq);
        self.found(None, &format!("index page {page_no}"), &fact)
    }

    /// Whether an entry names a record of this path.
    fn is_of(&self, entry: &Entry, path: &[u8]) -> Result<bool> {
        let parsed = read_header(self.device, self.superblock, entry.block)?;
        Ok(parsed.is_ok_and(|(header, _)| header.seq == entry.seq && header.meta == path))
    }
}
