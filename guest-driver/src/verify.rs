//! The full check, in both directions: every record of the log verifies and is in the index, and every index entry names a
//! record that verifies. Findings are data; nothing is repaired.
//!
//! Reads everything once, and one index page and one header a receipt more. A store that is being written meanwhile is
//! checked up to what was published at the beginning.

use crate::control::Control;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::index::Entry;
use crate::list::{read_summary, used_segments};
use crate::log::{Cursor, read_blocks, read_header, seal_link};
use crate::path::{PathHash, ReceiptPath};
use crate::reader::Reader;
use crate::record::{Header, Kind, RecordFault};
use crate::superblock::Superblock;
use crate::table::TableEntry;
use std::collections::HashMap;

/// Something that does not verify.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// A record as a Summary knows it, for the name of one whose header is gone.
struct Known {
    path: String,
    blocks: u32,
}

/// A receipt that the index did not know when the walk came by; a later record of its path may have removed it.
struct Missing {
    seq: u64,
    block: u64,
}

struct Check<'a, D, F> {
    reader: &'a Reader<D>,
    superblock: &'a Superblock,
    end_seq: u64,
    totals: Totals,
    missing: HashMap<PathHash, Missing>,
    report: F,
}

/// Where a walk through a segment stands.
struct Walk {
    block: u64,
    seq: u64,
    prev_hash: Option<[u8; 32]>,
    /// The last record that verified.
    last: Option<Header>,
}

/// Checks everything and calls `report` for each finding.
///
/// # Errors
/// A device error, damage that hides the whole store (superblock, head), or what `report` returns.
pub fn verify<D: Device>(reader: &Reader<D>, report: impl FnMut(Finding) -> Result<()>) -> Result<Totals> {
    let superblock = &*reader.superblock()?;
    let control = Control::read(reader.device(), superblock)?;
    let mut check = Check {
        reader,
        superblock,
        end_seq: control.head.published_seq,
        totals: Totals::default(),
        missing: HashMap::new(),
        report,
    };
    if control.lease_page.is_damaged || control.head_page.is_damaged {
        check.found(None, "lease or head", "a slot is damaged")?;
    }
    check.check_log(&control)?;
    check.check_index()?;
    Ok(check.totals)
}

