//! The full check, in both directions: every record of the log verifies and is in the index, every index entry names a record that
//! verifies, and everything that is kept twice or counted (superblocks, slots, segment table, Summaries) says what the log says.
//! Findings are data; nothing is written here. What could be mended is collected in a [`Plan`] for [`crate::Writer::repair`].
//!
//! Reads everything once, and two index pages and one header a receipt more. A store that is being written meanwhile is
//! checked up to what was published at the beginning.

mod index;
mod lists;
mod plan;
mod records;
pub(crate) mod retention;
mod spare;
mod table;

pub use plan::Plan;

use crate::control::Control;
use crate::device::Device;
use crate::error::Result;
use crate::index::Entry;
use crate::log::{Cursor, read_blocks, read_header};
use crate::path::PathHash;
use crate::reader::Reader;
use crate::record::{Header, Kind};
use crate::superblock::Superblock;
use crate::table::{SegmentState, TableEntry, read_entry};
use crate::verify_life::{Gap, Life};
use lists::Stretch;
use std::collections::HashMap;
use table::LogSegment;

/// Something that does not verify.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Finding {
    /// The receipt, where it is known.
    pub path: Option<String>,
    /// Block or page that it was seen at.
    pub place: String,
    /// What does not verify.
    pub fact: String,
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Records, Summaries and Seals among them.
    pub records: u64,
    /// Bytes of data that match their hash.
    pub data_bytes: u64,
    /// Index entries.
    pub entries: u64,
    /// Findings.
    pub findings: u64,
    /// Segments whose count of live receipts differs from the index. The count is a hint, so this is no finding.
    pub wrong_hints: u64,
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Records of the log: this sequence of that last one.
    Log(u64, u64),
    /// Index pages: so many of all.
    Index(u64, u64),
}

struct Check<'a> {
    device: &'a dyn Device,
    superblock: &'a Superblock,
    control: Control,
    end_seq: u64,
    totals: Totals,
    /// What the index did not know when the walk came by; a later record of its path may have removed it.
    missing: HashMap<PathHash, Entry>,
    /// What has gone, and what says so.
    life: Life,
    /// Findings in the segment that is being walked: it may be retired meanwhile.
    pending: Vec<Finding>,
    plan: Plan,
    /// The segment table as it was read.
    table: Vec<TableEntry>,
    progress: &'a mut dyn FnMut(Step),
    report: &'a mut dyn FnMut(Finding) -> Result<()>,
}

/// Where a walk through the log stands.
#[derive(Clone)]
struct Walk {
    block: u64,
    seq: u64,
    prev_hash: Option<[u8; 32]>,
    /// The last record that verified.
    last: Option<Header>,
    /// What the next Summary of the segment has to list.
    stretch: Stretch,
}

/// Checks everything and calls `report` for each finding.
///
/// # Errors
/// A device error, damage that hides the whole store (superblock, head), or what `report` returns.
pub fn verify<D: Device>(
    reader: &Reader<D>,
    mut report: impl FnMut(Finding) -> Result<()>,
) -> Result<Totals> {
    Ok(check(reader, None, &mut |_| {}, &mut report)?.0)
}

/// As [`verify`], with `progress` on the way and what could be mended. `end_seq` is the last sequence to check; `None` = what the head
/// has published.
///
/// # Errors
/// As [`verify`].
pub fn check<D: Device>(
    reader: &Reader<D>,
    end_seq: Option<u64>,
    progress: &mut dyn FnMut(Step),
    report: &mut dyn FnMut(Finding) -> Result<()>,
) -> Result<(Totals, Plan)> {
    check_device(reader.device(), &*reader.superblock_now()?, end_seq, progress, report)
}

fn check_device(
    device: &dyn Device,
    superblock: &Superblock,
    end_seq: Option<u64>,
    progress: &mut dyn FnMut(Step),
    report: &mut dyn FnMut(Finding) -> Result<()>,
) -> Result<(Totals, Plan)> {
    let control = Control::read(device, superblock)?;
    let mut check = Check {
        device,
        superblock,
        end_seq: end_seq.unwrap_or(control.head.published_seq),
        control,
        totals: Totals::default(),
        missing: HashMap::new(),
        life: Life::default(),
        pending: Vec::new(),
        plan: Plan::default(),
        table: Vec::new(),
        progress,
        report,
    };
    check.check_superblocks()?;
    check.check_control()?;
    check.check_log()?;
    check.check_retention()?;
    check.check_index()?;
    check.report_pending()?;
    check.check_live();
    Ok((check.totals, check.plan))
}

