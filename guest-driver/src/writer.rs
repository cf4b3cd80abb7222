//! Writing: one group commit at a time, in four steps: append | flush | pages | acknowledge.
//!
//! Invariants: a record is durable before an index entry names it; the head written with a commit replays from the start of this
//! same commit, because its pages are not durable before the next flush; after a device error nothing is acknowledged any more.

mod change;
mod plan;

pub use change::{Change, Put, Stored};

use crate::apply::Pages;
use crate::batch::Batch;
use crate::checksum::DataSums;
use crate::control::{Control, Head, Lease, LogPosition};
use crate::device::{AlignedBuf, Device};
use crate::error::{Error, Result};
use crate::hash::hash_all;
use crate::layout::{BUFFER_BLOCKS_KEPT, PAGE_HEAD, PAGE_LEASE};
use crate::log::{Tail, data_bytes_max};
use crate::page::PageKind;
use crate::page_store::PageStore;
use crate::path::ReceiptPath;
use crate::retire::carry_out;
use crate::rules::Rule;
use crate::superblock::Superblock;
use change::check_limits;

/// How a writer is opened.
#[derive(Clone, Debug, Default)]
pub struct WriterOptions {
    /// Name of the device for messages.
    pub name: String,
    /// Name of this guest for the lease.
    pub guest_name: String,
    /// Clock in milliseconds since 1970 for tests; `None` = the system's.
    pub fixed_clock_ms: Option<u64>,
    /// Identity in the lease, for who opens the same store again and for tests; `None` = random.
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

    /// Whether an error has stopped it: it changes nothing any more.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
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
        hashes: &[DataSums],
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
        let paths = groups.iter().copied().flatten().map(|change| change.path().as_str().as_bytes());
        let homes = paths.flat_map(|path| superblock.home_pages(path));
        self.pages.prefetch(&self.device, homes, PageKind::Index);
        Ok(())
    }

    fn plan_and_write(
        &mut self,
        groups: &[&[Change<'_>]],
        hashes: &[DataSums],
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
        hashes: &[DataSums],
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
            let is_other = !put.is_new_version && header.data_hash != hash.hash;
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
            carry_out(&self.device, &self.superblock, &mut self.pages, &batch)?;
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

    /// Lets the replay position be the end of the log: from the next flush on no recovery reads a record that is there now.
    pub(crate) fn end_window(&mut self) -> Result<()> {
        let end = self.tail.position();
        if self.head_replay != end {
            // crash here: the next writer replays the last commit.
            self.pages.flush(&self.device, Rule::ClosingFlushes)?;
            self.write_head(&end)?;
        }
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
        self.end_window()?;
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
}