impl<D: Device, F: FnMut(Finding) -> Result<()>> Check<'_, D, F> {
    fn found(&mut self, path: Option<&[u8]>, place: &str, fact: &str) -> Result<()> {
        self.totals.findings += 1;
        let path = path.map(|path| String::from_utf8_lossy(path).into_owned());
        (self.report)(Finding { path, place: place.to_owned(), fact: fact.to_owned() })
    }

    fn check_log(&mut self, control: &Control) -> Result<()> {
        let mut segments = used_segments(self.reader.device(), self.superblock)?;
        segments.sort_by_key(|(_, entry)| entry.first_seq);
        let mut walk = Walk { block: 0, seq: 0, prev_hash: Some(self.superblock.genesis_hash()), last: None };
        for (segment, entry) in segments {
            if entry.first_seq > self.end_seq.max(1) {
                continue; // opened since
            }
            if entry.first_seq != walk.seq + 1 {
                let fact = format!("begins with sequence {}, expected {}", entry.first_seq, walk.seq + 1);
                self.found(None, &format!("segment {segment}"), &fact)?;
                walk.seq = entry.first_seq.saturating_sub(1);
                walk.prev_hash = None;
            }
            walk.block = self.superblock.geometry.first_block(segment);
            self.check_segment(segment, &entry, &mut walk, control)?;
        }
        if walk.seq < self.end_seq {
            let fact = format!("ends at sequence {}, published is {}", walk.seq, self.end_seq);
            self.found(None, "log", &fact)?;
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
        let mut missing: Vec<Missing> = std::mem::take(&mut self.missing).into_values().collect();
        missing.sort_by_key(|missing| missing.seq);
        for Missing { block, .. } in missing {
            let path = read_header(self.reader.device(), self.superblock, block)?
                .ok()
                .map(|(header, _)| header.meta);
            self.found(path.as_deref(), &format!("block {block}"), "the index does not know it")?;
        }
        Ok(())
    }

    /// Walks the records of a segment in order; after a damaged header goes on where a Summary, or the next header with a right
    /// checksum, says.
    fn check_segment(
        &mut self,
        segment: u64,
        entry: &TableEntry,
        walk: &mut Walk,
        control: &Control,
    ) -> Result<()> {
        let geometry = &self.superblock.geometry;
        let end = geometry.end_block(segment);
        let known = self.known_records(segment, entry, control)?;
        while walk.block < end && walk.seq < self.end_seq {
            let block = walk.block;
            let fault = match read_header(self.reader.device(), self.superblock, block)? {
                Ok((header, hash))
                    if header.generation == entry.generation
                        && header.seq > walk.seq
                        && geometry.holds_record(block, header.blocks) =>
                {
                    self.check_record(&header, walk)?;
                    walk.seq = header.seq;
                    walk.prev_hash = Some(hash);
                    walk.last = Some(header.clone());
                    walk.block = block + u64::from(header.blocks);
                    if header.kind == Kind::Seal && seal_link(&header, geometry).is_some() {
                        return Ok(());
                    }
                    continue;
                }
                Ok(_) => RecordFault::BadField("seq or generation"),
                Err(fault) => fault,
            };
            let place = format!("block {block}");
            match known.get(&block) {
                Some(record) => {
                    self.found(Some(record.path.as_bytes()), &place, &fault.to_string())?;
                    walk.block = block + u64::from(record.blocks.max(1));
                }
                None => {
                    let path = self.guess_path(block)?;
                    self.found(path.as_deref().map(str::as_bytes), &place, &fault.to_string())?;
                    walk.block = self.next_record(block + 1, end, entry.generation, walk.seq)?;
                }
            }
            walk.seq += 1;
            walk.prev_hash = None;
        }
        Ok(())
    }

    fn check_record(&mut self, header: &Header, walk: &Walk) -> Result<()> {
        let place = format!("block {}", header.block);
        let path = header.kind.has_path().then_some(header.meta.as_slice());
        self.totals.records += 1;
        if header.seq != walk.seq + 1 {
            self.found(path, &place, &format!("sequence {} follows {}", header.seq, walk.seq))?;
        }
        if walk.prev_hash.is_some_and(|hash| hash != header.prev_hash) {
            self.found(path, &place, "the chain is broken: hash of the record before")?;
        }
        let buf = read_blocks(self.reader.device(), header.block, header.blocks)?;
        match header.data(buf.as_slice()) {
            Ok(data) => self.totals.data_bytes += data.len() as u64,
            Err(fault) => return self.found(path, &place, &fault.to_string()),
        }
        if header.kind.has_path() {
            self.check_is_indexed(header)?;
        }
        Ok(())
    }

    /// A receipt is in the index unless a newer version of its path is, or it was removed; a removed one is not.
    fn check_is_indexed(&mut self, header: &Header) -> Result<()> {
        let hash = self.superblock.path_hash(&header.meta);
        let place = format!("block {}", header.block);
        match self.reader.search_buckets(self.superblock, hash) {
            Ok(found) => {
                self.missing.remove(&hash);
                let is_removed = |entry: &Entry| entry.seq == header.previous_version_seq;
                if found.is_damaged {
                    return self.found(Some(&header.meta), &place, "its index page has a damaged slot");
                }
                if header.kind == Kind::Tombstone && found.entries.iter().any(|(_, e)| is_removed(e)) {
                    return self.found(Some(&header.meta), &place, "removed, but still in the index");
                }
                let is_known = found.entries.iter().any(|(_, entry)| entry.seq >= header.seq);
                if header.kind == Kind::Put && !is_known {
                    self.missing.insert(hash, Missing { seq: header.seq, block: header.block });
                }
                Ok(())
            }
            Err(Error::Corrupt(fact)) => self.found(Some(&header.meta), &place, &fact),
            Err(error) => Err(error),
        }
    }

    /// What the Summaries of a segment know, by block. A damaged Summary is found by the walk.
    fn known_records(
        &self,
        segment: u64,
        entry: &TableEntry,
        control: &Control,
    ) -> Result<HashMap<u64, Known>> {
        let geometry = &self.superblock.geometry;
        let mut known = HashMap::new();
        let mut block = if entry.seal_block != 0 {
            geometry.first_block(segment) + u64::from(entry.seal_block)
        } else if geometry.segment_of(control.head.replay.block) == segment {
            control.head.replay.summary_block
        } else {
            0
        };
        while block != 0 {
            let (_, descriptor, items) = match read_summary(self.reader.device(), self.superblock, block, b"")
            {
                Ok(summary) => summary,
                Err(Error::Corrupt(_)) => break,
                Err(error) => return Err(error),
            };
            for item in items {
                let path = String::from_utf8_lossy(&item.path).into_owned();
                known.insert(item.block, Known { path, blocks: item.blocks });
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
        let found = self.reader.search_buckets(self.superblock, hash);
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

    fn check_index(&mut self) -> Result<()> {
        for page_no in self.superblock.geometry.index_pages() {
            let place = format!("index page {page_no}");
            match self.reader.index_page(self.superblock, page_no) {
                Ok((page, is_damaged)) => {
                    if is_damaged {
                        self.found(None, &place, "a slot is damaged")?;
                    }
                    for entry in &page.entries {
                        self.check_entry(page_no, entry)?;
                    }
                }
                Err(Error::Corrupt(fact)) => self.found(None, &place, &fact)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// An entry names a record with its sequence and its path's hash. Damage of the record itself was found on the way
    /// through the log.
    fn check_entry(&mut self, page_no: u64, entry: &Entry) -> Result<()> {
        if entry.seq > self.end_seq {
            return Ok(()); // written since
        }
        self.totals.entries += 1;
        let Ok((header, _)) = read_header(self.reader.device(), self.superblock, entry.block)? else {
            return Ok(());
        };
        let is_named = header.kind == Kind::Put
            && (header.seq, header.generation, header.blocks) == (entry.seq, entry.generation, entry.blocks);
        let place = format!("index page {page_no}");
        let hash = self.superblock.path_hash(&header.meta);
        if !is_named || hash.tag != entry.tag {
            let fact =
                format!("the entry for sequence {} at block {} names another record", entry.seq, entry.block);
            return self.found(Some(&header.meta), &place, &fact);
        }
        // A newer entry of the path, or a way that does not lead here: left behind, and in the way of later ones.
        let first = match self.reader.search_buckets(self.superblock, hash) {
            Ok(found) => found.entries.into_iter().find(|(_, other)| self.is_of(other, &header.meta)),
            Err(Error::Corrupt(_)) => return Ok(()), // found as a damaged page
            Err(error) => return Err(error),
        };
        if first.is_some_and(|(page, found)| found.seq <= self.end_seq && (page, found) != (page_no, *entry))
            || first.is_none()
        {
            let fact = format!("the entry for sequence {} is not the one that its path leads to", entry.seq);
            self.found(Some(&header.meta), &place, &fact)?;
        }
        Ok(())
    }
    /// Whether an entry names a record of this path.
    fn is_of(&self, entry: &Entry, path: &[u8]) -> bool {
        let header = read_header(self.reader.device(), self.superblock, entry.block);
        header.is_ok_and(|parsed| parsed.is_ok_and(|(header, _)| header.meta == path))
    }
}
