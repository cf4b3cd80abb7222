//! Mending what the log can mend: index entries, slots, the segment table, the second superblock.
//!
//! Invariants: nothing is written that does not follow from records that verify; no record is touched; an entry goes only when a record
//! says so (a newer version, a removal) or the entry of the same record lies where its path leads. A page with a damaged slot answers
//! "corrupt" until everything that it may have named is in its place, so no acknowledged receipt is "not found" on the way, also
//! not after a crash: pages that are whole are written and flushed first, and a damaged one is replaced by one write.

mod retention;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::index::{Entry, IndexPage};
use crate::layout::{PAGE_LEASE, PAGE_SUPERBLOCK, PAGE_TABLE, TABLE_ENTRIES_PER_PAGE};
use crate::log::read_header;
use crate::page::{Page, PageId, PageKind, read_page};
use crate::path::PathHash;
use crate::reader::Reader;
use crate::rules::Rule;
use crate::table::{self, TableEntry};
use crate::verify::{Finding, Plan, Step, Totals, check};
use crate::writer::{Writer, WriterOptions};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A repair goes on while that mends more, but not for ever on a store that somebody has made for it.
const ROUNDS_MAX: u32 = 4;

/// A finding of the check before, and whether the check after did not have it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What did not verify.
    pub finding: Finding,
    /// It does now.
    pub is_mended: bool,
}

/// Pages of one kind that are to be written, with the damaged ones among them.
#[derive(Default)]
struct Damaged {
    /// A slot does not verify.
    any: BTreeSet<u64>,
    /// No slot does: both are written.
    lost: BTreeSet<u64>,
}

/// Opens a store as its writer, mends it ([`Writer::repair`]) and closes it. Damaged pages that keep [`Writer::open`] from opening it
/// do not hinder this. Each finding is reported once, `progress` says how far the checks have come.
///
/// # Errors
/// As [`Writer::open`] and [`Writer::repair`].
pub fn repair<D: Device>(
    device: D,
    options: &WriterOptions,
    progress: &mut dyn FnMut(Step),
    report: &mut dyn FnMut(Outcome) -> Result<()>,
) -> Result<Totals> {
    let mut writer = Writer::open_for_repair(device, options)?;
    let totals = writer.repair(progress, report)?;
    writer.close()?;
    Ok(totals)
}

impl<D: Device> Writer<D> {
    /// Opens the store to mend it: where damaged pages keep the replay window from being applied, [`Writer::repair`] does that from the
    /// log. Until then this writer must not close.
    fn open_for_repair(device: D, options: &WriterOptions) -> Result<Self> {
        let (mut writer, head) = Self::begin(device, options)?;
        let Some(head) = head else {
            return Ok(writer);
        };
        match writer.roll_forward(&head) {
            Err(Error::Corrupt(_)) => {
                // Nothing is written yet, and the log was followed to its end.
                drop(writer.pages.take_staged());
                writer.pages.accept_damaged(false);
                writer.check_log_end(&head)?;
                Ok(writer)
            }
            done => done.map(|()| writer),
        }
    }

    /// Checks everything, mends what follows from the log, and checks everything again; once more where that made more of it known.
    /// Commits must wait meanwhile. Returns the totals of the last check: what it still finds cannot be mended.
    ///
    /// # Errors
    /// A device error or [`Error::Fenced`]: the writer has stopped, and what was mended so far is harmless;
    /// [`Error::CorruptLog`] when index or table prove that the log went on: nothing is changed; what `report` returns.
    pub fn repair(
        &mut self,
        progress: &mut dyn FnMut(Step),
        report: &mut dyn FnMut(Outcome) -> Result<()>,
    ) -> Result<Totals> {
        if self.is_stopped {
            return Err(Error::WriterStopped);
        }
        let mut before = Vec::new();
        let (mut totals, mut plan) = self.check(progress, &mut before)?;
        self.check_known_end(&plan)?;
        let mut after = Vec::new();
        let mut is_due =
            !before.is_empty() || totals.wrong_hints > 0 || self.head_replay != self.tail.position();
        let mut rounds_left = ROUNDS_MAX;
        while is_due && rounds_left > 0 {
            rounds_left -= 1;
            if let Err(error) = self.mend(&plan) {
                return Err(self.stop(error));
            }
            after.clear();
            let (unknown_seq, stale) = (plan.unknown_seq, plan.stale);
            (totals, plan) = self.check(progress, &mut after)?;
            // A segment table that is whole again leads to Summaries, and those name records that were nameless; a page that is whole
            // again shows which entries it leaves behind. That mends more.
            is_due = plan.unknown_seq < unknown_seq || plan.stale.iter().any(|entry| !stale.contains(entry));
        }
        let left: HashSet<&Finding> = after.iter().collect();
        for finding in before.iter().filter(|finding| !left.contains(finding)) {
            report(Outcome { finding: finding.clone(), is_mended: true })?;
        }
        for finding in &after {
            report(Outcome { finding: finding.clone(), is_mended: false })?;
        }
        Ok(totals)
    }

