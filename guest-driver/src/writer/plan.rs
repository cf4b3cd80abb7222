//! Planning: each change becomes a record of the batch, and what it changes in index and table is staged. Nothing is written here.
//!
//! Invariant: everything that can fail comes before the first change, so that one refused change leaves the others as they are.

use super::Writer;
use super::change::{Put, Stored};
use crate::batch::{Batch, Draft};
use crate::checksum::DataSums;
use crate::day::{self, day_of_ms};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::locator::Locator;
use crate::log::{data_bytes_max, list_blocks, read_blocks, read_header};
use crate::path::ReceiptPath;
use crate::policy::{Retention, Term};
use crate::record::{FLAG_MOVED, Header, Kind, record_blocks};
use crate::rules::Rule;
use crate::space::{Reserve, find_free, next_free};
use crate::summary::ITEM_BYTES;
use std::borrow::Cow;

impl<D: Device> Writer<D> {
    /// Plans one put: everything that can fail comes before the first change.
    pub(super) fn plan<'a>(
        &mut self,
        batch: &mut Batch<'a>,
        put: &Put<'a>,
        sums: DataSums,
    ) -> Result<Stored> {
        let previous = self.newest_version(batch, put.path)?;
        if let Some(header) = &previous {
            let is_same = header.data_hash == sums.hash && header.data_len == put.data.len() as u64;
            let is_kept_as_asked = put.class.is_none_or(|class| class == header.class)
                && put.issued_day.is_none_or(|day| day == header.issued_day);
            if is_same && is_kept_as_asked && self.is_readable(batch, header)? {
                return Ok(stored(put.path, header, false));
            }
            // The same data over a damaged receipt mends it, as its next version.
            if !is_same && !put.is_new_version {
                return Err(Error::Exists { path: put.path.to_string(), seq: header.seq });
            }
            // Its answer would be taken for a promise to keep the receipt longer, or not so long.
            if !is_kept_as_asked && !put.is_new_version {
                return Err(Error::kept_otherwise(put.path, header));
            }
        } else {
            let hash = self.superblock.path_hash(put.path.as_str().as_bytes());
            self.pages().find_room(hash)?;
        }
        let version = previous.as_ref().map_or(Some(1), |header| header.version.checked_add(1));
        let version = version.ok_or_else(|| Error::TooManyVersions { path: put.path.to_string() })?;
        if let Some(expected) = put.version.filter(|expected| *expected != version) {
            let path = put.path;
            return Err(Error::Refused(format!("{path}: this would be version {version}, not {expected}")));
        }
        if let Some(header) = &previous {
            let segment = self.superblock.geometry.segment_of(header.block);
            self.pages().table_entry(segment)?; // cached now: nothing below reads the device
        }
        let inherited = previous.as_ref().map_or(0, |header| header.class);
        let class = put.class.unwrap_or(inherited);
        self.check_class(class)?;
        let today = self.issue_day(class)?;
        let issued_day = put.issued_day.unwrap_or(today);
        if issued_day > today.saturating_add(1) {
            let (path, issued, today) = (put.path, day::text(issued_day), day::text(today));
            return Err(Error::Refused(format!(
                "{path}: issued on {issued}, which is after today ({today}): correct the date, or the clock"
            )));
        }
        self.make_room(batch, put.path.as_str().as_bytes(), put.data.len() as u64, Reserve::Kept)?;
        let draft = Draft {
            kind: Kind::Put,
            meta: put.path.as_str().as_bytes().to_vec(),
            data: Cow::Borrowed(put.data),
            sums,
            class,
            issued_day,
            version,
            previous: previous.map_or((0, 0), |header| (header.block, header.seq)),
            flags: 0,
            recorded_at_ms: None,
        };
        self.append(batch, put.path, draft)
    }

    /// Whether the data of a record that is stored already, or in this batch, still has its hash.
    fn is_readable(&self, batch: &Batch<'_>, header: &Header) -> Result<bool> {
        if batch.header(header.seq).is_some() || !Rule::StoredIsRead.holds() {
            return Ok(true);
        }
        let buf = read_blocks(&self.device, header.block, header.blocks)?;
        let parsed = Header::parse(buf.as_slice(), self.superblock.record_seed());
        Ok(parsed.is_ok_and(|(now, _)| now == *header) && header.data(buf.as_slice()).is_ok())
    }

    /// Plans one removal.
    pub(super) fn plan_removal(&mut self, batch: &mut Batch<'_>, path: &ReceiptPath) -> Result<Stored> {
        let Some(previous) = self.newest_version(batch, path)? else {
            return Err(Error::NotFound { path: path.to_string() });
        };
        self.check_removal(batch, &previous)?;
        self.append_removal(batch, path, &previous, 0)
    }

    /// Takes a path out of the index: what must be kept was looked at before.
    pub(crate) fn append_removal(
        &mut self,
        batch: &mut Batch<'_>,
        path: &ReceiptPath,
        previous: &Header,
        flags: u16,
    ) -> Result<Stored> {
        let segment = self.superblock.geometry.segment_of(previous.block);
        self.pages().table_entry(segment)?; // cached now: nothing below reads the device
        self.make_room(batch, path.as_str().as_bytes(), 0, Reserve::Shared)?;
        let draft = Draft {
            kind: Kind::Tombstone,
            meta: path.as_str().as_bytes().to_vec(),
            data: Cow::Borrowed(&[]),
            sums: DataSums::of(&[]),
            class: previous.class,
            issued_day: 0,
            version: previous.version,
            previous: (previous.block, previous.seq),
            flags,
            recorded_at_ms: None,
        };
        self.append(batch, path, draft)
    }

    /// Adds a record that fits to the batch and stages what it changes.
    pub(crate) fn append<'a>(
        &mut self,
        batch: &mut Batch<'a>,
        path: &ReceiptPath,
        draft: Draft<'a>,
    ) -> Result<Stored> {
        let header = self.append_record(batch, draft)?;
        Ok(stored(path, &header, true))
    }

    /// As [`Writer::append`], of any kind. A retirement changes pages only after the record is durable.
    pub(crate) fn append_record<'a>(&mut self, batch: &mut Batch<'a>, draft: Draft<'a>) -> Result<Header> {
        let header = batch.push(draft, &self.superblock.geometry);
        if header.kind != Kind::Retire {
            self.pages().apply(&header)?;
        }
        if batch.tail.is_summary_due(&self.superblock.geometry) {
            batch.push_summary(&self.superblock.geometry);
        }
        Ok(header)
    }

    /// The header of the newest version of a path, of this batch or on disk.
    pub(crate) fn newest_version(&mut self, batch: &Batch<'_>, path: &ReceiptPath) -> Result<Option<Header>> {
        let hash = self.superblock.path_hash(path.as_str().as_bytes());
        let found = self.pages().search(hash)?;
        for (_, entry) in found.entries {
            let header = match batch.header(entry.seq) {
                Some(header) => header.clone(),
                None => match read_header(&self.device, &self.superblock, entry.block)? {
                    Ok((header, _)) if header.seq == entry.seq => header,
                    Ok(_) => return Err(corrupt(path, entry.block, "another record lies there")),
                    Err(fault) => return Err(corrupt(path, entry.block, &fault.to_string())),
                },
            };
            if header.meta == path.as_str().as_bytes() {
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// A class that no policy describes would never expire and never be protected.
    fn check_class(&mut self, class: u8) -> Result<()> {
        if class == 0 {
            return Ok(());
        }
        match self.retention()?.policy.term(class) {
            Term::None => Err(Error::Usage(format!(
                "class {class} has no term: `receipt policy set {class} YEARS` gives it one"
            ))),
            _ => Ok(()),
        }
    }

    /// The day of issue of a receipt that comes without one: today, but not before the last day that was confirmed. A clock that has fallen back
    /// by years would let the term of a new receipt be over at once.
    fn issue_day(&mut self, class: u8) -> Result<u32> {
        let today = day_of_ms(self.now_ms());
        match self.pages().policy() {
            // Receipts of class 0 are stored all the same.
            Err(Error::Corrupt(_)) if class == 0 => Ok(today),
            policy => Ok(today.max(policy?.confirmed_day)),
        }
    }

    /// Policy and holds with what this writer has planned.
    pub(crate) fn retention(&mut self) -> Result<Retention> {
        self.pages().retention()
    }

    /// Every version of a path must be past its term, and the path on no hold.
    pub(crate) fn check_removal(&mut self, batch: &Batch<'_>, newest: &Header) -> Result<()> {
        let retention = self.retention()?;
        let clock_day = day_of_ms(self.now_ms());
        let mut header = newest.clone();
        loop {
            retention.check_removal(&header.meta, header.class, header.issued_day, clock_day)?;
            match self.older_version(batch, &header)? {
                Some(older) => header = older,
                None => return Ok(()),
            }
        }
    }

    /// The version before, if it is still in the log.
    fn older_version(&self, batch: &Batch<'_>, header: &Header) -> Result<Option<Header>> {
        if header.previous_version_seq == 0 || header.flags & FLAG_MOVED != 0 {
            return Ok(None);
        }
        if let Some(older) = batch.header(header.previous_version_seq) {
            return Ok(Some(older.clone()));
        }
        let block = header.previous_version_block;
        if !self.superblock.geometry.holds_record(block, 1) {
            return Err(Error::Corrupt(format!("record at block {}: version before", header.block)));
        }
        let older = read_header(&self.device, &self.superblock, block)?.ok().map(|(older, _)| older);
        Ok(older.filter(|older| older.seq == header.previous_version_seq))
    }

    /// Makes sure that the record fits with the Seal behind it; ends the segment where it does not.
    pub(crate) fn make_room(
        &mut self,
        batch: &mut Batch<'_>,
        meta: &[u8],
        data_len_bytes: u64,
        reserve: Reserve,
    ) -> Result<()> {
        let geometry = self.superblock.geometry.clone();
        let meta_len = meta.len();
        let blocks = record_blocks(meta_len, data_len_bytes);
        let limit_bytes = data_bytes_max(&geometry);
        let alone = blocks.saturating_add(list_blocks((ITEM_BYTES + meta_len) as u64));
        if data_len_bytes > limit_bytes || alone > geometry.blocks_per_segment() {
            let path = String::from_utf8_lossy(meta).into_owned();
            return Err(Error::TooLarge { path, data_len_bytes, limit_bytes });
        }
        let current = geometry.segment_of(batch.tail.cursor.block);
        self.pages().table_entry(current)?;
        if batch.tail.fits(&geometry, blocks + reserve.blocks(), meta_len) {
            return Ok(());
        }
        if batch.tail.fits(&geometry, blocks, meta_len) {
            // The last blocks of a segment are for everybody, unless it is the last segment.
            let is_last = find_free(&mut self.pages(), current, reserve, false)?.free.is_none();
            let full = Error::NoSpace { needed_blocks: blocks, refused_segments: 0 };
            return if is_last { Err(full) } else { Ok(()) };
        }
        let next = next_free(&mut self.pages(), current, blocks, reserve)?;
        let seal = batch.push_seal(next, &geometry);
        self.pages().apply(&seal)
    }
}

fn corrupt(path: &ReceiptPath, block: u64, fact: &str) -> Error {
    Error::CorruptReceipt { path: path.to_string(), fact: format!("record at block {block}: {fact}") }
}

fn stored(path: &ReceiptPath, header: &Header, is_new: bool) -> Stored {
    let locator = Locator {
        path: path.clone(),
        block: header.block,
        blocks: header.blocks,
        generation: header.generation,
        seq: header.seq,
    };
    Stored { locator, version: header.version, is_new }
}
