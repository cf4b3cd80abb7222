//! Expiry and room: which segments can go, and making them go, the oldest first.
//!
//! A segment goes whole. Every record of it is looked at: what is still to be kept is copied to the end of the log if little of the segment
//! is, otherwise only the receipts whose term is over are removed and the segment waits. Looking needs no writer, so receipts are stored meanwhile;
//! what could have changed since (policy, holds, the segment itself) is compared again when the writer acts.
//!
//! Invariants: nothing is removed before its term or on hold; a record that hides another one (a removal, a newer version) does not go before that
//! one, so nothing that was removed comes back; the chain over the gap stays provable.

use crate::batch::Batch;
use crate::batch::Draft;
use crate::control::Control;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, BLOCK_BYTES};
use crate::list::used_segments;
use crate::log::{read_blocks, read_header};
use crate::path::ReceiptPath;
use crate::policy::Retention;
use crate::reader::Reader;
use crate::record::{FLAG_EXPIRED, FLAG_MOVED, Header, Kind};
use crate::retire::{Range, Retired, decode_ranges, encode_ranges, join_ranges, walk_segment};
use crate::rules::Rule;
use crate::space::Reserve;
use crate::superblock::Superblock;
use crate::table::{SegmentState, TableEntry};
use crate::writer::Writer;
use std::borrow::Cow;

/// Segments of which at least so many percent can be freed are emptied by copying the rest.
pub const COMPACT_PERCENT: u8 = 50;

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
    range: Option<Range>,
    carried: Vec<Range>,
}

impl Inspected {
    /// Bytes that would be freed without the receipts that stay.
    #[must_use]
    pub fn freed_bytes(&self) -> u64 {
        let staying: u64 = self.staying.iter().map(|header| u64::from(header.blocks)).sum();
        (self.blocks - staying.min(self.blocks)) * BLOCK_BYTES
    }

    fn pin(&mut self, why: String) {
        self.pinned.get_or_insert(why);
    }
}

/// How expiry works.
#[derive(Clone, Copy, Debug)]
pub struct ExpireOptions {
    /// Change nothing.
    pub is_dry_run: bool,
    /// Day that the operator confirms.
    pub today: Option<u32>,
    /// Copy what is to be kept out of segments of which so many percent can be freed; 0 = never.
    pub compact_percent: u8,
    /// Today by the clock.
    pub clock_day: u32,
}

/// What expiry has done, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpireEvent<'a> {
    /// A receipt has gone.
    Expired(&'a ReceiptPath, u64),
    /// The room of a segment is free again.
    Retired {
        /// Segment.
        segment: u64,
        /// Receipts that were copied out of it.
        moved: u64,
    },
    /// A segment stays.
    Kept {
        /// Segment.
        segment: u64,
        /// Why.
        why: &'a str,
    },
    /// Segments looked at, of all.
    Progress(u64, u64),
}

/// Sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpireTotals {
    /// Receipts whose term was over.
    pub expired: u64,
    /// Receipts copied.
    pub moved: u64,
    /// Segments that are free now.
    pub segments: u64,
    /// Their bytes.
    pub freed_bytes: u64,
}

impl<D: Device> Reader<D> {
    /// Looks at every record of a sealed segment: one read a record, and one or two a receipt.
    ///
    /// # Errors
    /// A device error.
    pub fn inspect(
        &self,
        superblock: &Superblock,
        retention: &Retention,
        today: u32,
        segment: u64,
        entry: &TableEntry,
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
        walk_segment(self.device(), superblock, segment, entry.generation, |header, hash| {
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
            self.inspect_record(superblock, retention, today, header, &mut found)
        })?;
        if !is_sealed {
            found.pin("a header is damaged: run `receipt verify`".to_owned());
        }
        Ok(found)
    }

    fn inspect_record(
        &self,
        superblock: &Superblock,
        retention: &Retention,
        today: u32,
        header: &Header,
        found: &mut Inspected,
    ) -> Result<()> {
        let older = self.still_there(superblock, header)?;
        let hides =
            older.as_ref().filter(|older| superblock.geometry.segment_of(older.block) != found.segment);
        if let Some(older) = hides
            && Rule::RetireHidesNothing.holds()
        {
            found.pin(format!("record {} hides record {}, which is still there", header.seq, older.seq));
        }
        match header.kind {
            Kind::Put => self.inspect_receipt(superblock, retention, today, header, older, found),
            Kind::Retire => self.carry(superblock, header, found),
            _ => Ok(()),
        }
    }

