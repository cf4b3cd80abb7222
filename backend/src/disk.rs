//! The one file behind the disk: opened, locked, measured, synced.
//!
//! Invariants:
//! 1. All IO of writing guests goes through the one descriptor that holds the image lock; read-only
//!    guests have a descriptor that cannot write.
//! 2. One cache mode for the whole life of the disk: direct and cached IO are never mixed.
//! 3. After a failed sync nobody knows what is on the medium: the disk refuses writes and flushes
//!    from then on (`poisoned`), and the sync is not tried again.
//! 4. A completed write has a sequence number, given before its range is released. All writes up to
//!    `synced_sequence` survive a host crash, and `synced_sequence <= completed_sequence`.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags, fallocate, statx};

use crate::dirty::DirtyMap;
use crate::error::StartError;
use crate::limits::{MAX_DIRTY_RANGES, SECTOR_BYTES};
use crate::lock::lock_image;
use crate::order::ByteRange;
use crate::transfer::{AlignedBuffer, Alignment, BUFFER_ALIGNMENT_BYTES};

/// Alignment that direct IO gets where the kernel does not tell what it needs.
const UNKNOWN_ALIGNMENT_BYTES: u32 = 4096;

/// Zeroes written at once where the file system cannot zero by itself.
const ZERO_PIECE_BYTES: u64 = 1 << 20;

/// Whether IO goes through the host's page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheMode {
    /// `O_DIRECT`: the guests' own caches are the only ones.
    Direct,
    /// The host's page cache.
    Page,
}

/// How to open the image.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Regular file or block device.
    pub path: PathBuf,
    /// Size for a file that does not exist yet, in bytes.
    pub create_bytes: Option<u64>,
    /// Whether any guest may ever write.
    pub writable: bool,
    /// The cache mode that is wanted; direct falls back to the page cache where it is refused.
    pub cache: CacheMode,
    /// Whether DISCARD gives space back.
    pub unmap: bool,
    /// Whether any guest has durable reads, so that dirty ranges must be known.
    pub track_dirty: bool,
}

/// The open image.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    reader: File,
    writer: Option<File>,
    capacity_bytes: u64,
    cache: CacheMode,
    alignment: Alignment,
    unmap: bool,
    poisoned: AtomicBool,
    poison_is_news: AtomicBool,
    completed_sequence: AtomicU64,
    synced_sequence: AtomicU64,
    dirty: Option<Mutex<DirtyMap>>,
    syncs: AtomicU64,
}

impl Disk {
    /// Creates the image if asked, opens and locks it.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left behind, but a created image once it is complete.
    pub fn open(options: &DiskOptions) -> Result<Self, StartError> {
        let path = &options.path;
        find_or_create(options)?;
        let (mut cache, mut reader) = (options.cache, open_file(path, options.cache, false));
        if cache == CacheMode::Direct && refuses_direct(&reader) {
            log::warn!("event=no-direct-io image={} using=\"page cache\"", path.display());
            cache = CacheMode::Page;
            reader = open_file(path, cache, false);
        }
        let failed = |error| StartError::Image { path: path.clone(), doing: "cannot open it", error };
        let reader = reader.map_err(failed)?;
        let writer = options.writable.then(|| open_file(path, cache, true)).transpose().map_err(failed)?;
        lock_image(writer.as_ref().unwrap_or(&reader), path, writer.is_some())?;

        let capacity_bytes = size_bytes(&reader, path)?;
        let alignment = match cache {
            CacheMode::Page => Alignment::NONE,
            CacheMode::Direct => direct_alignment(&reader),
        };
        let unit = alignment.offset_bytes.max(SECTOR_BYTES);
        if capacity_bytes == 0 {
            return Err(StartError::EmptyImage { path: path.clone() });
        }
        if !capacity_bytes.is_multiple_of(unit) {
            return Err(StartError::OddSize { path: path.clone(), bytes: capacity_bytes, unit });
        }
        Ok(Self {
            path: path.clone(),
            reader,
            writer,
            capacity_bytes,
            cache,
            alignment,
            unmap: options.unmap,
            poisoned: AtomicBool::new(false),
            poison_is_news: AtomicBool::new(false),
            completed_sequence: AtomicU64::new(0),
            synced_sequence: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            dirty: options.track_dirty.then(|| Mutex::new(DirtyMap::new(MAX_DIRTY_RANGES))),
        })
    }

