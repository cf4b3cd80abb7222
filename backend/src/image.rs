//! The image before it is a disk: created, opened, locked and measured.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FallocateFlags, FileType, StatxFlags, fallocate, statx};
use rustix::io::{Errno, retry_on_intr};
use thiserror::Error;

use crate::error::StartError;
use crate::limits::{LOCK_WAIT_SECONDS, SECTOR_BYTES};
use crate::lock::{holder, lock_image, lock_reader, retry_interval};
use crate::places::check_folder;
use crate::transfer::Alignment;

/// Alignment that direct IO gets where the kernel does not tell what it needs.
const UNKNOWN_ALIGNMENT_BYTES: u32 = 4096;

/// `f_type` of tmpfs (`linux/magic.h`).
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Whether IO goes through the host's page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheMode {
    /// `O_DIRECT`: the guests' own caches are the only ones.
    Direct,
    /// The host's page cache.
    Page,
}

impl CacheMode {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Page => "page",
        }
    }
}

/// Why the disk cannot have a size.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ResizeError {
    #[error("a disk can only grow: it has {capacity} bytes, more than {bytes}")]
    Smaller { bytes: u64, capacity: u64 },
    #[error("{bytes} bytes are not a multiple of {unit}")]
    Odd { bytes: u64, unit: u64 },
    #[error(
        "the image has {present} bytes now, and not {bytes}; a device is resized first, and then adopted at its size"
    )]
    Present { bytes: u64, present: u64 },
    #[error("the image is open for reading only")]
    NoWriter,
    #[error("the image cannot be made longer: {0}")]
    Io(#[from] io::Error),
}

/// How to open the image.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// Regular file or block device.
    pub path: PathBuf,
    /// Size for a file that does not exist yet, in bytes.
    pub create_bytes: Option<u64>,
    /// Whether any guest may ever write.
    pub writable: bool,
    /// The cache mode that is wanted; direct falls back to the page cache where it is refused.
    pub cache: CacheMode,
}

/// An open and locked image.
#[derive(Debug)]
pub struct Image {
    /// Its path, for messages.
    pub path: PathBuf,
    /// A descriptor that cannot write.
    pub reader: File,
    /// The descriptor that holds the lock and does all IO of writing guests, if any may write.
    pub writer: Option<File>,
    /// Size in bytes, a multiple of the logical block size. It only grows.
    capacity_bytes: AtomicU64,
    /// The cache mode in force.
    pub cache: CacheMode,
    /// What the disk demands of a request that goes to it as it is.
    pub alignment: Alignment,
    /// Whether it is on a file system that keeps everything in memory.
    pub is_in_memory: bool,
    /// Smallest unit that can be discarded or zeroed by the host, in bytes.
    pub erase_block_bytes: u64,
}

impl Image {
    /// Creates the image if asked, opens and locks it.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left behind, but a created image once it is complete.
    pub fn open(options: &ImageOptions) -> Result<Self, StartError> {
        let path = &options.path;
        let failed = |error| StartError::Image { path: path.clone(), doing: "cannot open it", error };
        find_or_create(options)?;
        let cache = usable_cache_mode(path, options.cache).map_err(failed)?;
        let reader = open_file(path, cache, false).map_err(failed)?;
        let writer = options.writable.then(|| open_writer(path, cache)).transpose()?;
        if let Some(writer) = &writer {
            check_same_file(&reader, writer).map_err(failed)?;
        }
        lock_image(writer.as_ref().unwrap_or(&reader), path, writer.is_some())?;
        if writer.is_some() {
            lock_reader(&reader, path)?;
        }

        let capacity_bytes = (&reader).seek(SeekFrom::End(0)).map_err(failed)?;
        let image = Self::measured(path, reader, writer, cache, capacity_bytes);
        let unit = image.alignment.offset_bytes.max(SECTOR_BYTES);
        if capacity_bytes == 0 {
            return Err(StartError::EmptyImage { path: path.clone() });
        }
        if !capacity_bytes.is_multiple_of(unit) {
            return Err(StartError::OddSize { path: path.clone(), bytes: capacity_bytes, unit });
        }
        Ok(image)
    }

