//! The effect of a record on the index and the segment table: the same code for a commit and for recovery.
//!
//! Invariant: applying a record that was applied before changes nothing (entries by sequence, table pages by `applied_seq`).

use crate::device::Device;
use crate::error::{Error, Result};
use crate::index::{ENTRIES_MAX, Entry, Found, IndexPage, find_room, search};
use crate::layout::{Geometry, PAGE_HOLDS_FIRST, PAGE_HOLDS_LAST, PAGE_POLICY, SPILL_HOPS_MAX};
use crate::log::seal_link;
use crate::page::PageKind;
use crate::page_store::PageStore;
use crate::path::PathHash;
use crate::policy::{Hold, Policy, Retention, decode_holds, encode_holds, retention_pages};
use crate::record::{FLAG_WAS_LIVE, Header, Kind};
use crate::retire::Retired;
use crate::rules::Rule;
use crate::superblock::Superblock;
use crate::table::{self, SegmentState, TableEntry};

/// Index pages and table pages of one writer on one device.
pub struct Pages<'a, D> {
    /// Device.
    pub device: &'a D,
    /// Superblock.
    pub superblock: &'a Superblock,
    /// Cache and staging area.
    pub store: &'a mut PageStore,
    /// Receipts in the replay window, 0 outside recovery. So many entries a page may have had when a crash took its newest version back,
    /// and with it the spilled flag: entries may lie behind it all the same.
    pub window_puts: usize,
}