    /// Size of the disk in bytes, a multiple of the logical block size.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// The cache mode in force.
    #[must_use]
    pub fn cache(&self) -> CacheMode {
        self.cache
    }

    /// What the disk demands of a request that goes to it as it is.
    #[must_use]
    pub fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// The logical block size to offer, in bytes.
    #[must_use]
    pub fn logical_block_bytes(&self) -> u32 {
        u32::try_from(self.alignment.offset_bytes.max(SECTOR_BYTES)).unwrap_or(UNKNOWN_ALIGNMENT_BYTES)
    }

    /// The descriptor for the IO of a guest that may write, or of one that may only read.
    #[must_use]
    pub fn file(&self, may_write: bool) -> &File {
        match &self.writer {
            Some(writer) if may_write => writer,
            _ => &self.reader,
        }
    }

    /// Whether a sync has failed: writes and flushes are refused.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Syncs that have succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Whether a sync has failed since the last call: then that must be kept.
    #[must_use]
    pub fn take_poison_news(&self) -> bool {
        self.poison_is_news.swap(false, Ordering::AcqRel)
    }

    /// Starts as poisoned, or ends that: the operator's decision.
    pub fn set_poisoned(&self, poisoned: bool) {
        self.poisoned.store(poisoned, Ordering::Release);
    }

    /// Whether dirty ranges are known, so that reads can wait for them to be synced.
    #[must_use]
    pub fn tracks_dirty(&self) -> bool {
        self.dirty.is_some()
    }

    /// Notes a write to `range` that has reached the file, or partly so; its range is not released yet.
    pub fn note_completed_write(&self, range: ByteRange) {
        let Some(dirty) = &self.dirty else {
            self.completed_sequence.fetch_add(1, Ordering::AcqRel);
            return;
        };
        // The number is given under the lock: a sync that covers it finds its range in the map.
        let mut dirty = dirty.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = self.completed_sequence.fetch_add(1, Ordering::AcqRel) + 1;
        dirty.note(range, sequence);
    }

    /// The sequence number that must be synced before a host crash can take back nothing of what
    /// `range` holds; `None` when that is so already.
    #[must_use]
    pub fn unsynced_sequence(&self, range: ByteRange) -> Option<u64> {
        self.lock_dirty()?.highest(range)
    }

    /// Whether all writes up to this sequence number survive a host crash.
    #[must_use]
    pub fn is_synced(&self, sequence: u64) -> bool {
        self.synced_sequence.load(Ordering::Acquire) >= sequence
    }