    fn check(&self, progress: &mut dyn FnMut(Step), findings: &mut Vec<Finding>) -> Result<(Totals, Plan)> {
        let reader = Reader::new(&self.device, "device");
        check(&reader, Some(self.tail.cursor.seq), progress, &mut |finding| {
            findings.push(finding);
            Ok(())
        })
    }

    /// An entry or a table page that knows more than the log proves that the log has lost its end.
    fn check_known_end(&self, plan: &Plan) -> Result<()> {
        let end_seq = self.tail.cursor.seq;
        if plan.newest_seq > end_seq && Rule::RepairKnowsEnd.holds() {
            let evidence = format!("index or segment table know sequence {}", plan.newest_seq);
            return Err(Error::CorruptLog { end_seq, evidence });
        }
        Ok(())
    }

    fn mend(&mut self, plan: &Plan) -> Result<()> {
        self.check_lease()?;
        self.pages.flush(&self.device, Rule::RepairFlushes)?;
        self.pages.forget(); // what the disk says counts, not what was written to it
        let (damaged, left) = self.stage_index(plan)?;
        self.write_in_order(&damaged)?;
        self.check_lease()?;
        let damaged = self.stage_table(plan)?;
        self.write_in_order(&damaged)?;
        self.mend_superblocks(plan)?;
        self.check_lease()?;
        let pages_left = self.mend_retention(plan)?;
        let end = self.tail.position();
        if left > 0 && self.head_replay != end {
            return Err(Error::Corrupt(format!("{left} receipts behind the head have no room in the index")));
        }
        if pages_left > 0 && self.head_replay != end {
            return Err(Error::Corrupt(format!(
                "{pages_left} pages of policy and holds are damaged, and what they showed is not in the log any more"
            )));
        }
        if plan.is_lease_damaged {
            // crash here: the lease is open, as it was; the other slot holds it.
            self.pages.write(&self.device, PAGE_LEASE, PageKind::Lease, self.lease.encode())?;
        }
        if plan.is_head_damaged || self.head_replay != end {
            // Index and table show everything and are flushed: nothing need be replayed.
            // crash here: the older head replays what is applied already.
            self.write_head(&end)?;
        }
        // crash here: as above.
        self.pages.flush(&self.device, Rule::RepairFlushes)
    }

    /// Stages every index page that changes, and every damaged one that the log can replace. Returns also the number of entries that have
    /// no place.
    fn stage_index(&mut self, plan: &Plan) -> Result<(Damaged, usize)> {
        let mut damaged = Damaged::default();
        let mut left = 0;
        // A record that is gone and nameless may have been named by any damaged page: then "corrupt" is the right answer.
        let is_certain = plan.unknown_seq == 0 || !Rule::RepairIsCertain.holds();
        if is_certain {
            for page_no in &plan.damaged_pages {
                let is_lost = self.rebuild_from(*page_no, PageKind::Index)?;
                damaged.any.insert(*page_no);
                damaged.lost.extend(is_lost.then_some(*page_no));
            }
        }
        for (page_no, entry) in &plan.stale {
            if is_certain || !plan.damaged_pages.contains(page_no) {
                self.pages()
                    .change_index_page(*page_no, |page| page.entries.retain(|other| other != entry))?;
            }
        }
        for (hash, entry) in &plan.missing {
            if entry.seq < plan.unknown_seq && Rule::RepairIsCertain.holds() {
                left += 1; // what is gone may have removed it
                continue;
            }
            match self.mend_entry(plan, *hash, *entry) {
                Ok(()) => {}
                // The page is full, or damaged and stays so: the receipt stays a finding.
                Err(Error::Corrupt(_) | Error::IndexFull { .. }) => left += 1,
                Err(error) => return Err(error),
            }
        }
        Ok((damaged, left))
    }

    /// Puts what can be read of a damaged page into the cache and stages it. Returns whether that was nothing.
    fn rebuild_from(&mut self, page_no: u64, kind: PageKind) -> Result<bool> {
        let id = PageId { store_id: Some(self.superblock.store_id()), page_no, kind };
        let (mut page, _) = read_page(&self.device, id)?;
        let is_lost = page.version == 0;
        if kind == PageKind::Index {
            // What the damaged slot said of pages behind this one is not known.
            let index = IndexPage::decode(&page, page_no, &self.superblock.geometry);
            let entries = index.map(|index| index.entries).unwrap_or_default();
            IndexPage { is_spilled: Rule::RepairLooksBehind.holds(), entries }.encode(&mut page);
        }
        self.pages.remember(page_no, page);
        self.pages.stage(&self.device, page_no, kind)?;
        Ok(is_lost)
    }