    /// The record that this one replaces or removes, if it is still in the log.
    fn still_there(&self, superblock: &Superblock, header: &Header) -> Result<Option<Header>> {
        let (block, seq) = (header.previous_version_block, header.previous_version_seq);
        if seq == 0 || !superblock.geometry.holds_record(block, 1) {
            return Ok(None);
        }
        let older = read_header(self.device(), superblock, block)?.ok().map(|(older, _)| older);
        match older.filter(|older| older.seq == seq) {
            // What lies in a segment that is free is no part of the log any more.
            Some(older) if !self.is_retired(superblock, block, seq)? => Ok(Some(older)),
            _ => Ok(None),
        }
    }

    fn inspect_receipt(
        &self,
        superblock: &Superblock,
        retention: &Retention,
        today: u32,
        header: &Header,
        older: Option<Header>,
        found: &mut Inspected,
    ) -> Result<()> {
        let index = match self.search_buckets(superblock, superblock.path_hash(&header.meta)) {
            Ok(index) if !index.is_damaged => index,
            Ok(_) | Err(Error::Corrupt(_)) => {
                found.pin("an index page is damaged: run `receipt verify`".to_owned());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let is_expired = retention.is_expired(&header.meta, header.class, header.issued_day, today);
        if !Rule::RetireLooks.holds() {
            return Ok(());
        }
        if index.entries.iter().any(|(_, entry)| entry.seq == header.seq) {
            if is_expired && self.is_history_expired(superblock, retention, today, header)? {
                found.expired.push(header.clone());
            } else {
                if older.is_some() && header.flags & FLAG_MOVED == 0 {
                    found.pin("a receipt that is kept has older versions".to_owned());
                }
                found.staying.push(header.clone());
            }
            return Ok(());
        }
        if retention.hold_on(&header.meta, today).is_some() && Rule::HoldKeeps.holds() {
            found.pin("a hold covers what was removed or replaced".to_owned());
        } else if !is_expired && self.is_older_version(superblock, header)? {
            found.pin("an older version is kept".to_owned());
        }
        Ok(())
    }

    /// Whether all versions before this one are past their terms, too.
    fn is_history_expired(
        &self,
        superblock: &Superblock,
        retention: &Retention,
        today: u32,
        header: &Header,
    ) -> Result<bool> {
        let mut header = header.clone();
        while header.flags & FLAG_MOVED == 0 {
            let Some(older) = self.still_there(superblock, &header)? else { break };
            if !retention.is_expired(&older.meta, older.class, older.issued_day, today) {
                return Ok(false);
            }
            header = older;
        }
        Ok(true)
    }

    /// Whether `get --version` finds this record.
    fn is_older_version(&self, superblock: &Superblock, header: &Header) -> Result<bool> {
        let index = self.search_buckets(superblock, superblock.path_hash(&header.meta))?;
        for (_, entry) in index.entries.iter().filter(|(_, entry)| entry.seq > header.seq) {
            let Ok((mut newer, _)) = read_header(self.device(), superblock, entry.block)? else {
                return Ok(true);
            };
            if newer.meta != header.meta {
                continue; // another path with the same tag
            }
            while newer.seq > header.seq && newer.flags & FLAG_MOVED == 0 {
                match self.still_there(superblock, &newer)? {
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
    fn segments_to_inspect(&self, superblock: &Superblock) -> Result<Vec<(u64, TableEntry, bool)>> {
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

/// Access to the writer for one step; receipts may be stored between two.
pub type WithWriter<'a, D> = &'a mut dyn FnMut(&mut dyn FnMut(&mut Writer<D>) -> Result<()>) -> Result<()>;

struct Run<'a, R, D, F> {
    reader: &'a Reader<R>,
    writer: WithWriter<'a, D>,
    options: ExpireOptions,
    totals: ExpireTotals,
    report: F,
}

/// Removes every receipt whose term is over and frees the segments that hold nothing else.
///
/// # Errors
/// [`Error::Refused`] when the clock is far from the last confirmed day; a device error, what `report` returns, or as
/// [`Writer::commit_changes`].
pub fn expire<R: Device, D: Device>(
    reader: &Reader<R>,
    writer: WithWriter<'_, D>,
    options: ExpireOptions,
    report: impl FnMut(ExpireEvent<'_>) -> Result<()>,
) -> Result<ExpireTotals> {
    let superblock = &*reader.superblock_now()?;
    let mut run = Run { reader, writer, options, totals: ExpireTotals::default(), report };
    let today = run.confirm_today(&Retention::read(reader.device(), superblock)?)?;
    let segments = reader.segments_to_inspect(superblock)?;
    let count = segments.len() as u64;
    for ((segment, entry, may_go), done) in segments.into_iter().zip(0..) {
        (run.report)(ExpireEvent::Progress(done, count))?;
        run.segment(superblock, today, (segment, may_go), &entry)?;
    }
    (run.report)(ExpireEvent::Progress(count, count))?;
    Ok(run.totals)
}

impl<R: Device, D: Device, F: FnMut(ExpireEvent<'_>) -> Result<()>> Run<'_, R, D, F> {
    /// The day that counts. What the clock says is confirmed by the operator, or by being near the last confirmed day.
    fn confirm_today(&mut self, retention: &Retention) -> Result<u32> {
        let (policy, clock_day) = (&retention.policy, self.options.clock_day);
        let has_terms = policy.terms.iter().any(|term| *term != crate::policy::Term::None);
        let day = self.options.today.unwrap_or(clock_day);
        if day > clock_day {
            let (day, clock) = (crate::day::text(day), crate::day::text(clock_day));
            return Err(Error::Refused(format!(
                "{day} is after what the clock says ({clock}): set the clock first"
            )));
        }
        if self.options.today.is_none() && policy.today(day) != day && has_terms {
            let (clock, confirmed) = (crate::day::text(clock_day), crate::day::text(policy.confirmed_day));
            return Err(Error::Refused(format!(
                "the clock says {clock}, the last day that was confirmed is {confirmed}: if the clock is right, `receipt expire --today {clock}`"
            )));
        }
        if has_terms && day > policy.confirmed_day && !self.options.is_dry_run {
            let noted = (self.writer)(&mut |writer| {
                writer.change_policy(|policy| {
                    policy.confirmed_day = policy.confirmed_day.max(day);
                    Ok(())
                })?;
                Ok(())
            });
            match noted {
                Ok(()) | Err(Error::NoSpace { .. }) => {} // room comes first: the day is noted by the next run
                Err(error) => return Err(error),
            }
        }
        Ok(day)
    }

    fn segment(
        &mut self,
        superblock: &Superblock,
        today: u32,
        (segment, may_go): (u64, bool),
        entry: &TableEntry,
    ) -> Result<()> {
        let retention = Retention::read(self.reader.device(), superblock)?;
        let mut found = self.reader.inspect(superblock, &retention, today, segment, entry)?;
        if !may_go {
            found.pinned = Some("the log ends in it".to_owned());
        }
        let is_worth = {
            let percent = u64::from(self.options.compact_percent);
            percent > 0 && found.freed_bytes() * 100 >= percent * found.blocks * BLOCK_BYTES
        };
        let goes = found.pinned.is_none() && (found.staying.is_empty() || is_worth);
        let has_room = found.staying.is_empty() || self.reader.usage()?.free_segments > 0;
        if self.options.is_dry_run {
            return self.dry_run(&found, goes && has_room);
        }
        if goes && has_room && self.empty_and_retire(&retention, &found)? {
            return Ok(());
        }
        self.remove_expired(&found)?;
        let why = found.pinned.as_deref().unwrap_or(if has_room {
            "most of it is kept"
        } else {
            "no room for copies"
        });
        (self.report)(ExpireEvent::Kept { segment, why })
    }

    fn dry_run(&mut self, found: &Inspected, goes: bool) -> Result<()> {
        self.report_expired(&found.expired)?;
        if !goes {
            let why = found.pinned.as_deref().unwrap_or("most of it is kept");
            return (self.report)(ExpireEvent::Kept { segment: found.segment, why });
        }
        self.count_retired(found, found.staying.len() as u64)
    }

    fn count_retired(&mut self, found: &Inspected, moved: u64) -> Result<()> {
        self.totals.moved += moved;
        self.totals.segments += 1;
        self.totals.freed_bytes += found.freed_bytes();
        (self.report)(ExpireEvent::Retired { segment: found.segment, moved })
    }

    fn report_expired(&mut self, headers: &[Header]) -> Result<()> {
        for header in headers {
            self.totals.expired += 1;
            (self.report)(ExpireEvent::Expired(&ReceiptPath::from_bytes(&header.meta)?, header.seq))?;
        }
        Ok(())
    }

    /// Copies what stays and retires the segment; false when something has changed meanwhile, or there is no room.
    fn empty_and_retire(&mut self, retention: &Retention, found: &Inspected) -> Result<bool> {
        let mut is_empty = true;
        for some in chunks(&found.staying) {
            let done = (self.writer)(&mut |writer| writer.move_out(some));
            match done {
                Ok(()) => {}
                Err(Error::NoSpace { .. } | Error::IndexFull { .. } | Error::CorruptReceipt { .. }) => {
                    is_empty = false;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let mut is_retired = false;
        if is_empty {
            (self.writer)(&mut |writer| {
                is_retired = writer.retire(retention, found)?;
                Ok(())
            })?;
        }
        if is_retired {
            self.report_expired(&found.expired)?;
            self.count_retired(found, found.staying.len() as u64)?;
        }
        Ok(is_retired)
    }

    /// Removes the receipts of a segment that stays.
    fn remove_expired(&mut self, found: &Inspected) -> Result<()> {
        for some in found.expired.chunks(BATCH_RECORDS_MAX / 2) {
            let mut removed = Vec::new();
            let done = (self.writer)(&mut |writer| {
                removed = writer.remove_expired(some)?;
                Ok(())
            });
            match done {
                Ok(()) => self.report_expired(&removed)?,
                Err(Error::NoSpace { .. }) => return Ok(()), // until room was made
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Pieces of one group commit each.
fn chunks(headers: &[Header]) -> Vec<&[Header]> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, header) in headers.iter().enumerate() {
        let len = u64::from(header.blocks) * BLOCK_BYTES;
        if at > start && (bytes + len > BATCH_BYTES_MAX || at - start >= BATCH_RECORDS_MAX / 2) {
            pieces.push(&headers[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += len;
    }
    if start < headers.len() {
        pieces.push(&headers[start..]);
    }
    pieces
}

impl<D: Device> Writer<D> {
    /// Copies receipts to the end of the log, with all that is known of them; the index names the copies from then on.
    pub(crate) fn move_out(&mut self, headers: &[Header]) -> Result<()> {
        self.transact(|writer, batch| headers.iter().try_for_each(|header| writer.append_copy(batch, header)))
    }

    fn append_copy(&mut self, batch: &mut Batch<'_>, header: &Header) -> Result<()> {
        let path = ReceiptPath::from_bytes(&header.meta)?;
        let hash = self.superblock.path_hash(&header.meta);
        if !self.pages().search(hash)?.entries.iter().any(|(_, entry)| entry.seq == header.seq) {
            return Ok(()); // replaced or removed meanwhile
        }
        let buf = read_blocks(&self.device, header.block, header.blocks)?;
        let parsed = Header::parse(buf.as_slice(), self.superblock.record_seed());
        let data = header.data(buf.as_slice()).map_err(|fault| fault.to_string());
        let data = match parsed {
            Ok((now, _)) if now == *header => data,
            Ok(_) => Err("another record lies there".to_owned()),
            Err(fault) => Err(fault.to_string()),
        };
        let data = data.map_err(|fact| Error::CorruptReceipt { path: path.to_string(), fact })?;
        self.make_room(batch, &header.meta, header.data_len, Reserve::Used)?;
        let segment = self.superblock.geometry.segment_of(header.block);
        self.pages().table_entry(segment)?;
        let draft = Draft {
            kind: Kind::Put,
            meta: header.meta.clone(),
            data: Cow::Owned(data.to_vec()),
            data_hash: header.data_hash,
            class: header.class,
            issued_day: header.issued_day,
            version: header.version,
            previous: (header.block, header.seq),
            flags: FLAG_MOVED,
            recorded_at_ms: Some(header.recorded_at_ms),
        };
        self.append_record(batch, draft).map(drop)
    }

    /// Retires a segment that was looked at under `retention`; false when that is not so any more.
    pub(crate) fn retire(&mut self, retention: &Retention, found: &Inspected) -> Result<bool> {
        let Some(range) = found.range else { return Ok(false) };
        let entry = self.pages().table_entry(found.segment)?;
        let is_same = entry.state == SegmentState::Sealed && entry.generation == found.generation;
        let is_before = range.last_seq <= self.head_replay.seq || !Rule::RetireBeforeReplay.holds();
        let now = self.retention()?;
        if !is_same
            || !is_before
            || (now.holds != retention.holds || now.policy.terms != retention.policy.terms)
        {
            return Ok(false);
        }
        self.transact(|writer, batch| {
            let meta = Retired { segment: found.segment, generation: found.generation, range }.encode();
            let data = encode_ranges(&join_ranges(found.carried.clone()));
            writer.make_room(batch, &meta, data.len() as u64, Reserve::Used)?;
            writer.append_record(batch, Draft::statement(Kind::Retire, meta, data))
        })?;
        Ok(true)
    }

    /// Removes receipts whose term is over; returns those that are gone.
    fn remove_expired(&mut self, headers: &[Header]) -> Result<Vec<Header>> {
        self.transact(|writer, batch| {
            let mut removed = Vec::new();
            for header in headers {
                let path = ReceiptPath::from_bytes(&header.meta)?;
                let newest = writer.newest_version(batch, &path)?;
                let Some(newest) = newest.filter(|newest| newest.seq == header.seq) else { continue };
                match writer.check_removal(batch, &newest) {
                    Ok(()) => {}
                    Err(Error::Kept { .. } | Error::Held { .. }) => continue,
                    Err(error) => return Err(error),
                }
                writer.append_removal(batch, &path, &newest, FLAG_EXPIRED)?;
                removed.push(newest);
            }
            Ok(removed)
        })
    }
}
