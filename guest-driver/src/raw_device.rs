//! A block device or a file as a [`Device`], with direct IO: a page cache would hide what the other guests write.
//!
//! Invariant: a block device is never read or written through the page cache.

use crate::device::{AlignedBuf, Device, DeviceResult, check_range, write_zeroes_plainly};
use crate::error::{DeviceError, DeviceOp, Error, Result};
use crate::layout::BLOCK_BYTES_USIZE;
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

/// An open device.
#[derive(Debug)]
pub struct RawDevice {
    file: File,
    size_bytes: u64,
    is_direct: bool,
}

impl RawDevice {
    /// Opens a device for reading.
    ///
    /// # Errors
    /// [`Error::CannotOpen`] names the device.
    pub fn open_reader(path: &Path) -> Result<Self> {
        Self::open(path, OFlags::RDONLY).map_err(|errno| cannot_open(path, errno))
    }

    /// Opens a device for the one writing process of this machine (`O_EXCL` on a block device, and `flock`).
    ///
    /// # Errors
    /// [`Error::Busy`] when another process has it, [`Error::ReadOnly`] when the disk or the permissions forbid writing.
    pub fn open_writer(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let is_block = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
        let exclusive = if is_block { OFlags::EXCL } else { OFlags::empty() };
        let device = Self::open(path, OFlags::RDWR | exclusive).map_err(|errno| match errno {
            Errno::BUSY => Error::Busy { name: name.clone() },
            Errno::ROFS | Errno::ACCESS | Errno::PERM => {
                Error::ReadOnly { name: name.clone(), reason: std::io::Error::from(errno).to_string() }
            }
            errno => cannot_open(path, errno),
        })?;
        if is_block && is_read_only(&device.file) {
            let reason = "the disk is read-only here".into();
            return Err(Error::ReadOnly { name, reason });
        }
        if !is_block && !lock_like_qemu(&device.file).map_err(|errno| cannot_open(path, errno))? {
            return Err(Error::Busy { name });
        }
        match rustix::fs::flock(&device.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(device),
            Err(Errno::WOULDBLOCK) => Err(Error::Busy { name }),
            Err(errno) => Err(cannot_open(path, errno)),
        }
    }

    fn open(path: &Path, flags: OFlags) -> std::result::Result<Self, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        let (fd, is_direct) = match rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty()) {
            Ok(fd) => (fd, true),
            // A file on a file system without direct IO (tmpfs): nobody else's writes bypass its page cache.
            Err(Errno::INVAL) if std::fs::metadata(path).is_ok_and(|meta| meta.is_file()) => {
                (rustix::fs::open(path, flags, Mode::empty())?, false)
            }
            Err(errno) => return Err(errno),
        };
        let size_bytes = rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0))?;
        Ok(Self { file: File::from(fd), size_bytes, is_direct })
    }

    /// Another handle of the same opening, with its locks.
    ///
    /// # Errors
    /// [`Error::CannotOpen`] when there are no descriptors left.
    pub fn try_clone(&self) -> Result<Self> {
        let file = self.file.try_clone();
        let file =
            file.map_err(|source| Error::CannotOpen { name: "the device again".to_owned(), source })?;
        Ok(Self { file, size_bytes: self.size_bytes, is_direct: self.is_direct })
    }

    /// Whether the page cache is bypassed.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    fn is_aligned(&self, buf: &[u8]) -> bool {
        !self.is_direct || buf.as_ptr().addr().is_multiple_of(BLOCK_BYTES_USIZE)
    }
}

/// Bytes of an image that QEMU and the host daemon lock to write it: "I read", "I write", "nobody else may write".
const LOCKED_BYTES: [i64; 3] = [100, 101, 201];

/// Takes the locks of a writer of an image file as QEMU does (OFD read locks on single bytes), so that a store is not written
/// while a virtual machine or the host daemon has it. False when another has it.
fn lock_like_qemu(file: &File) -> std::result::Result<bool, Errno> {
    const READ_LOCK: i16 = 0;
    const WRITE_LOCK: i16 = 1;
    const UNLOCKED: i16 = 2;
    for byte in LOCKED_BYTES.into_iter().skip(1) {
        let mut lock = byte_lock(WRITE_LOCK, byte);
        // SAFETY: the descriptor is open and `lock` is a valid `struct flock` that the call fills in.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
            return Err(last_errno());
        }
        if lock.l_type != UNLOCKED {
            return Ok(false);
        }
    }
    for byte in LOCKED_BYTES {
        let lock = byte_lock(READ_LOCK, byte);
        // SAFETY: as above; the call only reads `lock`.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } != 0 {
            return Err(last_errno());
        }
    }
    Ok(true)
}

fn byte_lock(kind: i16, byte: i64) -> libc::flock {
    libc::flock { l_type: kind, l_whence: 0, l_start: byte, l_len: 1, l_pid: 0 }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// `BLKROGET` of linux/fs.h, `_IO(0x12, 94)`.
const BLKROGET: libc::Ioctl = 0x125e;

/// Whether the kernel refuses writes to this block device. Opening a read-only virtio disk for writing succeeds.
fn is_read_only(file: &File) -> bool {
    let mut flag: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the request writes one `int` to a place of that type.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET, &raw mut flag) };
    answer == 0 && flag != 0
}

fn cannot_open(path: &Path, errno: Errno) -> Error {
    Error::CannotOpen { name: path.display().to_string(), source: errno.into() }
}

impl Device for RawDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        let len_bytes = buf.len();
        check_range(DeviceOp::Read, self.size_bytes, offset_bytes, len_bytes)?;
        let done = if self.is_aligned(buf) {
            self.file.read_exact_at(buf, offset_bytes)
        } else {
            let mut aligned = AlignedBuf::zeroed(len_bytes / BLOCK_BYTES_USIZE);
            let done = self.file.read_exact_at(aligned.as_mut_slice(), offset_bytes);
            buf.copy_from_slice(aligned.as_slice());
            done
        };
        done.map_err(|source| DeviceError { op: DeviceOp::Read, offset_bytes, len_bytes, source })
    }

    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        let len_bytes = buf.len();
        check_range(DeviceOp::Write, self.size_bytes, offset_bytes, len_bytes)?;
        let done = if self.is_aligned(buf) {
            self.file.write_all_at(buf, offset_bytes)
        } else {
            let mut aligned = AlignedBuf::zeroed(len_bytes / BLOCK_BYTES_USIZE);
            aligned.as_mut_slice().copy_from_slice(buf);
            self.file.write_all_at(aligned.as_slice(), offset_bytes)
        };
        done.map_err(|source| DeviceError { op: DeviceOp::Write, offset_bytes, len_bytes, source })
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        let is_inside = offset_bytes.checked_add(len_bytes).is_some_and(|end| end <= self.size_bytes);
        let zero =
            |how| rustix::fs::fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset_bytes, len_bytes);
        // The first takes no room. Where the disk or the file system cannot, plain writes do, or say what is wrong.
        let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
        if is_inside && ways.into_iter().any(|how| zero(how).is_ok()) {
            return Ok(());
        }
        write_zeroes_plainly(self, offset_bytes, len_bytes)
    }

    fn flush(&self) -> DeviceResult<()> {
        rustix::fs::fdatasync(&self.file).map_err(|errno| DeviceError {
            op: DeviceOp::Flush,
            offset_bytes: 0,
            len_bytes: 0,
            source: errno.into(),
        })
    }
}