    /// Stages the entry of a record in the place of an older one of its path, or where there is room.
    fn mend_entry(&mut self, plan: &Plan, hash: PathHash, entry: Entry) -> Result<()> {
        let found = self.pages().search(hash)?;
        let header = read_header(&self.device, &self.superblock, entry.block)?.ok();
        let path = header.map(|(header, _)| header.meta).or_else(|| plan.names.get(&entry.seq).cloned());
        for (page_no, old) in found.entries {
            let is_older = old.seq < entry.seq && {
                let header = read_header(&self.device, &self.superblock, old.block)?.ok();
                header.is_some_and(|(header, _)| header.seq == old.seq && Some(header.meta) == path)
            };
            if old.seq == entry.seq || is_older {
                return self.pages().change_index_page(page_no, |page| {
                    for slot in page.entries.iter_mut().filter(|slot| **slot == old) {
                        *slot = entry;
                    }
                });
            }
        }
        self.pages().insert(hash, entry)
    }

    /// Writes what is staged: whole pages, flush, damaged pages, flush; then once more those of which no slot was whole.
    fn write_in_order(&mut self, damaged: &Damaged) -> Result<()> {
        let (whole, rest): (Vec<_>, Vec<_>) = (self.pages.take_staged().into_iter())
            .partition(|(page_no, _, _)| !damaged.any.contains(page_no) && Rule::RepairOrders.holds());
        let again: Vec<_> =
            rest.iter().filter(|(page_no, _, _)| damaged.lost.contains(page_no)).cloned().collect();
        self.pages.flush(&self.device, Rule::RepairFlushes)?;
        for group in [whole, rest, again] {
            for (page_no, kind, page) in group {
                // crash here: any subset of the group is written. Of a whole page both versions are valid, and the newer one only knows
                // more; a damaged page is still damaged, or replaced by one that knows everything. Repairing again finishes it.
                self.pages.write(&self.device, page_no, kind, page)?;
            }
            // crash here: as above.
            self.pages.flush(&self.device, Rule::RepairFlushes)?;
        }
        Ok(())
    }

    /// Stages the pages of the segment table that do not say what the log says.
    fn stage_table(&mut self, plan: &Plan) -> Result<Damaged> {
        let mut damaged = Damaged::default();
        let live = self.count_live()?;
        let applied_seq = self.tail.cursor.seq;
        for page_no in &plan.table_pages {
            let is_lost = self.rebuild_from(*page_no, PageKind::Table)?;
            damaged.any.insert(*page_no);
            damaged.lost.extend(is_lost.then_some(*page_no));
            let first = (page_no - PAGE_TABLE) * TABLE_ENTRIES_PER_PAGE;
            let geometry = self.superblock.geometry.clone();
            let page = self.pages.stage(&self.device, *page_no, PageKind::Table)?;
            for segment in first..geometry.segment_count.min(first + TABLE_ENTRIES_PER_PAGE) {
                let (_, position) = geometry.table_slot(segment);
                let entry = table::entry(page, position).unwrap_or_default();
                let right = plan.segments.get(&segment).map_or(entry, |right| TableEntry {
                    live: live.get(&segment).copied().unwrap_or_default(),
                    ..*right
                });
                table::set_entry(page, position, &right);
            }
            table::set_applied_seq(page, applied_seq);
        }
        Ok(damaged)
    }

    /// Index entries a segment, as mended.
    fn count_live(&mut self) -> Result<BTreeMap<u64, u32>> {
        let mut live = BTreeMap::new();
        let geometry = self.superblock.geometry.clone();
        for page_no in geometry.index_pages() {
            let id = PageId { store_id: Some(self.superblock.store_id()), page_no, kind: PageKind::Index };
            let (page, _) = read_page(&self.device, id)?;
            let entries = IndexPage::decode(&page, page_no, &geometry).map(|index| index.entries);
            for entry in entries.unwrap_or_default() {
                *live.entry(geometry.segment_of(entry.block)).or_default() += 1;
            }
        }
        Ok(live)
    }

    /// Writes the damaged superblock anew, word for word as the other one.
    fn mend_superblocks(&mut self, plan: &Plan) -> Result<()> {
        let page_nos = [PAGE_SUPERBLOCK, self.superblock.geometry.superblock_copy_page()];
        let store_id = Some(self.superblock.store_id());
        let mut right = None;
        for page_no in page_nos {
            let (page, _) =
                read_page(&self.device, PageId { store_id, page_no, kind: PageKind::Superblock })?;
            right = right.or((page.version > 0).then_some(page));
        }
        let Some(right) = right else {
            return Ok(());
        };
        for page_no in &plan.superblock_pages {
            // Both slots, so that nothing damaged stays.
            for _ in 0..2 {
                // crash here: the other superblock is whole.
                self.pages.write(&self.device, *page_no, PageKind::Superblock, Page { ..right.clone() })?;
                self.pages.flush(&self.device, Rule::RepairFlushes)?;
            }
        }
        Ok(())
    }
}
