//! The full check, in both directions: every record of the log verifies and is in the index, every index entry names a record that
//! verifies, and everything that is kept twice or counted (superblocks, slots, segment table, Summaries) says what the log says.
//! Findings are data; nothing is written here. What could be mended is collected in a [`Plan`] for [`crate::Writer::repair`].
//!
//! Reads everything once, and one index page and one header a receipt more. A store that is being written meanwhile is
//! checked up to what was published at the beginning.

mod index;
mod lists;
mod plan;
mod spare;
mod table;

pub use plan::Plan;

use crate::control::Control;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::index::Entry;
use crate::list::read_summary;
use crate::log::{Cursor, read_blocks, read_header, seal_link};
use crate::path::{PathHash, ReceiptPath};
use crate::reader::Reader;
use crate::record::{Header, Kind, RecordFault};
use crate::summary::Item;
use crate::superblock::Superblock;
use crate::table::TableEntry;
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

/// A record as a Summary knows it, for one whose header is gone; `None` = the Summary itself.
type Known = HashMap<u64, Option<Item>>;

struct Check<'a, D> {
    reader: &'a Reader<D>,
    superblock: &'a Superblock,
    control: Control,
    end_seq: u64,
    totals: Totals,
    /// What the index did not know when the walk came by; a later record of its path may have removed it.
    missing: HashMap<PathHash, Entry>,
    plan: Plan,
    /// The segment table as it was read.
    table: Vec<TableEntry>,
    progress: &'a mut dyn FnMut(Step),
    report: &'a mut dyn FnMut(Finding) -> Result<()>,
}

/// Where a walk through the log stands.
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
    let superblock = &*reader.superblock()?;
    let control = Control::read(reader.device(), superblock)?;
    let mut check = Check {
        reader,
        superblock,
        end_seq: end_seq.unwrap_or(control.head.published_seq),
        control,
        totals: Totals::default(),
        missing: HashMap::new(),
        plan: Plan::default(),
        table: Vec::new(),
        progress,
        report,
    };
    check.check_superblocks()?;
    check.check_control()?;
    check.check_log()?;
    check.check_index()?;
    check.check_live();
    Ok((check.totals, check.plan))
}

