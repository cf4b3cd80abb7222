//! Looking at a sealed segment: what of it is over, what stays, and why it cannot go. Needs no writer.

use crate::control::Control;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::BLOCK_BYTES;
use crate::list::used_segments;
use crate::log::{read_blocks, read_header};
use crate::policy::Retention;
use crate::reader::Reader;
use crate::record::{FLAG_MOVED, Header, Kind};
use crate::retire::{Range, Retired, decode_ranges, walk_segment};
use crate::rules::Rule;
use crate::superblock::Superblock;
use crate::table::{SegmentState, TableEntry};
use std::collections::HashSet;

/// What is in a sealed segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// Segment.
    pub segment: u64,
    /// Its life.
    pub generation: u32,
    /// Receipts whose term is over.
    pub expired: Vec<Header>,
    /// Receipts to be kept.
    pub staying: Vec<Header>,
    /// Blocks of records.
    pub blocks: u64,
    /// Why the segment cannot go now even if the receipts that stay were copied.
    pub pinned: Option<String>,
    pub(super) range: Option<Range>,
    pub(super) carried: Vec<Range>,
}

impl Inspected {
    /// Bytes that would be freed without the receipts that stay.
    #[must_use]
    pub fn freed_bytes(&self) -> u64 {
        (self.blocks - self.staying_blocks().min(self.blocks)) * BLOCK_BYTES
    }

    /// Blocks of the receipts that stay.
    #[must_use]
    pub fn staying_blocks(&self) -> u64 {
        self.staying.iter().map(|header| u64::from(header.blocks)).sum()
    }

    fn pin(&mut self, why: String) {
        self.pinned.get_or_insert(why);
    }
}

/// What a look goes by.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// Superblock.
    pub superblock: &'a Superblock,
    /// Terms and holds.
    pub retention: &'a Retention,
    /// Days since 1970.
    pub today: u32,
    /// Segments that count as retired already.
    pub gone: &'a HashSet<u64>,
}

impl<D: Device> Reader<D> {
    /// Looks at every record of a sealed segment: one read a record, and one or two a receipt. Between two it calls `rest`.
    ///
    /// # Errors
    /// A device error.
    pub fn inspect(
        &self,
        look: Look<'_>,
        (segment, entry): (u64, &TableEntry),
        rest: &dyn Fn(),
    ) -> Result<Inspected> {
        let mut found = Inspected {
            segment,
            generation: entry.generation,
            expired: Vec::new(),
            staying: Vec::new(),
            blocks: 0,
            pinned: None,
            range: None,
            carried: Vec::new(),
        };
        let mut is_sealed = false;
        let mut next_seq = entry.first_seq;
        walk_segment(self.device(), look.superblock, segment, entry.generation, |header, hash| {
            is_sealed = header.kind == Kind::Seal && header.seq == next_seq;
            if header.seq != next_seq {
                found.pin("its records have a gap".to_owned());
            }
            next_seq += 1;
            found.blocks += u64::from(header.blocks);
            let first = Range {
                first_seq: header.seq,
                last_seq: header.seq,
                prev_hash: header.prev_hash,
                last_hash: hash,
            };
            let range = found.range.get_or_insert(first);
            (range.last_seq, range.last_hash) = (header.seq, hash);
            rest();
            self.inspect_record(look, header, &mut found)
        })?;
        if !is_sealed {
            found.pin("a header is damaged: run `receipt verify`".to_owned());
        }
        Ok(found)
    }

    fn inspect_record(&self, look: Look<'_>, header: &Header, found: &mut Inspected) -> Result<()> {
        let older = self.still_there(look, header)?;
        let hides =
            older.as_ref().filter(|older| look.superblock.geometry.segment_of(older.block) != found.segment);
        if let Some(older) = hides
            && Rule::RetireHidesNothing.holds()
        {
            found.pin(format!("record {} hides record {}, which is still there", header.seq, older.seq));
        }
        match header.kind {
            Kind::Put => self.inspect_receipt(look, header, older, found),
            Kind::Retire => self.carry(look.superblock, header, found),
            _ => Ok(()),
        }
    }

    /// The record that this one replaces or removes, if it is still in the log.
    fn still_there(&self, look: Look<'_>, header: &Header) -> Result<Option<Header>> {
        let (block, seq) = (header.previous_version_block, header.previous_version_seq);
        if seq == 0 || !look.superblock.geometry.holds_record(block, 1) {
            return Ok(None);
        }
        if look.gone.contains(&look.superblock.geometry.segment_of(block)) {
            return Ok(None);
        }
        let older = read_header(self.device(), look.superblock, block)?.ok().map(|(older, _)| older);
        match older.filter(|older| older.seq == seq) {
            // What lies in a segment that is free is no part of the log any more.
            Some(older) if !self.is_retired(look.superblock, block, seq)? => Ok(Some(older)),
            _ => Ok(None),
        }
    }

