//! Writing: one group commit at a time, in four steps: append | flush | pages | acknowledge.
//!
//! Invariants: a record is durable before an index entry names it; the head written with a commit replays from the start of this
//! same commit, because its pages are not durable before the next flush; after a device error nothing is acknowledged any more.

use crate::apply::Pages;
use crate::batch::{Batch, Draft};
use crate::control::{Control, Head, Lease, LogPosition};
use crate::day::day_of_ms;
use crate::device::{AlignedBuf, Device};
use crate::error::{Error, Result};
use crate::hash::{DataHash, hash_all};
use crate::layout::{
    BATCH_BYTES_MAX, BATCH_RECORDS_MAX, BUFFER_BLOCKS_KEPT, DATA_BYTES_MAX, PAGE_HEAD, PAGE_LEASE,
};
use crate::locator::Locator;
use crate::log::{Tail, data_bytes_max, list_blocks, read_blocks, read_header};
use crate::page::PageKind;
use crate::page_store::PageStore;
use crate::path::ReceiptPath;
use crate::policy::{Retention, Term};
use crate::record::{FLAG_MOVED, Header, Kind, record_blocks};
use crate::retire::carry_out;
use crate::rules::Rule;
use crate::space::{Reserve, find_free, next_free};
use crate::summary::ITEM_BYTES;
use crate::superblock::Superblock;
use std::borrow::Cow;

/// One receipt to store.
#[derive(Clone, Debug)]
pub struct Put<'a> {
    /// Path.
    pub path: &'a ReceiptPath,
    /// Bytes, kept as they are.
    pub data: &'a [u8],
    /// Other data under the same path becomes its next version instead of being refused.
    pub is_new_version: bool,
    /// Days since 1970 when the receipt was issued; `None` = today.
    pub issued_day: Option<u32>,
    /// Retention class; `None` = that of the version before, or 0.
    pub class: Option<u8>,
}

impl<'a> Put<'a> {
    /// A receipt issued today whose path must be new.
    #[must_use]
    pub fn new(path: &'a ReceiptPath, data: &'a [u8]) -> Self {
        Self { path, data, is_new_version: false, issued_day: None, class: None }
    }
}

/// One change of the store.
#[derive(Clone, Debug)]
pub enum Change<'a> {
    /// Stores a receipt.
    Put(Put<'a>),
    /// Removes a path whose term is over, or has none: it is "not found" from then on and may be stored anew, as version 1. The log keeps
    /// the bytes, and locators still find them, until the segment is retired.
    Remove(&'a ReceiptPath),
}

impl Change<'_> {
    fn data(&self) -> &[u8] {
        match self {
            Self::Put(put) => put.data,
            Self::Remove(_) => &[],
        }
    }

    fn path(&self) -> &ReceiptPath {
        match self {
            Self::Put(put) => put.path,
            Self::Remove(path) => path,
        }
    }
}

/// An acknowledged change: durable, and every reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where the record lies: the receipt, or the Tombstone of a removal (which no get takes).
    pub locator: Locator,
    /// Version of the path that was stored or removed, from 1.
    pub version: u16,
    /// False when the same data was stored under this path before.
    pub is_new: bool,
}

/// How a writer is opened.
#[derive(Clone, Debug, Default)]
pub struct WriterOptions {
    /// Name of the device for messages.
    pub name: String,
    /// Name of this guest for the lease.
    pub guest_name: String,
    /// Clock in milliseconds since 1970 for tests; `None` = the system's.
    pub fixed_clock_ms: Option<u64>,
    /// Identity in the lease for tests; `None` = random.
    pub fixed_uuid: Option<[u8; 16]>,
}

/// The one writer of a store.
#[derive(Debug)]
pub struct Writer<D> {
    pub(crate) device: D,
    pub(crate) superblock: Superblock,
    pub(crate) pages: PageStore,
    pub(crate) tail: Tail,
    pub(crate) lease: Lease,
    /// Replay position of the head on disk.
    pub(crate) head_replay: LogPosition,
    pub(crate) fixed_clock_ms: Option<u64>,
    pub(crate) is_stopped: bool,
    /// Where the records of a commit are laid out; kept from one to the next.
    pub(crate) buffer: AlignedBuf,
}

impl<D: Device> Writer<D> {
    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Epoch of this writer.
    pub fn epoch(&self) -> u32 {
        self.lease.epoch
    }

    /// Last sequence that is acknowledged.
    pub fn last_seq(&self) -> u64 {
        self.tail.cursor.seq
    }

