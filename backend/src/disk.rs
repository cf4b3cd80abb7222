//! The one disk that all guests see: IO that blocks, syncs, and what is known to be durable.
//!
//! Invariants:
//! 1. All IO of writing guests goes through the one descriptor that holds the image lock; read-only
//!    guests have a descriptor that cannot write.
//! 2. One cache mode for the whole life of the disk: direct and cached IO are never mixed.
//! 3. After a failed sync nobody knows what is on the medium: the disk refuses writes and flushes
//!    from then on (`poisoned`), and the sync is not tried again. Only a sync can poison, and only one runs at a
//!    time: the kernel tells a write-back error once, so two at once would leave one of them believing a lie.
//! 4. A completed write has a sequence number, given before its range is released. All writes up to
//!    `synced_sequence` survive a host crash, and `synced_sequence <= completed_sequence`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};

use crate::dirty::DirtyMap;
use crate::image::Image;
use crate::limits::{MAX_DIRTY_RANGES, ZERO_PIECE_BYTES};
use crate::order::ByteRange;
use crate::record::{Change, Recorder};
use crate::transfer::{AlignedBuffer, BUFFER_ALIGNMENT_BYTES};

/// See the module.
#[derive(Debug)]
pub struct Disk {
    image: Image,
    unmap: bool,
    poisoned: AtomicBool,
    /// Held through each sync.
    syncing: Mutex<()>,
    completed_sequence: AtomicU64,
    synced_sequence: AtomicU64,
    dirty: Option<Mutex<DirtyMap>>,
    recorder: Option<Mutex<Recorder>>,
    syncs: AtomicU64,
}

impl Disk {
    /// The disk on `image`. With `unmap` a discard gives space back; with `track_dirty` reads can be
    /// told which sync they have to wait for; `recorder` is told of every change.
    ///
    /// All of it counts as not synced at first: a process before this one may have been killed.
    #[must_use]
    pub fn new(image: Image, unmap: bool, track_dirty: bool, recorder: Option<Recorder>) -> Self {
        let whole = ByteRange { start: 0, end: image.capacity_bytes() };
        let disk = Self {
            image,
            unmap,
            poisoned: AtomicBool::new(false),
            syncing: Mutex::new(()),
            completed_sequence: AtomicU64::new(0),
            synced_sequence: AtomicU64::new(0),
            dirty: track_dirty.then(|| Mutex::new(DirtyMap::new(MAX_DIRTY_RANGES))),
            recorder: recorder.map(Mutex::new),
            syncs: AtomicU64::new(0),
        };
        disk.give_sequence(whole);
        disk
    }

    /// The image: its size, alignment and cache mode.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Whether space can go back to the host.
    #[must_use]
    pub fn unmaps(&self) -> bool {
        self.unmap
    }

    /// The descriptor for the IO of a guest that may come to write, or of one that may only read.
    #[must_use]
    pub fn file(&self, may_write: bool) -> &File {
        match &self.image.writer {
            Some(writer) if may_write => writer,
            _ => &self.image.reader,
        }
    }

    /// Whether a sync has failed: writes and flushes are refused.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Starts as poisoned, or ends that: the operator's decision.
    pub fn set_poisoned(&self, poisoned: bool) {
        self.poisoned.store(poisoned, Ordering::Release);
    }

    /// Syncs that have succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Notes a write to `range` that has reached the file, or partly so, and returns its sequence number.
    /// Its range is not released yet.
    pub fn note_completed_write(&self, range: ByteRange) -> u64 {
        if let Some(recorder) = &self.recorder {
            let change = Change::Write(self.read_back(range));
            return self.note_recorded(recorder, range, change);
        }
        self.give_sequence(range)
    }

    /// Notes a discard of `range`, like a write.
    pub fn note_discard(&self, range: ByteRange) {
        match &self.recorder {
            Some(recorder) => self.note_recorded(recorder, range, Change::Discard),
            None => self.give_sequence(range),
        };
    }

    /// The log and the sequence agree on which changes a sync covers.
    fn note_recorded(&self, recorder: &Mutex<Recorder>, range: ByteRange, change: Change) -> u64 {
        let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.note(range, change);
        self.give_sequence(range)
    }

    fn give_sequence(&self, range: ByteRange) -> u64 {
        // The number is given under the lock: a sync that covers it finds its range in the map.
        let mut dirty = self.lock_dirty();
        let sequence = self.completed_sequence.fetch_add(1, Ordering::AcqRel) + 1;
        if let Some(dirty) = &mut dirty {
            dirty.note(range, sequence);
        }
        sequence
    }

    /// What is in `range` now; nobody else may change it meanwhile. Zeroes where it cannot be read.
    fn read_back(&self, range: ByteRange) -> Vec<u8> {
        let whole = range.rounded_out(u64::from(self.image.logical_block_bytes()));
        let offset = |at: u64| usize::try_from(at - whole.start).unwrap_or(0);
        let mut buffer = AlignedBuffer::new(offset(whole.end), BUFFER_ALIGNMENT_BYTES);
        if let Err(error) = self.file(true).read_exact_at(buffer.as_mut_slice(), whole.start) {
            log::error!("event=record-failed error=\"{error}\"");
        }
        buffer.as_slice()[offset(range.start)..offset(range.end)].to_vec()
    }

