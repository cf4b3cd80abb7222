//! The walk through one segment: every record as the one before, its header, its data and what was erased say it must be; after damage from the
//! next place that a Summary or a header tells.

use super::table::LogSegment;
use super::{Check, Step, Walk};
use crate::error::{Error, Result};
use crate::index::Entry;
use crate::list::read_summary;
use crate::log::{read_blocks, read_header, seal_link};
use crate::path::ReceiptPath;
use crate::record::{Header, Kind, RecordFault};
use crate::retire::is_all_zero;
use crate::summary::Item;
use crate::table::is_retired;
use std::collections::HashMap;

/// A record as a Summary knows it, for one whose header is gone; `None` = the Summary itself.
type Known = HashMap<u64, Option<Item>>;

impl Check<'_> {
    /// Walks the records of a segment in order; after a damaged header goes on where a Summary, or the next header with a right
    /// checksum, says. Notes what the segment table should say.
    pub(super) fn check_segment(&mut self, segment: &LogSegment, walk: &mut Walk) -> Result<()> {
        let geometry = &self.superblock.geometry;
        let end = geometry.end_block(segment.number);
        let known = self.known_records(segment)?;
        let mut newest_issue_day = 0;
        while walk.block < end && walk.seq < self.end_seq {
            let block = walk.block;
            let fault = match read_header(self.device, self.superblock, block)? {
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
        self.note_statement(header);
        if header.seq != walk.seq + 1 {
            self.plan.unknown_seq = header.seq - 1;
            walk.stretch.damaged_seq = header.seq - 1;
            self.found(path, &place, &format!("sequence {} follows {}", header.seq, walk.seq))?;
        }
        if walk.prev_hash.is_some_and(|hash| hash != header.prev_hash) {
            self.found(path, &place, "the chain is broken: hash of the record before")?;
        }
        let buf = read_blocks(self.device, header.block, header.blocks)?;
        match header.data(buf.as_slice()) {
            Ok(data) => {
                self.totals.data_bytes += data.len() as u64;
                // Data that was zero before it was erased still has its hash, but no checksum.
                let is_right = header.is_padded(buf.as_slice())
                    || is_all_zero(header, buf.as_slice()) && self.life.note_zeroed(header, &place);
                if !is_right {
                    self.found(path, &place, "what is behind the data is wrong")?;
                }
                if !self.life.prove(self.superblock, header, data) {
                    self.found(None, &place, "a Retire record that makes no sense")?;
                }
                self.check_list(header, data, &mut walk.stretch)?;
            }
            Err(fault) => {
                if !is_all_zero(header, buf.as_slice()) || !self.life.note_zeroed(header, &place) {
                    self.found(path, &place, &fault.to_string())?;
                }
                walk.stretch.pass(header);
            }
        }
        if header.kind == Kind::Erase {
            self.check_is_erased(header)?;
        }
        if header.changes_index() {
            let hash = self.superblock.path_hash(&header.meta);
            let entry = Entry::of(header, hash);
            self.check_is_indexed(header.kind, &header.meta, hash, entry, header.previous_version_seq)?;
        }
        Ok(())
    }

    /// What an Erase record names is zero, or its segment has gone.
    fn check_is_erased(&mut self, erase: &Header) -> Result<()> {
        let block = erase.previous_version_block;
        if !self.superblock.geometry.holds_record(block, 1) {
            return self.found(Some(&erase.meta), &format!("block {}", erase.block), "erases nothing");
        }
        if let Ok((target, _)) = read_header(self.device, self.superblock, block)?
            && target.seq == erase.previous_version_seq
            && !is_retired(self.device, self.superblock, block, target.seq)?
            && !is_all_zero(&target, read_blocks(self.device, block, target.blocks)?.as_slice())
        {
            let fact = format!("erased by sequence {}, but its data is still there", erase.seq);
            return self.found(Some(&erase.meta), &format!("block {block}"), &fact);
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
            let (header, descriptor, items) = match read_summary(self.device, self.superblock, block, b"") {
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
        let buf = read_blocks(self.device, block, 1)?;
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
            if is_candidate && self.is_entry_at(path, block)? {
                return Ok(Some(String::from_utf8_lossy(path).into_owned()));
            }
        }
        Ok(None)
    }

    fn is_entry_at(&self, path: &[u8], block: u64) -> Result<bool> {
        let found = self.search(self.superblock.path_hash(path))?;
        Ok(found.entries.iter().any(|(_, entry)| entry.block == block))
    }

    fn next_record(&self, from: u64, end: u64, generation: u32, seq: u64) -> Result<u64> {
        for block in from..end {
            if let Ok((header, _)) = read_header(self.device, self.superblock, block)?
                && header.generation == generation
                && header.seq > seq
            {
                return Ok(block);
            }
        }
        Ok(end)
    }
}