impl<D: Device> Pages<'_, D> {
    fn geometry(&self) -> &Geometry {
        &self.superblock.geometry
    }

    fn index_page(&mut self, page_no: u64) -> Result<IndexPage> {
        let page = self.store.load(self.device, page_no, PageKind::Index)?;
        IndexPage::decode(page, page_no, &self.superblock.geometry)
    }

    /// Searches the bucket of a path in every region, the newest first.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn search(&mut self, hash: PathHash) -> Result<Found> {
        let superblock = self.superblock;
        let mut all = Found::default();
        for region in superblock.geometry.regions.iter().rev() {
            let home = superblock.geometry.home_page(region, hash.bucket);
            let mut lasts = Vec::new();
            let mut found = search(&superblock.geometry, home, hash.tag, &mut |page_no| {
                let mut page = self.index_page(page_no)?;
                lasts.push(!page.is_spilled);
                page.is_spilled |= self.may_have_spilled(&page);
                Ok((page, false))
            })?;
            let by_flags = lasts.iter().position(|is_last| *is_last).unwrap_or(lasts.len());
            let is_on_the_way = |page_no: &u64| found.entries.iter().any(|(of_entry, _)| of_entry == page_no);
            let by_entries = found.pages.iter().rposition(is_on_the_way).unwrap_or_default();
            found.pages.truncate(by_flags.max(by_entries) + 1);
            all.entries.extend(found.entries);
            all.pages.extend(found.pages);
        }
        Ok(all)
    }

    /// Whether the page may have been full before a crash took its newest version back.
    fn may_have_spilled(&self, page: &IndexPage) -> bool {
        self.window_puts > 0
            && page.entries.len() + self.window_puts > ENTRIES_MAX
            && Rule::RecoveryLooksBehind.holds()
    }

    /// Marks the pages on the way to an entry as spilled again, where a crash has taken the flag back.
    fn mark_way(&mut self, hash: PathHash, entry_page_no: u64) -> Result<()> {
        let geometry = self.superblock.geometry.clone();
        for region in &geometry.regions {
            let home = geometry.home_page(region, hash.bucket);
            let way = std::iter::successors(Some(home), |page_no| Some(geometry.spill_page(*page_no)));
            let way: Vec<u64> = way.take(SPILL_HOPS_MAX + 1).collect();
            let Some(hops) = way.iter().position(|page_no| *page_no == entry_page_no) else {
                continue;
            };
            for page_no in &way[..hops] {
                if !self.index_page(*page_no)?.is_spilled {
                    self.change_index_page(*page_no, |page| page.is_spilled = true)?;
                }
            }
        }
        Ok(())
    }

    /// The pages that a new entry changes: full pages that must be marked, and the page with room. New paths go to the
    /// newest region whose page for them has room; where none has, behind that of the newest region that has room there.
    ///
    /// # Errors
    /// [`Error::IndexFull`], a device error or [`Error::Corrupt`].
    pub fn find_room(&mut self, hash: PathHash) -> Result<(Vec<u64>, u64)> {
        let geometry = &self.superblock.geometry;
        let mut best = Err(Error::Corrupt("no index region".to_owned()));
        for region in geometry.regions.iter().rev() {
            let home = geometry.home_page(region, hash.bucket);
            match find_room(geometry, home, |page_no| self.index_page(page_no)) {
                Ok((full, page_no)) if full.is_empty() => return Ok((full, page_no)),
                Err(error @ Error::IndexFull { .. }) if matches!(best, Err(Error::Corrupt(_))) => {
                    best = Err(error);
                }
                Ok(found) if best.is_err() => best = Ok(found),
                Ok(_) | Err(Error::IndexFull { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        best
    }

    /// Stages everything that `header` changes in index and table.
    ///
    /// # Errors
    /// [`Error::IndexFull`], a device error or [`Error::Corrupt`].
    pub fn apply(&mut self, header: &Header) -> Result<()> {
        self.apply_again(header, false)
    }

    /// As [`Pages::apply`], for recovery: a receipt whose path has a later record in the replay window (`is_superseded`) gets no
    /// entry if it has none. A later removal may have made the room that a still later put took, so there may be none for it.
    ///
    /// # Errors
    /// As [`Pages::apply`].
    pub fn apply_again(&mut self, header: &Header, is_superseded: bool) -> Result<()> {
        match header.kind {
            Kind::Put => {
                self.apply_entry(header, is_superseded)?;
                self.apply_path_to_table(header)
            }
            Kind::Tombstone | Kind::Erase => {
                self.apply_removal(header)?;
                self.apply_path_to_table(header)
            }
            Kind::Hold => self.apply_hold(header),
            Kind::Policy => self.apply_policy(header),
            Kind::Retire => self.apply_retirement(header),
            Kind::Summary => Ok(()),
            Kind::Seal => self.apply_seal(header),
        }
    }

    fn apply_entry(&mut self, header: &Header, is_superseded: bool) -> Result<()> {
        let hash = self.superblock.path_hash(&header.meta);
        let found = self.search(hash)?;
        let entry = Entry::of(header, hash);
        for (page_no, _) in &found.entries {
            self.mark_way(hash, *page_no)?;
        }
        if Rule::ReplayTwice.holds() && found.entries.iter().any(|(_, old)| old.seq >= header.seq) {
            // Applied before. The page is staged all the same: a crash may have torn its other slot.
            for page_no in found.pages.into_iter().filter(|_| Rule::RecoveryRewrites.holds()) {
                self.store.stage(self.device, page_no, PageKind::Index)?;
            }
            return Ok(());
        }
        let replaced = found.entries.iter().find(|(_, old)| old.seq == header.previous_version_seq);
        if let Some((page_no, old)) = replaced {
            return self.change_index_page(*page_no, |page| {
                for slot in page.entries.iter_mut().filter(|e| *e == old) {
                    *slot = entry;
                }
            });
        }
        if is_superseded && Rule::ReplayTwice.holds() {
            return Ok(()); // the later record stages the pages
        }
        self.insert(hash, entry)
    }

    /// Stages a new entry.
    pub(crate) fn insert(&mut self, hash: PathHash, entry: Entry) -> Result<()> {
        let (full, room) = self.find_room(hash)?;
        for page_no in full {
            self.change_index_page(page_no, |page| page.is_spilled = true)?;
        }
        self.change_index_page(room, |page| page.entries.push(entry))
    }

    /// Takes the entry of the version that a Tombstone names out of the index.
    fn apply_removal(&mut self, header: &Header) -> Result<()> {
        let hash = self.superblock.path_hash(&header.meta);
        let found = self.search(hash)?;
        let is_removed = |entry: &Entry| entry.tag == hash.tag && entry.seq == header.previous_version_seq;
        let pages = found.entries.iter().filter(|(_, entry)| is_removed(entry)).map(|(page_no, _)| *page_no);
        let mut pages: Vec<u64> = pages.collect();
        pages.dedup();
        if pages.is_empty() {
            pages = found.pages; // applied before; staged all the same: a crash may have torn another slot
        }
        for page_no in pages {
            self.change_index_page(page_no, |page| page.entries.retain(|entry| !is_removed(entry)))?;
        }
        Ok(())
    }

    pub(crate) fn change_index_page(
        &mut self,
        page_no: u64,
        change: impl FnOnce(&mut IndexPage),
    ) -> Result<()> {
        let mut index = self.index_page(page_no)?;
        change(&mut index);
        index.encode(self.store.stage(self.device, page_no, PageKind::Index)?);
        Ok(())
    }

    fn apply_path_to_table(&mut self, header: &Header) -> Result<()> {
        let segment = self.geometry().segment_of(header.block);
        let mut changes: Vec<(u64, i64)> = vec![(segment, i64::from(header.kind == Kind::Put))];
        let was_live = header.kind != Kind::Erase || header.flags & FLAG_WAS_LIVE != 0;
        if header.previous_version_seq != 0 && was_live {
            changes.push((self.geometry().segment_of(header.previous_version_block), -1));
        }
        self.change_table(header.seq, &changes, |entry, delta, is_own| {
            entry.live = entry.live.saturating_add_signed(i32::try_from(*delta).unwrap_or_default());
            if is_own {
                entry.newest_issue_day = entry.newest_issue_day.max(header.issued_day);
            }
        })
    }

    fn apply_seal(&mut self, header: &Header) -> Result<()> {
        let geometry = self.geometry();
        let segment = geometry.segment_of(header.block);
        let seal_block = u32::try_from(header.block - geometry.first_block(segment)).unwrap_or_default();
        let Some((next, generation)) = seal_link(header, geometry) else {
            return Err(Error::Corrupt(format!("Seal at block {} links nowhere", header.block)));
        };
        let first_seq = header.seq + 1;
        self.change_table(header.seq, &[(segment, true), (next, false)], |entry, is_sealed, _| {
            if *is_sealed {
                entry.state = SegmentState::Sealed;
                entry.seal_block = seal_block;
            } else {
                *entry =
                    TableEntry { generation, state: SegmentState::Open, first_seq, ..TableEntry::default() };
            }
        })
    }

    fn apply_policy(&mut self, header: &Header) -> Result<()> {
        if Policy::decode(&header.meta).is_none() {
            return Err(Error::Corrupt(format!("Policy at block {}: unknown mode", header.block)));
        }
        let page = self.store.stage(self.device, PAGE_POLICY, PageKind::Policy)?;
        if table::applied_seq(page) < header.seq {
            page.body.fill(0);
            page.body[..header.meta.len()].copy_from_slice(&header.meta);
            table::set_applied_seq(page, header.seq);
        }
        Ok(())
    }

    /// A hold replaces the one with the same prefix; its record names the page, so that replay finds it whatever the others hold.
    fn apply_hold(&mut self, header: &Header) -> Result<()> {
        let corrupt = |fact: &str| Error::Corrupt(format!("Hold at block {}: {fact}", header.block));
        let (hold, raw, _) = Hold::decode(&header.meta).ok_or_else(|| corrupt("cut off"))?;
        let page_no = u64::from(raw.page);
        if !(PAGE_HOLDS_FIRST..=PAGE_HOLDS_LAST).contains(&page_no) {
            return Err(corrupt("page out of bounds"));
        }
        let page = self.store.stage(self.device, page_no, PageKind::Hold)?;
        if table::applied_seq(page) >= header.seq {
            return Ok(());
        }
        let mut holds = decode_holds(page)?;
        holds.retain(|other| other.prefix != hold.prefix);
        if raw.is_release == 0 {
            holds.push(hold);
        }
        if !encode_holds(&holds, page_no, page) {
            return Err(corrupt("does not fit into its page"));
        }
        table::set_applied_seq(page, header.seq);
        Ok(())
    }

    /// The policy with all staged changes: one device read, none where the store has never had one or it is cached.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn policy(&mut self) -> Result<Policy> {
        match self.superblock.has_life {
            true => Policy::of_page(self.store.load(self.device, PAGE_POLICY, PageKind::Policy)?),
            false => Ok(Policy::default()),
        }
    }

    /// Policy and holds with all staged changes.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn retention(&mut self) -> Result<Retention> {
        let superblock = self.superblock;
        Retention::load(superblock, |page_no, kind| self.store.load(self.device, page_no, kind).cloned())
    }

    /// Writes the pages of policy and holds once more, so that both slots show what no record may tell from now on.
    fn show_retention_twice(&mut self) -> Result<()> {
        for (page_no, kind) in retention_pages().filter(|_| Rule::RetireShowsTwice.holds()) {
            if self.store.load(self.device, page_no, kind)?.version > 0 {
                self.store.stage(self.device, page_no, kind)?;
            }
        }
        Ok(())
    }

    /// The segment is free from here on; its entries were removed before.
    fn apply_retirement(&mut self, header: &Header) -> Result<()> {
        let Some(retired) = Retired::of(header, self.geometry()) else {
            return Err(Error::Corrupt(format!("Retire at block {}: out of bounds", header.block)));
        };
        self.show_retention_twice()?;
        self.change_table(header.seq, &[(retired.segment, ())], |entry, (), _| {
            if entry.generation == retired.generation {
                *entry = TableEntry { generation: retired.generation, ..TableEntry::default() };
            }
        })
    }

    /// Stages changes of table entries, unless their page shows the effect of `seq` already. The first change is the record's own
    /// segment.
    fn change_table<T>(
        &mut self,
        seq: u64,
        changes: &[(u64, T)],
        change: impl Fn(&mut TableEntry, &T, bool),
    ) -> Result<()> {
        let mut fresh = Vec::new();
        for (position, (segment, what)) in changes.iter().enumerate() {
            let (page_no, slot) = self.geometry().table_slot(*segment);
            // staged even when nothing changes: a crash may have torn the page
            let page = self.store.stage(self.device, page_no, PageKind::Table)?;
            if table::applied_seq(page) < seq {
                fresh.push((page_no, slot, what, position == 0));
            }
        }
        for (page_no, slot, what, is_own) in fresh {
            let page = self.store.stage(self.device, page_no, PageKind::Table)?;
            let mut entry = table::entry(page, slot)?;
            change(&mut entry, what, is_own);
            table::set_entry(page, slot, &entry);
            table::set_applied_seq(page, seq);
        }
        Ok(())
    }

    /// What the table says of a segment.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn table_entry(&mut self, segment: u64) -> Result<TableEntry> {
        let (page_no, position) = self.geometry().table_slot(segment);
        table::entry(self.store.load(self.device, page_no, PageKind::Table)?, position)
    }
}