    fn inspect_receipt(
        &self,
        look: Look<'_>,
        header: &Header,
        older: Option<Header>,
        found: &mut Inspected,
    ) -> Result<()> {
        let index = match self.search_buckets(look.superblock, look.superblock.path_hash(&header.meta)) {
            Ok(index) if !index.is_damaged => index,
            Ok(_) | Err(Error::Corrupt(_)) => {
                found.pin("an index page is damaged: run `receipt verify`".to_owned());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let is_expired = look.retention.is_expired(&header.meta, header.class, header.issued_day, look.today);
        if !Rule::RetireLooks.holds() {
            return Ok(());
        }
        if index.entries.iter().any(|(_, entry)| entry.seq == header.seq) {
            if is_expired && self.is_history_expired(look, header)? {
                found.expired.push(header.clone());
            } else {
                if older.is_some() && header.flags & FLAG_MOVED == 0 {
                    found.pin("a receipt that is kept has older versions".to_owned());
                }
                found.staying.push(header.clone());
            }
            return Ok(());
        }
        if look.retention.hold_on(&header.meta, look.today).is_some() && Rule::HoldKeeps.holds() {
            found.pin("a hold covers what was removed or replaced".to_owned());
        } else if !is_expired && self.is_older_version(look, header)? {
            found.pin("an older version is kept".to_owned());
        }
        Ok(())
    }

    /// Whether all versions before this one are past their terms, too.
    fn is_history_expired(&self, look: Look<'_>, header: &Header) -> Result<bool> {
        let mut header = header.clone();
        while header.flags & FLAG_MOVED == 0 {
            let Some(older) = self.still_there(look, &header)? else { break };
            if !look.retention.is_expired(&older.meta, older.class, older.issued_day, look.today) {
                return Ok(false);
            }
            header = older;
        }
        Ok(true)
    }

    /// Whether `get --version` finds this record.
    fn is_older_version(&self, look: Look<'_>, header: &Header) -> Result<bool> {
        let index = self.search_buckets(look.superblock, look.superblock.path_hash(&header.meta))?;
        for (_, entry) in index.entries.iter().filter(|(_, entry)| entry.seq > header.seq) {
            let Ok((mut newer, _)) = read_header(self.device(), look.superblock, entry.block)? else {
                return Ok(true);
            };
            if newer.meta != header.meta {
                continue; // another path with the same tag
            }
            while newer.seq > header.seq && newer.flags & FLAG_MOVED == 0 {
                match self.still_there(look, &newer)? {
                    Some(older) if older.seq == header.seq => return Ok(true),
                    Some(older) => newer = older,
                    None => break,
                }
            }
        }
        Ok(false)
    }

    /// What a Retire record bridges must be bridged by the one that retires its own segment.
    fn carry(&self, superblock: &Superblock, header: &Header, found: &mut Inspected) -> Result<()> {
        let own = Retired::of(header, &superblock.geometry).map(|retired| retired.range);
        let buf = read_blocks(self.device(), header.block, header.blocks)?;
        let others = header.data(buf.as_slice()).ok().and_then(decode_ranges);
        match (own, others) {
            (Some(own), Some(others)) if Rule::RetireCarries.holds() => {
                found.carried.push(own);
                found.carried.extend(others);
            }
            (Some(_), Some(_)) => {}
            _ => found.pin("a Retire record is damaged: run `receipt verify`".to_owned()),
        }
        Ok(())
    }

    /// Segments up to the replay position, the oldest first, and whether each may go: it is sealed, and no recovery needs it.
    pub(super) fn segments_to_inspect(
        &self,
        superblock: &Superblock,
    ) -> Result<Vec<(u64, TableEntry, bool)>> {
        let replay = Control::read(self.device(), superblock)?.head.replay;
        let open = superblock.geometry.segment_of(replay.block);
        let used = used_segments(self.device(), superblock)?;
        let mut segments: Vec<(u64, TableEntry, bool)> = used
            .into_iter()
            .filter(|(_, entry)| entry.first_seq <= replay.seq || !Rule::RetireBeforeReplay.holds())
            .map(|(segment, entry)| {
                let is_before = segment != open || !Rule::RetireBeforeReplay.holds();
                (segment, entry, is_before && entry.state == SegmentState::Sealed)
            })
            .collect();
        segments.sort_by_key(|(_, entry, _)| entry.first_seq);
        Ok(segments)
    }
}
