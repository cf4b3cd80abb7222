//! Which requests of a ring are in flight, in memory that outlives this process: a front end keeps it and hands it to
//! the next backend (vhost-user, "Inflight I/O tracking", split virtqueues).
//!
//! Invariants:
//! 1. A head is marked before anything is done for it, and in ring order: entries taken = used index + marks.
//! 2. Marks are cleared after the used index shows the heads and before their ranges are released. What is between the
//!    two is the last batch: heads linked from `last_batch_head`, as many as the used index is ahead of `used_index`.
//! 3. A write is noted as started before its first IO. Among requests that overlap, a started write is never behind
//!    another in the order, so started writes are carried out again first and in any order.
//! 4. While a ring runs its region is only written. What a front end puts there is looked at once, when the ring starts,
//!    copied and checked; the worst that it can do is to make its own ring refuse to start.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use thiserror::Error;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

use crate::crash::{self, Point};
use crate::memory::{map_error, may_never_answer};
use crate::sigbus::Guard;

/// The only layout there is.
const VERSION: u16 = 1;

/// The parts of a queue begin at multiples of this.
const QUEUE_ALIGNMENT_BYTES: usize = 64;

/// Header of a queue: features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16.
const HEADER_BYTES: usize = 16;
const FEATURES_AT: usize = 0;
const VERSION_AT: usize = 8;
const QUEUE_SIZE_AT: usize = 10;
const LAST_BATCH_HEAD_AT: usize = 12;
const USED_INDEX_AT: usize = 14;

/// State of a head: inflight u8, 5 bytes of padding, next u16, counter u64. The first byte of the padding is ours: whether
/// a write has started.
const HEAD_BYTES: usize = 16;
const MARK_AT: usize = 0;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// The first two bytes of a head's state, stored as one.
const NOT_MARKED: [u8; 2] = [0, 0];
const MARKED: [u8; 2] = [1, 0];
const STARTED: [u8; 2] = [1, 1];

/// Why a region is of no use.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum InflightError {
    #[error("in-flight region for {queues} rings of {queue_size}")]
    BadShape { queues: u16, queue_size: u16 },
    #[error("in-flight region of {wanted_bytes} bytes in {file_bytes}")]
    TooSmall { wanted_bytes: u64, file_bytes: u64 },
    #[error("in-flight region cannot be mapped: {0}")]
    Map(io::Error),
    #[error("in-flight region is of a file for which another process or host may answer")]
    Unreliable,
    #[error("too many memory regions")]
    TooMany,
    #[error("in-flight region of another layout: version {version}, rings of {queue_size}")]
    OtherLayout { version: u16, queue_size: u16 },
    #[error("in-flight region is not of this ring: {0}")]
    OtherRing(&'static str),
}

/// The in-flight state of all rings of a front end.
#[derive(Debug)]
pub struct Region {
    /// Goes before the mapping.
    _guard: Guard,
    map: MmapRegion<()>,
    queues: u16,
    queue_size: u16,
}

/// The in-flight state of one ring; only the ring's owner has it.
#[derive(Debug)]
pub struct Tracker {
    region: Arc<Region>,
    start: usize,
    next_counter: u64,
    last_batch_head: u16,
    /// Heads given back that the used index does not show yet.
    batch: Vec<u16>,
}

/// Heads that were in flight, each list in the order in which they were taken.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Writes of which a part may be on the disk.
    pub started: Vec<u16>,
    /// All others.
    pub waiting: Vec<u16>,
}

impl Region {
    /// A fresh file that cannot change its size, and the bytes it has.
    ///
    /// # Errors
    /// When the process has no memory or descriptor left.
    pub fn create(queues: u16, queue_size: u16) -> io::Result<(OwnedFd, u64)> {
        let fd = memfd_create("receiptdisk-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let bytes = region_bytes(queues, queue_size) as u64;
        ftruncate(&fd, bytes)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((fd, bytes))
    }

    /// Maps the region at `offset_bytes` of `fd`.
    ///
    /// # Errors
    /// When it does not fit into `size_bytes` or into the file.
    pub fn map(
        fd: OwnedFd,
        offset_bytes: u64,
        size_bytes: u64,
        queues: u16,
        queue_size: u16,
    ) -> Result<Arc<Self>, InflightError> {
        if queues == 0 || queue_size == 0 {
            return Err(InflightError::BadShape { queues, queue_size });
        }
        let bytes = region_bytes(queues, queue_size);
        let wanted_bytes = bytes as u64;
        if may_never_answer(&fd).map_err(InflightError::Map)? {
            return Err(InflightError::Unreliable);
        }
        let stat = fstat(&fd).map_err(|error| InflightError::Map(error.into()))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(InflightError::Map(io::Error::other("not a file")));
        }
        // A mapping that reaches past its file faults on first use.
        let file_bytes =
            u64::try_from(stat.st_size).unwrap_or(0).saturating_sub(offset_bytes).min(size_bytes);
        if file_bytes < wanted_bytes {
            return Err(InflightError::TooSmall { wanted_bytes, file_bytes });
        }
        let map = MmapRegion::from_file(FileOffset::new(File::from(fd), offset_bytes), bytes)
            .map_err(|error| InflightError::Map(map_error(error)))?;
        let guard = Guard::new(map.as_ptr(), map.size()).ok_or(InflightError::TooMany)?;
        Ok(Arc::new(Self { _guard: guard, map, queues, queue_size }))
    }