    /// Most bytes of data in one record of this store.
    pub fn data_bytes_max(&self) -> u64 {
        data_bytes_max(&self.superblock.geometry)
    }

    /// Stores one receipt: a group commit of one.
    ///
    /// # Errors
    /// As [`Writer::commit`].
    pub fn put(&mut self, put: &Put<'_>) -> Result<Stored> {
        let mut results = self.commit(std::slice::from_ref(put))?;
        results.pop().unwrap_or(Err(Error::WriterStopped))
    }

    /// Removes one path: a group commit of one.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing is stored there; as [`Writer::commit`].
    pub fn remove(&mut self, path: &ReceiptPath) -> Result<Stored> {
        let mut results = self.commit_changes(&[Change::Remove(path)])?;
        results.pop().unwrap_or(Err(Error::WriterStopped))
    }

    /// Stores a batch: [`Writer::commit_changes`] of puts alone.
    ///
    /// # Errors
    /// As there.
    pub fn commit(&mut self, puts: &[Put<'_>]) -> Result<Vec<Result<Stored>>> {
        let changes: Vec<Change<'_>> = puts.iter().cloned().map(Change::Put).collect();
        self.commit_changes(&changes)
    }

    /// Makes a batch of changes, in their order, with one sequential write (two where a segment ends) and one flush. Each has its own answer;
    /// an `Ok` among them is durable and visible when this returns.
    ///
    /// # Errors
    /// [`Error::Usage`] for a batch over the limits; a device error or [`Error::Fenced`]: nothing of the batch is
    /// acknowledged and the writer has stopped.
    pub fn commit_changes(&mut self, changes: &[Change<'_>]) -> Result<Vec<Result<Stored>>> {
        self.commit_groups(&changes.chunks(1).collect::<Vec<_>>())
    }

    /// As [`Writer::commit_changes`], in groups: where other data is stored under a path of the group, none of its changes is made, and where
    /// there is no room for one, none after it. The change that was refused has the reason as its answer, the others that were not made
    /// [`Error::NotReached`]. Answers come in the order of the changes. A group alone may have more bytes than a batch.
    ///
    /// # Errors
    /// As [`Writer::commit_changes`].
    pub fn commit_groups(&mut self, groups: &[&[Change<'_>]]) -> Result<Vec<Result<Stored>>> {
        let datas: Vec<&[u8]> = groups.iter().copied().flatten().map(Change::data).collect();
        let (hashes, begun) = hash_all(&datas, || self.prepare(groups));
        begun?;
        self.plan_and_write(groups, &hashes)
    }

    /// As [`Writer::commit_groups`], with the hash of each change's data.
    pub(crate) fn commit_hashed(
        &mut self,
        groups: &[&[Change<'_>]],
        hashes: &[DataHash],
    ) -> Result<Vec<Result<Stored>>> {
        self.prepare(groups)?;
        self.plan_and_write(groups, hashes)
    }

    /// Checks the limits and reads the index pages that the changes begin at into the cache, all at the same time.
    fn prepare(&mut self, groups: &[&[Change<'_>]]) -> Result<()> {
        if self.is_stopped {
            return Err(Error::WriterStopped);
        }
        check_limits(groups)?;
        self.pages.shrink();
        let superblock = &self.superblock;
        let homes = groups.iter().copied().flatten().flat_map(|change| {
            let bucket = superblock.path_hash(change.path().as_str().as_bytes()).bucket;
            superblock
                .geometry
                .regions
                .iter()
                .map(move |region| superblock.geometry.home_page(region, bucket))
        });
        self.pages.prefetch(&self.device, homes, PageKind::Index);
        Ok(())
    }

    fn plan_and_write(
        &mut self,
        groups: &[&[Change<'_>]],
        hashes: &[DataHash],
    ) -> Result<Vec<Result<Stored>>> {
        let mut batch = self.new_batch();
        let mut results = Vec::new();
        let mut hashes_left = hashes;
        for group in groups {
            let mut is_refused = false;
            let (hashes, behind) = hashes_left.split_at(group.len());
            hashes_left = behind;
            if let Some((refused, error)) = self.conflict(&batch, group, hashes) {
                let mut error = Some(error);
                let mut answer = |at| if at == refused { error.take() } else { None };
                results.extend((0..group.len()).map(|at| Err(answer(at).unwrap_or(Error::NotReached))));
                continue;
            }
            for (change, hash) in group.iter().zip(hashes) {
                let result = match change {
                    _ if is_refused => Err(Error::NotReached),
                    Change::Put(put) => self.plan(&mut batch, put, *hash),
                    Change::Remove(path) => self.plan_removal(&mut batch, path),
                };
                is_refused |= result.is_err();
                results.push(result);
            }
        }
        assert!(hashes_left.is_empty(), "a hash a change");
        if batch.headers.is_empty() {
            return Ok(results);
        }
        if let Err(error) = self.write_batch(batch) {
            return Err(self.stop(error));
        }
        Ok(results)
    }

    /// The first change of a group of several that meets other data, or damage. One alone is held against what is stored when it is planned.
    fn conflict(
        &mut self,
        batch: &Batch<'_>,
        group: &[Change<'_>],
        hashes: &[DataHash],
    ) -> Option<(usize, Error)> {
        if group.len() < 2 {
            return None;
        }
        group.iter().zip(hashes).enumerate().find_map(|(at, (change, hash))| {
            let Change::Put(put) = change else { return None };
            let header = match self.newest_version(batch, put.path) {
                Ok(header) => header?,
                Err(error) => return Some((at, error)),
            };
            let is_other = !put.is_new_version && header.data_hash != *hash;
            is_other.then(|| (at, Error::Exists { path: put.path.to_string(), seq: header.seq }))
        })
    }

    pub(crate) fn new_batch<'a>(&self) -> Batch<'a> {
        Batch::new(self.tail.clone(), self.lease.epoch, self.now_ms(), self.superblock.record_seed())
    }

    /// Steps 1 to 3; returning is step 4, the acknowledgement.
    pub(crate) fn write_batch(&mut self, batch: Batch<'_>) -> Result<()> {
        self.check_lease()?;
        let start = self.tail.position();
        // crash here: records may be torn or missing, later ones there and earlier ones not; none is acknowledged, recovery ends the log before
        // the first bad one.
        batch.write(&self.device, &mut self.buffer)?;
        if self.buffer.block_count() > BUFFER_BLOCKS_KEPT {
            self.buffer = AlignedBuf::default();
        }
        // crash here: as above; after it the records are durable and recovery re-indexes them from the head.
        self.pages.flush(&self.device, Rule::CommitFlushes)?;
        // crash here: any subset of the pages may be lost or torn; the records lie behind the head's replay position.
        self.pages.write_staged(&self.device)?;
        if batch.headers.iter().any(|header| header.previous_version_seq != 0) {
            // crash here: as above. Without this flush a crash after the acknowledgement could bring the older version
            // back to readers until the next writer opens; a path that is new is looked for in the log instead.
            self.pages.flush(&self.device, Rule::ReplacementFlushed)?;
        }
        if batch.headers.iter().any(|header| header.kind.is_of_life()) {
            carry_out(&self.device, &self.superblock, &mut self.pages, &batch.headers)?;
        }
        // The head comes last, so that whoever sees a sequence published also finds its entry.
        self.tail = batch.tail;
        let end = self.tail.position();
        self.write_head(if Rule::HeadReplaysCommit.holds() { &start } else { &end })
    }

    /// Writes the head with `replay` as replay position and everything up to the tail published.
    pub(crate) fn write_head(&mut self, replay: &LogPosition) -> Result<()> {
        let head = Head {
            replay: replay.clone(),
            published_seq: self.tail.cursor.seq,
            end_block: self.tail.cursor.block,
        };
        assert!(replay.seq <= head.published_seq, "replay begins before the end");
        // crash here: the older head replays from an earlier place, which changes nothing.
        self.pages.write(&self.device, PAGE_HEAD, PageKind::Head, head.encode())?;
        self.head_replay = replay.clone();
        Ok(())
    }

    /// Ends the writer: a later opening has nothing to recover.
    ///
    /// # Errors
    /// A device error; the next opening recovers then.
    pub fn close(mut self) -> Result<()> {
        if self.is_stopped {
            return Err(Error::WriterStopped);
        }
        let end = self.tail.position();
        if self.head_replay != end {
            // crash here: the lease is still open, the next writer replays the last commit.
            self.pages.flush(&self.device, Rule::ClosingFlushes)?;
            self.write_head(&end)?;
        }
        self.lease.is_open = false;
        // crash here: head and lease may each be old or new; pages are durable, so replaying again changes nothing.
        self.pages.write(&self.device, PAGE_LEASE, PageKind::Lease, self.lease.encode())?;
        self.device.flush()?;
        Ok(())
    }

    /// Another writer may have come and gone while this one was refused and did not notice: then its end of the log is not
    /// the end any more.
    pub(crate) fn check_lease(&self) -> Result<()> {
        let control = Control::read(&self.device, &self.superblock)?;
        let is_ours = control.lease.as_ref().is_some_and(|lease| {
            lease.epoch == self.lease.epoch && lease.writer_uuid == self.lease.writer_uuid
        });
        let is_newest = Some(control.head_page.version) == self.pages.version(PAGE_HEAD);
        if (is_ours && is_newest) || !Rule::LeaseChecked.holds() {
            return Ok(());
        }
        Err(Error::Fenced { epoch: control.lease.map_or(self.lease.epoch, |lease| lease.epoch) })
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.fixed_clock_ms.unwrap_or_else(crate::clock_ms)
    }

    /// After a device error: what is on disk is unknown, so nothing more is acknowledged. Names the newer writer where one has
    /// taken over.
    pub(crate) fn stop(&mut self, error: Error) -> Error {
        self.is_stopped = true;
        let lease = Control::read(&self.device, &self.superblock).ok().and_then(|control| control.lease);
        match lease {
            Some(lease) if lease.epoch > self.lease.epoch => Error::Fenced { epoch: lease.epoch },
            _ => error,
        }
    }

    pub(crate) fn pages(&mut self) -> Pages<'_, D> {
        Pages { device: &self.device, superblock: &self.superblock, store: &mut self.pages, window_puts: 0 }
    }

    /// Plans one put: everything that can fail comes before the first change.
    fn plan<'a>(&mut self, batch: &mut Batch<'a>, put: &Put<'a>, data_hash: DataHash) -> Result<Stored> {
        let previous = self.newest_version(batch, put.path)?;
        if let Some(header) = &previous {
            let is_same = header.data_hash == data_hash && header.data_len == put.data.len() as u64;
            if is_same && self.is_readable(batch, header)? {
                return Ok(stored(put.path, header, false));
            }
            // The same data over a damaged receipt mends it, as its next version.
            if !is_same && !put.is_new_version {
                return Err(Error::Exists { path: put.path.to_string(), seq: header.seq });
            }
        } else {
            let hash = self.superblock.path_hash(put.path.as_str().as_bytes());
            self.pages().find_room(hash)?;
        }
        let version = previous.as_ref().map_or(Some(1), |header| header.version.checked_add(1));
        let version = version.ok_or_else(|| Error::TooManyVersions { path: put.path.to_string() })?;
        if let Some(header) = &previous {
            let segment = self.superblock.geometry.segment_of(header.block);
            self.pages().table_entry(segment)?; // cached now: nothing below reads the device
        }
        let inherited = previous.as_ref().map_or(0, |header| header.class);
        let class = put.class.unwrap_or(inherited);
        self.check_class(class)?;
        self.make_room(batch, put.path.as_str().as_bytes(), put.data.len() as u64, Reserve::Kept)?;
        let today = day_of_ms(self.now_ms());
        let draft = Draft {
            kind: Kind::Put,
            meta: put.path.as_str().as_bytes().to_vec(),
            data: Cow::Borrowed(put.data),
            data_hash,
            class,
            issued_day: put.issued_day.unwrap_or(today),
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
    fn plan_removal(&mut self, batch: &mut Batch<'_>, path: &ReceiptPath) -> Result<Stored> {
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
            data_hash: *blake3::hash(&[]).as_bytes(),
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
            let is_last = find_free(&mut self.pages(), current, reserve)?.is_none();
            return if is_last { Err(Error::NoSpace { needed_blocks: blocks }) } else { Ok(()) };
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

fn check_limits(groups: &[&[Change<'_>]]) -> Result<()> {
    let count = groups.iter().map(|group| group.len()).sum::<usize>();
    let bytes: u64 = groups.iter().copied().flatten().map(|change| change.data().len() as u64).sum();
    let bytes_max = if groups.len() > 1 { BATCH_BYTES_MAX } else { DATA_BYTES_MAX + BATCH_BYTES_MAX };
    // One change alone is held against the limit of its store, with an answer of its own.
    if count > BATCH_RECORDS_MAX || (count > 1 && bytes > bytes_max) {
        return Err(Error::Usage(format!(
            "a group commit takes {BATCH_RECORDS_MAX} changes and {bytes_max} bytes, this one has {count} and {bytes}"
        )));
    }
    Ok(())
}
