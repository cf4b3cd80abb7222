//! The segment table and the log say the same.

use super::{Check, Walk};
use crate::error::{Error, Result};
use crate::layout::{PAGE_TABLE, TABLE_ENTRIES_PER_PAGE};
use crate::log::{read_blocks, read_header, seal_link};
use crate::page::{PageId, PageKind, read_page};
use crate::record::{Header, Kind};
use crate::retire::walk_segment;
use crate::rules::Rule;
use crate::table::{self, SegmentState, TableEntry};
use crate::verify_life::Gap;

/// A segment that holds a part of the log, or may.
pub(super) struct LogSegment {
    pub(super) number: u64,
    pub(super) generation: u32,
    pub(super) first_seq: u64,
    /// What the segment table says.
    pub(super) entry: TableEntry,
    /// The table says that it is in use.
    pub(super) is_in_table: bool,
}

impl Check<'_> {
    /// The segments that the table knows, and those that it calls free although they hold records of a later life than it knows; in
    /// the order of their sequences. One read a page of the table and one a segment.
    pub(super) fn segments(&mut self) -> Result<Vec<LogSegment>> {
        let geometry = self.superblock.geometry.clone();
        let mut segments = Vec::new();
        self.table = self.read_table()?;
        for (number, entry) in (0..).zip(self.table.iter().copied()) {
            if !geometry.is_data_segment(number) {
                continue;
            }
            let first = read_header(self.device, self.superblock, geometry.first_block(number))?.ok();
            let first = first.map(|(header, _)| (header.seq, header.generation));
            let is_in_table = entry.state != SegmentState::Free;
            match first {
                Some((first_seq, generation)) if is_in_table && generation == entry.generation => {
                    segments.push(LogSegment { number, generation, first_seq, entry, is_in_table });
                }
                _ if is_in_table => {
                    let (generation, first_seq) = (entry.generation, entry.first_seq);
                    segments.push(LogSegment { number, generation, first_seq, entry, is_in_table });
                }
                Some((first_seq, generation))
                    if generation > entry.generation && first_seq <= self.end_seq =>
                {
                    segments.push(LogSegment { number, generation, first_seq, entry, is_in_table });
                }
                _ => {}
            }
        }
        segments.sort_by_key(|segment| segment.first_seq);
        Ok(segments)
    }

    /// Every entry of the table; zeroes where a page cannot be read.
    fn read_table(&mut self) -> Result<Vec<TableEntry>> {
        let geometry = self.superblock.geometry.clone();
        let mut entries = Vec::new();
        for number in 0..geometry.segment_count.div_ceil(TABLE_ENTRIES_PER_PAGE) {
            let page_no = PAGE_TABLE + number;
            let id = PageId { store_id: Some(self.superblock.store_id()), page_no, kind: PageKind::Table };
            let (page, _) = read_page(self.device, id)?;
            self.plan.newest_seq = self.plan.newest_seq.max(table::applied_seq(&page));
            let place = format!("segment table page {page_no}");
            if page.is_damaged {
                self.plan.table_pages.insert(page_no);
                self.found(None, &place, "a slot is damaged")?;
            }
            let first = number * TABLE_ENTRIES_PER_PAGE;
            for segment in first..geometry.segment_count.min(first + TABLE_ENTRIES_PER_PAGE) {
                match table::entry(&page, geometry.table_slot(segment).1) {
                    Ok(entry) => entries.push(entry),
                    Err(Error::Corrupt(fact)) => {
                        entries.push(TableEntry::default());
                        self.plan.table_pages.insert(page_no);
                        self.found(None, &place, &fact)?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(entries)
    }

    /// Whether a segment that the table calls free goes on with the log where the walk stands. One that does not and is older than the
    /// open segment is not what a dead writer left behind the end: it stays as it is, and the writer does not take it.
    pub(super) fn is_next(&mut self, segment: &LogSegment, walk: &Walk, open_first_seq: u64) -> Result<bool> {
        let block = self.superblock.geometry.first_block(segment.number);
        let place = format!("segment {}", segment.number);
        let Ok((header, _)) = read_header(self.device, self.superblock, block)? else {
            return Ok(false);
        };
        if self.life.has_retired(segment.number, segment.generation) && Rule::RetireIsRead.holds() {
            // It is free, but not for the first time.
            let right = TableEntry { generation: segment.generation, ..TableEntry::default() };
            self.plan.segments.insert(segment.number, right);
            self.plan.table_pages.insert(self.superblock.geometry.table_slot(segment.number).0);
            return Ok(false);
        }
        let gap = Gap {
            first_seq: walk.seq + 1,
            last_seq: header.seq.saturating_sub(1),
            prev_hash: walk.prev_hash,
            last_hash: Some(header.prev_hash),
            segment: segment.number,
        };
        // Without a gap, or with one that Retire records bridge from hash to hash.
        if header.seq > walk.seq && walk.prev_hash.is_some() && self.life.bridges(&gap) {
            self.found(None, &place, "the segment table calls it free, but the log goes on in it")?;
            return Ok(true);
        }
        if header.seq < open_first_seq {
            let fact = format!("the segment table calls it free, but it holds sequence {}", header.seq);
            self.found(None, &place, &fact)?;
            self.plan.unknown_seq = self.plan.unknown_seq.max(walk.seq + 1);
        }
        Ok(false)
    }

    /// Where the table may have lost what was written, the Retire records are read first: what they name is never taken back. Reads all headers.
    pub(super) fn collect_retirements(&mut self) -> Result<()> {
        let (device, superblock) = (self.device, self.superblock);
        let geometry = &superblock.geometry;
        for segment in (0..geometry.segment_count).filter(|segment| geometry.is_data_segment(*segment)) {
            let first = read_header(device, superblock, geometry.first_block(segment))?.ok();
            let Some((first, _)) = first else { continue };
            let mut records = Vec::new();
            walk_segment(device, superblock, segment, first.generation, |header, _| {
                records.extend((header.kind == Kind::Retire).then(|| header.clone()));
                Ok(())
            })?;
            for header in records {
                let buf = read_blocks(device, header.block, header.blocks)?;
                self.life.prove(superblock, &header, header.data(buf.as_slice()).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// The segment that a Seal at the end of the log links to holds no record yet, but the table knows it.
    pub(super) fn check_empty_segment(&mut self, seal: &Header) -> Result<()> {
        let Some((number, generation)) = seal_link(seal, &self.superblock.geometry) else {
            return Ok(());
        };
        let entry = usize::try_from(number).ok().and_then(|number| self.table.get(number)).copied();
        let entry = entry.unwrap_or_default();
        if (entry.state, entry.generation) != (SegmentState::Open, generation) {
            let first_seq = seal.seq + 1;
            let right =
                TableEntry { generation, state: SegmentState::Open, first_seq, ..TableEntry::default() };
            self.plan.segments.insert(number, right);
            self.plan.table_pages.insert(self.superblock.geometry.table_slot(number).0);
            self.found(
                None,
                &format!("segment {number}"),
                "the log goes on here, the segment table does not say so",
            )?;
        }
        Ok(())
    }

    /// Compares a segment with its table entry. `seal` is the block of its Seal, if that was read.
    pub(super) fn check_table_entry(
        &mut self,
        segment: &LogSegment,
        seal: Option<u64>,
        newest_issue_day: u32,
    ) -> Result<()> {
        let geometry = &self.superblock.geometry;
        let LogSegment { number, generation, first_seq, entry, .. } = *segment;
        let seal_block = seal.and_then(|block| u32::try_from(block - geometry.first_block(number)).ok());
        // Without a Seal it is open, or has been sealed since, or its Seal is damaged: then the table knows.
        let is_known = segment.is_in_table && seal.is_none();
        let right = TableEntry {
            generation,
            state: match seal_block {
                Some(_) => SegmentState::Sealed,
                None if is_known => entry.state,
                None => SegmentState::Open,
            },
            live: entry.live,
            newest_issue_day: newest_issue_day.max(if segment.is_in_table {
                entry.newest_issue_day
            } else {
                0
            }),
            first_seq,
            seal_block: seal_block.unwrap_or(if is_known { entry.seal_block } else { 0 }),
        };
        self.plan.segments.insert(number, right);
        if right != entry {
            let (page_no, _) = geometry.table_slot(number);
            self.plan.table_pages.insert(page_no);
            if segment.is_in_table {
                let fact = format!("the segment table says {entry:?}, the log {right:?}");
                self.found(None, &format!("segment {number}"), &fact)?;
            }
        }
        Ok(())
    }

    /// Counts the segments whose number of live receipts is wrong.
    pub(super) fn check_live(&mut self) {
        let geometry = &self.superblock.geometry;
        for (number, right) in &mut self.plan.segments {
            let live = self.plan.live.get(number).copied().unwrap_or_default();
            if right.live != live {
                self.totals.wrong_hints += 1;
                self.plan.table_pages.insert(geometry.table_slot(*number).0);
            }
        }
    }
}