    fn lock_dirty(&self) -> Option<MutexGuard<'_, DirtyMap>> {
        self.dirty.as_ref().map(|dirty| dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes every write completed before the call durable. Blocks.
    ///
    /// # Errors
    /// The first failure poisons the disk; every later call fails at once.
    pub fn sync(&self) -> io::Result<()> {
        if self.is_poisoned() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let covered = self.completed_sequence.load(Ordering::Acquire);
        let file = self.file(true);
        if let Err(error) = rustix::fs::fdatasync(file) {
            self.poison_is_news.store(true, Ordering::Release);
            self.poisoned.store(true, Ordering::Release);
            log::error!(
                "event=poisoned image={} error=\"{error}\" writes and flushes are refused from now on",
                self.path.display()
            );
            return Err(error.into());
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
        if !self.unmap {
            return Ok(());
        }
        match self.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range) {
            Err(error) if is_unsupported(&error) => Ok(()),
            other => other,
        }
    }

    /// Makes `range` read as zeroes; with `unmap` its space may go back to the host. Blocks.
    ///
    /// # Errors
    /// When neither the file system nor writing zeroes does it.
    pub fn write_zeroes(&self, range: ByteRange, unmap: bool) -> io::Result<()> {
        let flags = if unmap && self.unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match self.fallocate(flags | FallocateFlags::KEEP_SIZE, range) {
            Err(error) if is_unsupported(&error) => self.write_zero_bytes(range),
            other => other,
        }
    }

    fn fallocate(&self, flags: FallocateFlags, range: ByteRange) -> io::Result<()> {
        Ok(fallocate(self.file(true), flags, range.start, range.end - range.start)?)
    }

    /// For file systems that know neither call: zeroes, through an aligned buffer because direct IO
    /// takes nothing less than logical blocks.
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
        let whole = piece.rounded_out(u64::from(self.logical_block_bytes()));
        let offset = |at: u64| usize::try_from(at - whole.start).map_err(io::Error::other);
        let mut buffer = AlignedBuffer::new(offset(whole.end)?, BUFFER_ALIGNMENT_BYTES);
        if whole != piece {
            self.file(true).read_exact_at(buffer.as_mut_slice(), whole.start)?;
        }
        buffer.as_mut_slice()[offset(piece.start)?..offset(piece.end)?].fill(0);
        self.file(true).write_all_at(buffer.as_slice(), whole.start)
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

/// Leaves an image that can be opened at the path, or says why not.
fn find_or_create(options: &DiskOptions) -> Result<(), StartError> {
    let path = &options.path;
    let kind = match std::fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let no_image = || StartError::NoImage { path: path.clone() };
            return create_image(path, options.create_bytes.ok_or_else(no_image)?);
        }
        Err(error) => {
            return Err(StartError::Image { path: path.clone(), doing: "cannot open it", error });
        }
    };
    let kind = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a character device",
    };
    Err(StartError::NotAnImage { path: path.clone(), kind })
}

/// A new, fully allocated file of `bytes` zero bytes, durable when this returns.
fn create_image(path: &Path, bytes: u64) -> Result<(), StartError> {
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(StartError::OddSize { path: path.into(), bytes, unit: SECTOR_BYTES });
    }
    let failed = |error| StartError::Image { path: path.into(), doing: "cannot create it", error };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let filled = allocate(&file, bytes).and_then(|()| file.sync_all()).and_then(|()| sync_folder(path));
    filled.map_err(|error| {
        // A half-made image would pass for a smaller one at the next start.
        if let Err(left) = std::fs::remove_file(path) {
            log::error!("event=left-behind image={} error=\"{left}\"", path.display());
        }
        failed(error)
    })
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let len = i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn open_file(path: &Path, cache: CacheMode, write: bool) -> io::Result<File> {
    let metadata = std::fs::metadata(path)?;
    let kind = metadata.file_type();
    let mut flags = if cache == CacheMode::Direct { libc::O_DIRECT } else { 0 };
    if kind.is_block_device() && write {
        flags |= libc::O_EXCL;
    }
    OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)
}

fn refuses_direct(opened: &io::Result<File>) -> bool {
    matches!(opened, Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}

fn size_bytes(mut file: &File, path: &Path) -> Result<u64, StartError> {
    file.seek(SeekFrom::End(0)).map_err(|error| StartError::Image {
        path: path.into(),
        doing: "cannot measure it",
        error,
    })
}

/// What direct IO on `file` needs: from the kernel (6.1 or newer), else the logical block size,
/// else [`UNKNOWN_ALIGNMENT_BYTES`].
fn direct_alignment(file: &File) -> Alignment {
    let told = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .ok()
        .filter(|s| s.stx_dio_offset_align != 0)
        .map(|s| (s.stx_dio_mem_align, s.stx_dio_offset_align));
    let block = rustix::fs::ioctl_blksszget(file).unwrap_or(UNKNOWN_ALIGNMENT_BYTES);
    let (memory, offset) = told.unwrap_or((block, block));
    Alignment {
        memory_bytes: usize::try_from(memory.max(1)).unwrap_or(1),
        offset_bytes: u64::from(offset.max(1)),
    }
}