    /// The file, and where the region begins in it, in bytes.
    #[must_use]
    pub fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.map.file_offset().map(|file| (file.file().as_fd(), file.start()))
    }

    /// Rings that it has room for, and entries of each.
    #[must_use]
    pub fn shape(&self) -> (u16, u16) {
        (self.queues, self.queue_size)
    }

    /// Rings that have requests in flight.
    #[must_use]
    pub fn marked_queues(&self) -> Vec<usize> {
        let has_mark = |queue: u16| {
            (0..self.queue_size).any(|head| self.load_mark(self.queue_start(queue), head)[0] == 1)
        };
        (0..self.queues).filter(|&queue| has_mark(queue)).map(usize::from).collect()
    }

    /// The state of one ring, for a ring of `size` entries whose used index is `used_index`, and what was in flight.
    ///
    /// # Errors
    /// When the region has no room for the ring, or holds what this ring cannot have left.
    pub fn recover(
        self: &Arc<Self>,
        queue: usize,
        size: u16,
        used_index: u16,
    ) -> Result<(Tracker, Recovered), InflightError> {
        let (start, last_batch) = self.look(queue, size, used_index)?;
        let region = Arc::clone(self);
        let batch = Vec::with_capacity(usize::from(size));
        let mut tracker = Tracker { region, start, next_counter: 0, last_batch_head: 0, batch };
        let recovered = match last_batch {
            None => {
                tracker.begin(used_index);
                Recovered::default()
            }
            Some(heads) => {
                tracker.end_last_batch(&heads, used_index);
                tracker.in_flight(size)
            }
        };
        Ok((tracker, recovered))
    }

    /// Whether [`Region::recover`] would understand what is here. Changes nothing.
    ///
    /// # Errors
    /// As for [`Region::recover`].
    pub fn check(&self, queue: usize, size: u16, used_index: u16) -> Result<(), InflightError> {
        self.look(queue, size, used_index).map(|_| ())
    }

    /// Where the ring's part begins, and the heads that the used index shows although they may still be marked; no list if the
    /// ring has never run.
    fn look(
        &self,
        queue: usize,
        size: u16,
        used_index: u16,
    ) -> Result<(usize, Option<Vec<u16>>), InflightError> {
        let queue = u16::try_from(queue).ok().filter(|&queue| queue < self.queues && size <= self.queue_size);
        let bad_shape = InflightError::BadShape { queues: self.queues, queue_size: self.queue_size };
        let start = self.queue_start(queue.ok_or(bad_shape)?);
        match (self.load(start + VERSION_AT), self.load(start + QUEUE_SIZE_AT)) {
            (0, _) => Ok((start, None)),
            (VERSION, queue_size) if queue_size == self.queue_size => {
                Ok((start, Some(self.last_batch(start, size, used_index)?)))
            }
            (version, queue_size) => Err(InflightError::OtherLayout { version, queue_size }),
        }
    }

    fn last_batch(&self, start: usize, size: u16, used_index: u16) -> Result<Vec<u16>, InflightError> {
        let count = used_index.wrapping_sub(self.load(start + USED_INDEX_AT));
        if count > size {
            return Err(InflightError::OtherRing("its used index has gone on without it"));
        }
        let mut heads = Vec::with_capacity(usize::from(count));
        let mut head: u16 = self.load(start + LAST_BATCH_HEAD_AT);
        for _ in 0..count {
            if head >= size {
                return Err(InflightError::OtherRing("its last batch is not one of the ring"));
            }
            heads.push(head);
            head = self.load(start + head_at(head) + NEXT_AT);
        }
        Ok(heads)
    }

    fn queue_start(&self, queue: u16) -> usize {
        usize::from(queue) * queue_bytes(self.queue_size)
    }

    fn load_mark(&self, start: usize, head: u16) -> [u8; 2] {
        self.load::<u16>(start + head_at(head) + MARK_AT).to_ne_bytes()
    }

    /// All places are inside the mapping by construction.
    fn load<T: AtomicAccess + Default>(&self, at: usize) -> T {
        self.map.as_volatile_slice().load(at, Ordering::Acquire).unwrap_or_default()
    }

    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        #[cfg(test)]
        if !tests::may_store() {
            return;
        }
        let stored = self.map.as_volatile_slice().store(value, at, Ordering::Release);
        debug_assert!(stored.is_ok(), "a place is inside the mapping");
    }
}