impl<D: Device> Check<'_, D> {
    fn found(&mut self, path: Option<&[u8]>, place: &str, fact: &str) -> Result<()> {
        self.totals.findings += 1;
        let path = path.map(|path| String::from_utf8_lossy(path).into_owned());
        (self.report)(Finding { path, place: place.to_owned(), fact: fact.to_owned() })
    }

    fn check_log(&mut self) -> Result<()> {
        let segments = self.segments()?;
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
            if segment.first_seq != walk.seq + 1 {
                let fact = format!("begins with sequence {}, expected {}", segment.first_seq, walk.seq + 1);
                self.found(None, &format!("segment {}", segment.number), &fact)?;
                self.plan.unknown_seq = segment.first_seq.saturating_sub(1);
                walk.seq = segment.first_seq.saturating_sub(1);
                walk.prev_hash = None;
            }
            walk.block = self.superblock.geometry.first_block(segment.number);
            walk.stretch = Stretch::default();
            self.check_segment(&segment, &mut walk)?;
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

    /// What the index does not know and nothing has removed, also not since the check began.
    fn report_missing(&mut self, walk: &Walk) -> Result<()> {
        let geometry = &self.superblock.geometry;
        if let (false, Some(last), Some(hash)) = (self.missing.is_empty(), &walk.last, walk.prev_hash) {
            let mut cursor = Cursor::behind(last, hash, geometry);
            while !self.missing.is_empty() && geometry.holds_record(cursor.block, 1) {
                match read_header(self.reader.device(), self.superblock, cursor.block)? {
                    Ok((header, hash)) if cursor.accepts(&header, geometry) => {
                        if header.kind.has_path() {
                            self.missing.remove(&self.superblock.path_hash(&header.meta));
                        }
                        cursor.step(&header, hash, geometry);
                    }
                    _ => break,
                }
            }
        }
        let mut missing: Vec<(PathHash, Entry)> = std::mem::take(&mut self.missing).into_iter().collect();
        missing.sort_by_key(|(_, entry)| entry.seq);
        for (_, Entry { block, seq, .. }) in &missing {
            let header = read_header(self.reader.device(), self.superblock, *block)?.ok();
            let path = header.map(|(header, _)| header.meta).or_else(|| self.plan.names.get(seq).cloned());
            self.found(path.as_deref(), &format!("block {block}"), "the index does not know it")?;
        }
        self.plan.missing = missing;
        Ok(())
    }

    /// Walks the records of a segment in order; after a damaged header goes on where a Summary, or the next header with a right
    /// checksum, says. Notes what the segment table should say.
    fn check_segment(&mut self, segment: &LogSegment, walk: &mut Walk) -> Result<()> {
        let geometry = &self.superblock.geometry;
        let end = geometry.end_block(segment.number);
        let known = self.known_records(segment)?;
        let mut newest_issue_day = 0;
        while walk.block < end && walk.seq < self.end_seq {
            let block = walk.block;
            let fault = match read_header(self.reader.device(), self.superblock, block)? {
                Ok((header, hash))
                    if header.generation == segment.generation
                        && header.seq > walk.seq
                        && geometry.holds_record(block, header.blocks) =>
                {
                    self.check_record(&header, walk)?;
                    newest_issue_day = newest_issue_day.max(header.issued_day);
                    walk.seq = header.seq;
                    walk.prev_hash = Some(hash);
                    walk.block = block + u64::from(header.blocks);
                    (self.progress)(Step::Log(walk.seq, self.end_seq));
                    let is_end = header.kind == Kind::Seal && seal_link(&header, geometry).is_some();
                    walk.last = Some(header);
                    if is_end {
                        return self.check_table_entry(segment, Some(block), newest_issue_day);
                    }
                    continue;
                }
                Ok(_) => RecordFault::BadField("seq or generation"),
                Err(fault) => fault,
            };
            self.check_damaged(segment, &known, fault, walk)?;
        }
        self.check_table_entry(segment, None, newest_issue_day)
    }

    /// A place where a record should begin and none verifies.
    fn check_damaged(
        &mut self,
        segment: &LogSegment,
        known: &Known,
        fault: RecordFault,
        walk: &mut Walk,
    ) -> Result<()> {
        let block = walk.block;
        let place = format!("block {block}");
        let end = self.superblock.geometry.end_block(segment.number);
        match known.get(&block) {
            Some(Some(item)) => {
                self.found(Some(&item.path), &place, &fault.to_string())?;
                let hash = self.superblock.path_hash(&item.path);
                let entry = Entry {
                    tag: hash.tag,
                    block,
                    blocks: item.blocks,
                    generation: segment.generation,
                    seq: item.seq,
                };
                self.plan.names.insert(item.seq, item.path.clone());
                self.check_is_indexed(item.kind, &item.path, hash, entry, 0)?;
                walk.block = block + u64::from(item.blocks.max(1));
            }
            Some(None) => {
                self.found(None, &place, &format!("a list of records: {fault}"))?;
                walk.block = self.next_record(block + 1, end, segment.generation, walk.seq)?;
            }
            None => {
                let path = self.guess_path(block)?;
                if path.is_none() {
                    self.plan.unknown_seq = walk.seq + 1;
                }
                self.found(path.as_deref().map(str::as_bytes), &place, &fault.to_string())?;
                walk.block = self.next_record(block + 1, end, segment.generation, walk.seq)?;
            }
        }
        walk.seq += 1;
        walk.prev_hash = None;
        walk.stretch.damaged_seq = walk.seq;
        Ok(())
    }

    fn check_record(&mut self, header: &Header, walk: &mut Walk) -> Result<()> {
        let place = format!("block {}", header.block);
        let path = header.kind.has_path().then_some(header.meta.as_slice());
        self.totals.records += 1;
        if header.seq != walk.seq + 1 {
            self.plan.unknown_seq = header.seq - 1;
            walk.stretch.damaged_seq = header.seq - 1;
            self.found(path, &place, &format!("sequence {} follows {}", header.seq, walk.seq))?;
        }
        if walk.prev_hash.is_some_and(|hash| hash != header.prev_hash) {
            self.found(path, &place, "the chain is broken: hash of the record before")?;
        }
        let buf = read_blocks(self.reader.device(), header.block, header.blocks)?;
        match header.data(buf.as_slice()) {
            Ok(data) => {
                self.totals.data_bytes += data.len() as u64;
                self.check_list(header, data, &mut walk.stretch)?;
            }
            Err(fault) => {
                self.found(path, &place, &fault.to_string())?;
                walk.stretch.pass(header);
            }
        }
        if header.kind.has_path() {
            let hash = self.superblock.path_hash(&header.meta);
            let entry = Entry::of(header, hash);
            self.check_is_indexed(header.kind, &header.meta, hash, entry, header.previous_version_seq)?;
        }
        Ok(())
    }

    /// What the Summaries of a segment know, by block. A damaged Summary is found by the walk.
    fn known_records(&self, segment: &LogSegment) -> Result<Known> {
        let geometry = &self.superblock.geometry;
        let replay = &self.control.head.replay;
        let mut known = HashMap::new();
        let mut block = if segment.entry.seal_block != 0 {
            geometry.first_block(segment.number) + u64::from(segment.entry.seal_block)
        } else if geometry.segment_of(replay.block) == segment.number {
            replay.summary_block
        } else {
            0
        };
        while block != 0 {
            known.insert(block, None);
            let (header, descriptor, items) =
                match read_summary(self.reader.device(), self.superblock, block, b"") {
                    Ok(summary) => summary,
                    Err(Error::Corrupt(_)) => break,
                    Err(error) => return Err(error),
                };
            if header.generation != segment.generation {
                break;
            }
            for item in items {
                known.insert(item.block, Some(item));
            }
            if descriptor.previous_block >= block {
                break;
            }
            block = descriptor.previous_block;
        }
        Ok(known)
    }

    /// The path in a damaged header, if the index confirms it.
    fn guess_path(&self, block: u64) -> Result<Option<String>> {
        let buf = read_blocks(self.reader.device(), block, 1)?;
        let bytes = buf.as_slice();
        let start = crate::record::HEADER_BYTES;
        for len in 1..=crate::layout::PATH_BYTES_MAX {
            let Some(path) = bytes.get(start..start + len) else {
                break;
            };
            if path.last().is_some_and(|byte| *byte < 0x20) {
                break;
            }
            let is_candidate = ReceiptPath::from_bytes(path).is_ok();
            if is_candidate && self.is_entry_at(path, block) {
                return Ok(Some(String::from_utf8_lossy(path).into_owned()));
            }
        }
        Ok(None)
    }

    fn is_entry_at(&self, path: &[u8], block: u64) -> bool {
        let hash = self.superblock.path_hash(path);
        let found = self.search(hash);
        found.is_ok_and(|found| found.entries.iter().any(|(_, entry)| entry.block == block))
    }

    fn next_record(&self, from: u64, end: u64, generation: u32, seq: u64) -> Result<u64> {
        for block in from..end {
            if let Ok((header, _)) = read_header(self.reader.device(), self.superblock, block)?
                && header.generation == generation
                && header.seq > seq
            {
                return Ok(block);
            }
        }
        Ok(end)
    }
}