    /// The image of a process whose place this one takes: its descriptors, locks included, and what the disk's size is.
    ///
    /// # Errors
    /// When the path leads to another file by now.
    pub fn adopted(
        path: &Path,
        reader: File,
        writer: Option<File>,
        cache: CacheMode,
        capacity_bytes: u64,
    ) -> Result<Self, String> {
        let at_path = fs::metadata(path).map(|m| (m.st_dev(), m.st_ino()));
        let held = reader.metadata().map(|m| (m.st_dev(), m.st_ino()));
        match (at_path, held) {
            (Ok(at_path), Ok(held)) if at_path == held => {}
            (Ok(_), Ok(_)) => return Err(format!("image {} is not the one that is served", path.display())),
            (Err(error), _) | (_, Err(error)) => return Err(format!("image {}: {error}", path.display())),
        }
        Ok(Self::measured(path, reader, writer, cache, capacity_bytes))
    }

    fn measured(
        path: &Path,
        reader: File,
        writer: Option<File>,
        cache: CacheMode,
        capacity_bytes: u64,
    ) -> Self {
        let alignment = match cache {
            CacheMode::Page => Alignment::NONE,
            CacheMode::Direct => direct_alignment(&reader),
        };
        let erase_block_bytes =
            rustix::fs::ioctl_blksszget(&reader).map_or(SECTOR_BYTES, |bytes| SECTOR_BYTES.max(bytes.into()));
        let is_in_memory = rustix::fs::fstatfs(&reader).is_ok_and(|system| system.f_type == TMPFS_MAGIC);
        let (path, capacity_bytes) = (path.to_owned(), AtomicU64::new(capacity_bytes));
        Self { path, reader, writer, capacity_bytes, cache, alignment, is_in_memory, erase_block_bytes }
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes.load(Ordering::Acquire)
    }

    /// Makes the file `bytes` long, with its new part allocated where the file system can, or looks whether the device is; the disk
    /// stays as it is until [`Image::adopt`].
    ///
    /// # Errors
    /// See [`ResizeError`].
    pub fn lengthen(&self, bytes: u64) -> Result<(), ResizeError> {
        let writer = self.writer.as_ref().ok_or(ResizeError::NoWriter)?;
        let (capacity, unit) = (self.capacity_bytes(), self.alignment.offset_bytes.max(SECTOR_BYTES));
        if bytes < capacity {
            return Err(ResizeError::Smaller { bytes, capacity });
        }
        if !bytes.is_multiple_of(unit) {
            return Err(ResizeError::Odd { bytes, unit });
        }
        let is_file = writer.metadata()?.file_type().is_file();
        let present = { writer }.seek(SeekFrom::End(0))?;
        match is_file {
            true if present < bytes => allocate(writer, present, bytes),
            true if present == bytes => Ok(()),
            false if present == bytes => Ok(()),
            _ => Err(ResizeError::Present { bytes, present }),
        }
    }

    /// Lets guests use the file or device up to `bytes`, which it has.
    pub fn adopt(&self, bytes: u64) {
        self.capacity_bytes.fetch_max(bytes, Ordering::AcqRel);
    }

    /// Checks that nobody has cut the file off: what was on it is lost then, and a write that made it longer again
    /// would put zeroes there. Block devices cannot be cut.
    ///
    /// # Errors
    /// When the file is shorter than the disk.
    pub fn check_whole(&self) -> io::Result<()> {
        // No times: after these were asked for, Linux (6.13) gives the next write a time of its own, which has to be kept, too, and
        // a commit takes nearly a third longer.
        let (flags, wanted) = (AtFlags::EMPTY_PATH, StatxFlags::TYPE | StatxFlags::SIZE);
        let told = statx(&self.reader, c"", flags, wanted)?;
        let (bytes, capacity) = (told.stx_size, self.capacity_bytes());
        if FileType::from_raw_mode(told.stx_mode.into()) == FileType::RegularFile && bytes < capacity {
            return Err(io::Error::other(format!(
                "the image was cut off: it has {bytes} bytes of {capacity}"
            )));
        }
        Ok(())
    }