impl Tracker {
    /// Marks a head that was taken off the ring.
    pub fn take(&mut self, head: u16) {
        self.store_head(head, COUNTER_AT, self.next_counter);
        self.next_counter = self.next_counter.wrapping_add(1);
        self.mark(head, MARKED);
    }

    /// Notes that a write begins to change the disk.
    pub fn note_started(&self, head: u16) {
        self.mark(head, STARTED);
    }

    /// Adds a head to the batch that the used index is about to show.
    pub fn give_back(&mut self, head: u16) {
        self.store_head(head, NEXT_AT, self.last_batch_head);
        self.last_batch_head = head;
        self.store(LAST_BATCH_HEAD_AT, head);
        self.batch.push(head);
    }

    /// Clears the marks of the batch, which the used index shows from now on.
    pub fn published(&mut self, used_index: u16) {
        let mut batch = std::mem::take(&mut self.batch);
        batch.drain(..).for_each(|head| self.mark(head, NOT_MARKED));
        self.batch = batch;
        crash::here(Point::Cleared);
        self.store(USED_INDEX_AT, used_index);
    }

    /// Begins with nothing in flight. The version comes last: what is before it is then complete.
    fn begin(&mut self, used_index: u16) {
        for head in 0..self.region.queue_size {
            self.mark(head, NOT_MARKED);
        }
        self.store(FEATURES_AT, 0u64);
        self.store(QUEUE_SIZE_AT, self.region.queue_size);
        self.store(LAST_BATCH_HEAD_AT, self.last_batch_head);
        self.store(USED_INDEX_AT, used_index);
        self.store(VERSION_AT, VERSION);
    }

    /// Clears what the used index shows although it is still marked.
    fn end_last_batch(&mut self, heads: &[u16], used_index: u16) {
        self.last_batch_head = self.load(LAST_BATCH_HEAD_AT);
        heads.iter().for_each(|&head| self.mark(head, NOT_MARKED));
        self.store(USED_INDEX_AT, used_index);
    }

    /// Reads the marks, and goes on counting after them.
    fn in_flight(&mut self, size: u16) -> Recovered {
        let counter = |head: u16| self.load::<u64>(head_at(head) + COUNTER_AT);
        let state = |head| (counter(head), head, self.region.load_mark(self.start, head));
        let mut marked: Vec<(u64, u16, [u8; 2])> =
            (0..size).map(state).filter(|(.., mark)| mark[0] == 1).collect();
        marked.sort_unstable();
        self.next_counter = marked.last().map_or(0, |(counter, ..)| counter.wrapping_add(1));
        let (started, waiting): (Vec<_>, Vec<_>) =
            marked.into_iter().partition(|(.., mark)| *mark == STARTED);
        let heads = |list: Vec<(u64, u16, [u8; 2])>| list.into_iter().map(|(_, head, _)| head).collect();
        Recovered { started: heads(started), waiting: heads(waiting) }
    }

    fn mark(&self, head: u16, mark: [u8; 2]) {
        self.store_head(head, MARK_AT, u16::from_ne_bytes(mark));
    }

    fn store_head<T: AtomicAccess>(&self, head: u16, at: usize, value: T) {
        debug_assert!(head < self.region.queue_size, "heads were checked against the ring's size");
        self.store(head_at(head) + at, value);
    }

    fn load<T: AtomicAccess + Default>(&self, at: usize) -> T {
        self.region.load(self.start + at)
    }

    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        self.region.store(self.start + at, value);
    }
}

impl Recovered {
    /// Heads in flight.
    #[must_use]
    pub fn count(&self) -> usize {
        self.started.len() + self.waiting.len()
    }
}

fn head_at(head: u16) -> usize {
    HEADER_BYTES + usize::from(head) * HEAD_BYTES
}

fn queue_bytes(queue_size: u16) -> usize {
    head_at(queue_size).next_multiple_of(QUEUE_ALIGNMENT_BYTES)
}

/// At most 64 rings of 65,535 entries: a few dozen MiB.
fn region_bytes(queues: u16, queue_size: u16) -> usize {
    usize::from(queues) * queue_bytes(queue_size)
}

#[cfg(test)]
#[path = "inflight_tests.rs"]
mod tests;