impl Check<'_> {
    fn found(&mut self, path: Option<&[u8]>, place: &str, fact: &str) -> Result<()> {
        let path = path.map(|path| String::from_utf8_lossy(path).into_owned());
        self.pending.push(Finding { path, place: place.to_owned(), fact: fact.to_owned() });
        Ok(())
    }

    fn report_pending(&mut self) -> Result<()> {
        for finding in std::mem::take(&mut self.pending) {
            self.totals.findings += 1;
            (self.report)(finding)?;
        }
        Ok(())
    }

    fn check_log(&mut self) -> Result<()> {
        let segments = self.segments()?;
        if self.superblock.has_life && segments.iter().any(|segment| !segment.is_in_table) {
            self.collect_retirements()?;
        }
        let open = self.superblock.geometry.segment_of(self.control.head.replay.block);
        let open_first_seq =
            segments.iter().find(|segment| segment.number == open).map_or(0, |s| s.first_seq);
        let genesis = self.superblock.genesis_hash();
        let mut walk =
            Walk { block: 0, seq: 0, prev_hash: Some(genesis), last: None, stretch: Stretch::default() };
        for segment in segments {
            if segment.first_seq > self.end_seq.max(1) {
                continue; // opened since
            }
            if !segment.is_in_table && !self.is_next(&segment, &walk, open_first_seq)? {
                continue; // what was written there before it was freed
            }
            self.report_pending()?;
            if self.is_gone(&segment)? {
                continue; // retired since the table was read: a gap like others
            }
            let before = walk.clone();
            if segment.first_seq > walk.seq + 1 {
                self.note_gap(&segment, &mut walk)?;
            } else if segment.first_seq != walk.seq + 1 {
                let fact = format!("begins with sequence {}, expected {}", segment.first_seq, walk.seq + 1);
                self.found(None, &format!("segment {}", segment.number), &fact)?;
                self.plan.unknown_seq = segment.first_seq.saturating_sub(1);
                walk.seq = segment.first_seq.saturating_sub(1);
                walk.prev_hash = None;
            }
            walk.block = self.superblock.geometry.first_block(segment.number);
            walk.stretch = Stretch::default();
            self.check_segment(&segment, &mut walk)?;
            if !self.pending.is_empty() && self.is_gone(&segment)? {
                self.pending.clear();
                self.life.gaps.retain(|gap| gap.segment != segment.number);
                self.plan.segments.remove(&segment.number);
                walk = before;
            }
        }
        if walk.seq < self.end_seq {
            let fact = format!("ends at sequence {}, published is {}", walk.seq, self.end_seq);
            self.found(None, "log", &fact)?;
            self.plan.unknown_seq = self.end_seq;
        }
        match &walk.last {
            Some(last) if last.kind == Kind::Seal && last.seq == self.end_seq => {
                self.check_empty_segment(last)?
            }
            _ => {}
        }
        self.report_missing(&walk)
    }

    /// Whether a segment that the table knew was retired since.
    fn is_gone(&self, segment: &LogSegment) -> Result<bool> {
        if !segment.is_in_table || !self.superblock.has_life {
            return Ok(false);
        }
        let now = read_entry(self.device, self.superblock, segment.number)?;
        Ok(now.generation != segment.entry.generation || now.state == SegmentState::Free)
    }

    fn note_gap(&mut self, segment: &LogSegment, walk: &mut Walk) -> Result<()> {
        let first_block = self.superblock.geometry.first_block(segment.number);
        let next = read_header(self.device, self.superblock, first_block)?.ok();
        self.life.gaps.push(Gap {
            first_seq: walk.seq + 1,
            last_seq: segment.first_seq - 1,
            prev_hash: walk.prev_hash,
            last_hash: next.map(|(header, _)| header.prev_hash),
            segment: segment.number,
        });
        walk.seq = segment.first_seq - 1;
        walk.prev_hash = None;
        self.plan.retired_seq = self.plan.retired_seq.max(walk.seq);
        Ok(())
    }

    /// What has gone without a record that says so.
    fn report_unproven(&mut self) -> Result<()> {
        for gap in std::mem::take(&mut self.life.gaps) {
            if !self.life.bridges(&gap) {
                self.plan.unknown_seq = self.plan.unknown_seq.max(gap.last_seq);
                let fact = format!("begins with sequence {}, expected {}", gap.last_seq + 1, gap.first_seq);
                self.found(None, &format!("segment {}", gap.segment), &fact)?;
            }
        }
        let mut zeroed: Vec<_> = std::mem::take(&mut self.life.zeroed).into_iter().collect();
        zeroed.sort_by_key(|(seq, _)| *seq);
        for (_, (path, place)) in zeroed {
            self.found(Some(&path), &place, "its data is zero, and no Erase record says why")?;
        }
        Ok(())
    }

    /// Follows the log behind what was checked as long as something is not explained.
    fn follow_on(&mut self, walk: &Walk) -> Result<()> {
        let geometry = &self.superblock.geometry;
        if let (Some(last), Some(hash)) = (&walk.last, walk.prev_hash) {
            let mut cursor = Cursor::behind(last, hash, geometry);
            while (!self.missing.is_empty() || self.life.is_open()) && geometry.holds_record(cursor.block, 1)
            {
                match read_header(self.device, self.superblock, cursor.block)? {
                    Ok((header, hash)) if cursor.accepts(&header, geometry) => {
                        if header.changes_index() {
                            self.missing.remove(&self.superblock.path_hash(&header.meta));
                        }
                        if header.kind.is_of_life() {
                            let buf = read_blocks(self.device, header.block, header.blocks)?;
                            let data = header.data(buf.as_slice()).unwrap_or_default();
                            self.life.prove(self.superblock, &header, data);
                        }
                        cursor.step(&header, hash, geometry);
                    }
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// What the index does not know and nothing has removed, also not since the check began.
    fn report_missing(&mut self, walk: &Walk) -> Result<()> {
        if !self.missing.is_empty() || self.life.is_open() {
            self.follow_on(walk)?;
        }
        self.report_unproven()?;
        let (life, geometry) = (&self.life, &self.superblock.geometry);
        let has_gone = |entry: &Entry| life.has_retired(geometry.segment_of(entry.block), entry.generation);
        self.missing.retain(|_, entry| !has_gone(entry));
        let mut missing: Vec<(PathHash, Entry)> = std::mem::take(&mut self.missing).into_iter().collect();
        missing.sort_by_key(|(_, entry)| entry.seq);
        for (_, Entry { block, seq, .. }) in &missing {
            let header = read_header(self.device, self.superblock, *block)?.ok();
            let path = header.map(|(header, _)| header.meta).or_else(|| self.plan.names.get(seq).cloned());
            self.found(path.as_deref(), &format!("block {block}"), "the index does not know it")?;
        }
        self.plan.missing = missing;
        Ok(())
    }
}