    /// The logical block size to offer, in bytes.
    #[must_use]
    pub fn logical_block_bytes(&self) -> u32 {
        u32::try_from(self.alignment.offset_bytes.max(SECTOR_BYTES)).unwrap_or(UNKNOWN_ALIGNMENT_BYTES)
    }
}

/// Leaves an image that can be opened at the path, or says why not.
fn find_or_create(options: &ImageOptions) -> Result<(), StartError> {
    let path = &options.path;
    let kind = match fs::metadata(path) {
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

/// As `--create` makes a file: a guest must not learn only when it writes that the host has no room. What a file system cannot
/// allocate it gets when it is written.
fn allocate(file: &File, present: u64, bytes: u64) -> Result<(), ResizeError> {
    let told = retry_on_intr(|| fallocate(file, FallocateFlags::empty(), present, bytes - present));
    match told {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => {
            log::warn!(
                "event=not-allocated bytes={bytes} the file system gets room for them when they are written"
            );
            Ok(file.set_len(bytes)?)
        }
        Err(error) => {
            // What it has got up to there is of no use.
            file.set_len(present)?;
            Err(ResizeError::Io(error.into()))
        }
    }
}

/// A new, fully allocated file of `bytes` zero bytes, durable when this returns. It gets its name only
/// when it is complete; if another process was faster, that one's file stays.
fn create_image(path: &Path, bytes: u64) -> Result<(), StartError> {
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(StartError::OddSize { path: path.into(), bytes, unit: SECTOR_BYTES });
    }
    check_folder("image", path)?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let unfinished = PathBuf::from(name);
    let made = fill(&unfinished, bytes).and_then(|()| match fs::hard_link(&unfinished, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let cleaned = fs::remove_file(&unfinished);
    made.and(cleaned).and_then(|()| sync_folder(path)).map_err(|error| StartError::Image {
        path: path.into(),
        doing: "cannot create it",
        error,
    })
}

fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let len = i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) } {
        0 => file.sync_all(),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Direct where it is wanted and not refused.
fn usable_cache_mode(path: &Path, wanted: CacheMode) -> io::Result<CacheMode> {
    match open_file(path, wanted, false) {
        Err(error) if wanted == CacheMode::Direct && error.raw_os_error() == Some(libc::EINVAL) => {
            log::warn!("event=no-direct-io image={} using=\"page cache\"", path.display());
            Ok(CacheMode::Page)
        }
        other => other.map(|_| wanted),
    }
}

fn open_file(path: &Path, cache: CacheMode, write: bool) -> io::Result<File> {
    let mut flags = if cache == CacheMode::Direct { libc::O_DIRECT } else { 0 };
    if write && fs::metadata(path)?.file_type().is_block_device() {
        flags |= libc::O_EXCL;
    }
    OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)
}

/// Opens for writing; a block device that another holds is waited for like a lock.
fn open_writer(path: &Path, cache: CacheMode) -> Result<File, StartError> {
    let deadline = Instant::now() + Duration::from_secs(LOCK_WAIT_SECONDS);
    loop {
        match open_file(path, cache, true) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(retry_interval());
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let holder = File::open(path).map_or_else(|_| "another process".into(), |file| holder(&file));
                return Err(StartError::Locked { path: path.into(), holder });
            }
            other => {
                return other.map_err(|error| StartError::Image {
                    path: path.into(),
                    doing: "cannot open it for writing",
                    error,
                });
            }
        }
    }
}

/// The path may have been given to another file between two opens.
fn check_same_file(one: &File, other: &File) -> io::Result<()> {
    let identity = |file: &File| file.metadata().map(|m| (m.st_dev(), m.st_ino()));
    if identity(one)? == identity(other)? {
        return Ok(());
    }
    Err(io::Error::other("it was replaced meanwhile"))
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