    /// Ends the log of `--record`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish_record(&self) -> io::Result<()> {
        self.lock_recorder().map_or(Ok(()), |mut recorder| recorder.finish())
    }

    /// The sequence number that must be synced before a host crash can take back nothing of what
    /// `range` holds; `None` when that is so already.
    #[must_use]
    pub fn unsynced_sequence(&self, range: ByteRange) -> Option<u64> {
        match self.lock_dirty() {
            Some(dirty) => dirty.highest(range),
            None => Some(self.completed_sequence.load(Ordering::Acquire)).filter(|s| !self.is_synced(*s)),
        }
    }

    /// Whether all writes up to this sequence number survive a host crash.
    #[must_use]
    pub fn is_synced(&self, sequence: u64) -> bool {
        self.synced_sequence.load(Ordering::Acquire) >= sequence
    }

    /// Makes every write completed before the call durable. Blocks.
    ///
    /// # Errors
    /// The first failure poisons the disk; every later call fails at once.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_by(|file| Ok(rustix::fs::fdatasync(file)?))
    }

    /// [`Disk::sync`] with the call that makes the file durable, so that a test can do something meanwhile.
    fn sync_by(&self, make_durable: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_poisoned() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let (covered, recorded) = self.covered_by_a_sync();
        let synced = make_durable(self.file(true)).and_then(|()| self.image.check_whole());
        if let Err(error) = synced {
            self.set_poisoned(true);
            log::error!(
                "event=poisoned image={} error=\"{error}\" writes and flushes are refused from now on",
                self.image.path.display()
            );
            return Err(error);
        }
        if let Some(mut recorder) = self.lock_recorder() {
            recorder.flushed(recorded)?;
        }
        self.synced_sequence.fetch_max(covered, Ordering::AcqRel);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        if let Some(mut dirty) = self.lock_dirty() {
            dirty.forget_synced(covered);
        }
        Ok(())
    }

    /// Gives the space of `range` back, where that is wanted and possible. Blocks.
    ///
    /// # Errors
    /// When the host fails to do it; not being able to is none, a discard is a hint.
    pub fn discard(&self, range: ByteRange) -> io::Result<()> {
        let whole = range.rounded_in(self.image.erase_block_bytes);
        if !self.unmap || whole.is_empty() {
            return Ok(());
        }
        match self.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, whole) {
            Err(error) if is_unsupported(&error) => Ok(()),
            other => other,
        }
    }

    /// Makes `range` read as zeroes; with `unmap` its space may go back to the host. Blocks.
    ///
    /// # Errors
    /// When neither the file system nor writing zeroes does it.
    pub fn write_zeroes(&self, range: ByteRange, unmap: bool) -> io::Result<()> {
        let whole = range.rounded_in(self.image.erase_block_bytes);
        if whole.is_empty() {
            return self.write_zero_bytes(range);
        }
        let flags = if unmap && self.unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match self.fallocate(flags | FallocateFlags::KEEP_SIZE, whole) {
            Err(error) if is_unsupported(&error) => return self.write_zero_bytes(range),
            other => other?,
        }
        self.write_zero_bytes(ByteRange { end: whole.start, ..range })?;
        self.write_zero_bytes(ByteRange { start: whole.end, ..range })
    }

    fn fallocate(&self, flags: FallocateFlags, range: ByteRange) -> io::Result<()> {
        Ok(fallocate(self.file(true), flags, range.start, range.end - range.start)?)
    }

    /// Zeroes through an aligned buffer: direct IO takes nothing less than logical blocks.
    fn write_zero_bytes(&self, range: ByteRange) -> io::Result<()> {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start - start % ZERO_PIECE_BYTES + ZERO_PIECE_BYTES);
            self.zero_piece(ByteRange { start, end })?;
            start = end;
        }
        Ok(())
    }

    fn zero_piece(&self, piece: ByteRange) -> io::Result<()> {
        let whole = piece.rounded_out(u64::from(self.image.logical_block_bytes()));
        let offset = |at: u64| usize::try_from(at - whole.start).map_err(io::Error::other);
        let mut buffer = AlignedBuffer::new(offset(whole.end)?, BUFFER_ALIGNMENT_BYTES);
        if whole != piece {
            self.file(true).read_exact_at(buffer.as_mut_slice(), whole.start)?;
        }
        buffer.as_mut_slice()[offset(piece.start)?..offset(piece.end)?].fill(0);
        self.file(true).write_all_at(buffer.as_slice(), whole.start)
    }

    /// The sequence number, and the recorded changes, that a sync starting now covers.
    fn covered_by_a_sync(&self) -> (u64, u64) {
        let recorder = self.lock_recorder();
        let recorded = recorder.as_ref().map_or(0, |recorder| recorder.covered());
        (self.completed_sequence.load(Ordering::Acquire), recorded)
    }

    fn lock_recorder(&self) -> Option<MutexGuard<'_, Recorder>> {
        self.recorder.as_ref().map(|recorder| recorder.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock_dirty(&self) -> Option<MutexGuard<'_, DirtyMap>> {
        self.dirty.as_ref().map(|dirty| dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
