//! A block device or a file as a [`Device`], with direct IO: a page cache would hide what the other guests write.
//!
//! Invariant: a block device is never read or written through the page cache.

use crate::aio::{Aio, Direction, Flight, Unfinished};
use crate::device::{
    AlignedBuf, BlockRead, BlockWrite, Device, DeviceResult, check_range, write_zeroes_plainly,
};
use crate::error::{DeviceError, DeviceOp, Error, Result};
use crate::image_lock::{last_errno, lock_like_qemu};
use crate::layout::BLOCK_BYTES_USIZE;
use crate::throttle::Throttle;
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// An open device.
#[derive(Debug)]
pub struct RawDevice {
    file: File,
    /// As it was measured last: the device may have grown since.
    size_bytes: AtomicU64,
    is_direct: bool,
    aio: Aio,
    throttle: Option<Throttle>,
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
        let kind = std::fs::metadata(path).map(|meta| meta.file_type());
        if kind.is_ok_and(|kind| !kind.is_block_device() && !kind.is_file()) {
            return Err(Errno::NOTBLK); // opening a pipe would wait for ever
        }
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
        Ok(Self {
            file: File::from(fd),
            size_bytes: AtomicU64::new(size_bytes),
            is_direct,
            aio: Aio::default(),
            throttle: None,
        })
    }

    /// Reads at most so many MiB a second from now on; `None` = no limit. Writes are not held back.
    #[must_use]
    pub fn throttled(self, mib_per_second: Option<u64>) -> Self {
        Self { throttle: mib_per_second.map(Throttle::new), ..self }
    }

    /// Another handle of the same opening, with its locks and without a limit.
    ///
    /// # Errors
    /// [`Error::CannotOpen`] when there are no descriptors left.
    pub fn try_clone(&self) -> Result<Self> {
        let file = self.file.try_clone();
        let file =
            file.map_err(|source| Error::CannotOpen { name: "the device again".to_owned(), source })?;
        Ok(Self {
            file,
            size_bytes: AtomicU64::new(self.measure()),
            is_direct: self.is_direct,
            aio: Aio::default(),
            throttle: None,
        })
    }

    /// Whether the page cache is bypassed.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Begins transfers at the same time. With a page cache there is nothing to wait for.
    fn begin(&self, direction: Direction) -> Option<Flight<'_>> {
        if self.is_direct { self.aio.begin(&self.file, direction) } else { None }
    }

    fn measure(&self) -> u64 {
        if let Ok(size_bytes) = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0)) {
            self.size_bytes.store(size_bytes, Ordering::Relaxed);
        }
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// The size, measured again where the transfer would not fit.
    fn size_for(&self, offset_bytes: u64, len_bytes: usize) -> u64 {
        let known = self.size_bytes.load(Ordering::Relaxed);
        let end = offset_bytes.saturating_add(len_bytes as u64);
        if end <= known { known } else { self.measure() }
    }

    fn is_aligned(&self, buf: &[u8]) -> bool {
        !self.is_direct || buf.as_ptr().addr().is_multiple_of(BLOCK_BYTES_USIZE)
    }
}

/// `BLKROGET` of linux/fs.h, `_IO(0x12, 94)`.
const BLKROGET: libc::Ioctl = 0x125e;

/// `BLKDISCARD` of linux/fs.h, `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

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

/// The error of a transfer that failed. One that is only short, or that the kernel did not take, is made again, alone.
fn failure(op: DeviceOp, unfinished: Unfinished, offset_bytes: u64, len_bytes: usize) -> DeviceResult<()> {
    let Some(code) = unfinished.result.checked_neg().filter(|code| *code > 0) else { return Ok(()) };
    let code = i32::try_from(code).unwrap_or(libc::EIO);
    Err(DeviceError { op, offset_bytes, len_bytes, source: std::io::Error::from_raw_os_error(code) })
}

impl Device for RawDevice {
    fn size_bytes(&self) -> u64 {
        self.measure()
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        let len_bytes = buf.len();
        check_range(DeviceOp::Read, self.size_for(offset_bytes, len_bytes), offset_bytes, len_bytes)?;
        if let Some(throttle) = &self.throttle {
            throttle.wait(len_bytes);
        }
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
        check_range(DeviceOp::Write, self.size_for(offset_bytes, len_bytes), offset_bytes, len_bytes)?;
        let done = if self.is_aligned(buf) {
            self.file.write_all_at(buf, offset_bytes)
        } else {
            let mut aligned = AlignedBuf::zeroed(len_bytes / BLOCK_BYTES_USIZE);
            aligned.as_mut_slice().copy_from_slice(buf);
            self.file.write_all_at(aligned.as_slice(), offset_bytes)
        };
        done.map_err(|source| DeviceError { op: DeviceOp::Write, offset_bytes, len_bytes, source })
    }

    fn write_many<'a>(&self, writes: &mut dyn Iterator<Item = BlockWrite<'a>>) -> DeviceResult<()> {
        let Some(mut flight) = self.begin(Direction::Write) else {
            for write in writes {
                self.write(write.offset_bytes, write.bytes)?;
            }
            return Ok(());
        };
        let mut sent = Vec::new();
        for write in writes {
            if !self.is_aligned(write.bytes) {
                self.write(write.offset_bytes, write.bytes)?;
                continue;
            }
            check_range(
                DeviceOp::Write,
                self.size_for(write.offset_bytes, write.bytes.len()),
                write.offset_bytes,
                write.bytes.len(),
            )?;
            sent.push(write);
            // SAFETY: the bytes are borrowed for 'a, which outlives the flight, and the kernel only reads them.
            unsafe { flight.push(write.offset_bytes, write.bytes.as_ptr().cast_mut(), write.bytes.len()) };
        }
        for unfinished in flight.land() {
            let Some(write) = sent.get(unfinished.number) else { continue };
            failure(DeviceOp::Write, unfinished, write.offset_bytes, write.bytes.len())?;
            self.write(write.offset_bytes, write.bytes)?;
        }
        Ok(())
    }

    fn read_many(&self, reads: &mut [BlockRead<'_>]) -> DeviceResult<()> {
        let is_fit = self.throttle.is_none() && reads.iter().all(|read| self.is_aligned(read.bytes));
        let Some(mut flight) = self.begin(Direction::Read).filter(|_| is_fit) else {
            return reads.iter_mut().try_for_each(|read| self.read(read.offset_bytes, read.bytes));
        };
        for read in reads.iter_mut() {
            check_range(
                DeviceOp::Read,
                self.size_for(read.offset_bytes, read.bytes.len()),
                read.offset_bytes,
                read.bytes.len(),
            )?;
            // SAFETY: the bytes are borrowed for longer than the flight lasts, and nothing here looks at them before it has landed.
            unsafe { flight.push(read.offset_bytes, read.bytes.as_mut_ptr(), read.bytes.len()) };
        }
        for unfinished in flight.land() {
            let Some(read) = reads.get_mut(unfinished.number) else { continue };
            failure(DeviceOp::Read, unfinished, read.offset_bytes, read.bytes.len())?;
            self.read(read.offset_bytes, read.bytes)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        let is_inside = offset_bytes.checked_add(len_bytes).is_some_and(|end| end <= self.measure());
        let zero =
            |how| rustix::fs::fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset_bytes, len_bytes);
        // The first takes no room. Where the disk or the file system cannot, plain writes do, or say what is wrong.
        let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
        if is_inside && ways.into_iter().any(|how| zero(how).is_ok()) {
            return Ok(());
        }
        write_zeroes_plainly(self, offset_bytes, len_bytes)
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        let failed = |errno: Errno| DeviceError {
            op: DeviceOp::Discard,
            offset_bytes,
            len_bytes: usize::try_from(len_bytes).unwrap_or(usize::MAX),
            source: errno.into(),
        };
        // A hole also reads as zeroes, so it comes first.
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = rustix::fs::fallocate(&self.file, how, offset_bytes, len_bytes);
        let is_block = self.file.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
        if punched.is_ok() || !is_block {
            return punched.map_err(failed);
        }
        let range = [offset_bytes, len_bytes];
        // SAFETY: the descriptor is open, and the request reads two `u64` from a place of that size.
        let answer = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, &raw const range) };
        if answer == 0 { Ok(()) } else { Err(failed(last_errno())) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    const BLOCKS: u64 = 512;

    /// A file beside the test program, where direct IO works as a rule.
    fn file() -> tempfile::NamedTempFile {
        let program = std::env::current_exe().unwrap();
        let file = tempfile::NamedTempFile::new_in(program.parent().unwrap()).unwrap();
        file.as_file().set_len(BLOCKS * 4096).unwrap();
        file
    }

    /// More blocks than are in flight at once, in no order.
    fn blocks(seed: u8) -> Vec<(u64, AlignedBuf)> {
        let block = |n: u64| {
            let mut buf = AlignedBuf::zeroed(1);
            buf.as_mut_slice().fill(seed.wrapping_add(n.to_le_bytes()[0]));
            (n * 7 % BLOCKS * 4096, buf)
        };
        (0..200).map(block).collect()
    }

    fn writes(blocks: &[(u64, AlignedBuf)]) -> impl Iterator<Item = BlockWrite<'_>> {
        blocks
            .iter()
            .map(|(offset_bytes, buf)| BlockWrite { offset_bytes: *offset_bytes, bytes: buf.as_slice() })
    }

    fn assert_there(device: &RawDevice, blocks: &[(u64, AlignedBuf)]) {
        let mut bufs: Vec<AlignedBuf> = blocks.iter().map(|_| AlignedBuf::zeroed(1)).collect();
        let mut reads: Vec<BlockRead<'_>> = blocks
            .iter()
            .zip(&mut bufs)
            .map(|((offset_bytes, _), buf)| BlockRead {
                offset_bytes: *offset_bytes,
                bytes: buf.as_mut_slice(),
            })
            .collect();
        device.read_many(&mut reads).unwrap();
        for ((offset_bytes, expected), buf) in blocks.iter().zip(&bufs) {
            let mut alone = AlignedBuf::zeroed(1);
            device.read(*offset_bytes, alone.as_mut_slice()).unwrap();
            assert!(buf.as_slice() == expected.as_slice() && alone.as_slice() == expected.as_slice());
        }
    }

    #[test]
    fn many_transfers_are_whole_together_and_by_two_threads() {
        let file = file();
        let device = RawDevice::open_writer(file.path()).unwrap();
        device.write_many(&mut std::iter::empty()).unwrap();
        device.read_many(&mut []).unwrap();
        device.write_many(&mut writes(&blocks(1))).unwrap();
        assert_there(&device, &blocks(1));
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..50 {
                        device.write_many(&mut writes(&blocks(9))).unwrap();
                    }
                });
            }
        });
        assert_there(&device, &blocks(9));
    }

    #[test]
    fn a_transfer_that_fails_is_an_error_and_nothing_is_in_flight_behind_it() {
        let file = file();
        let device = RawDevice::open_writer(file.path()).unwrap();
        let mut some = blocks(3);
        some.truncate(20);
        let outside = (BLOCKS * 4096, AlignedBuf::zeroed(1));
        let error =
            device.write_many(&mut writes(&some).chain(writes(std::slice::from_ref(&outside)))).unwrap_err();
        assert_eq!((error.op, error.offset_bytes), (DeviceOp::Write, BLOCKS * 4096));
        let panicking = std::panic::AssertUnwindSafe(|| {
            let mut writes = writes(&some).chain(std::iter::from_fn(|| panic!("while preparing")));
            device.write_many(&mut writes)
        });
        std::panic::catch_unwind(panicking).unwrap_err();
        device.write_many(&mut writes(&blocks(4))).unwrap();
        assert_there(&device, &blocks(4));
        let reader = RawDevice::open_reader(file.path()).unwrap();
        let error = reader.write_many(&mut writes(&some)).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(libc::EBADF), "{error}");
        assert_there(&device, &blocks(4));
    }

    #[test]
    fn errors_of_the_kernel_are_errors_and_short_transfers_are_made_again() {
        let of = |result| {
            failure(DeviceOp::Write, Unfinished { number: 0, result }, 0, 4096)
                .map_err(|error| error.source.raw_os_error())
        };
        assert_eq!(of(-5), Err(Some(libc::EIO)));
        assert_eq!(of(-28), Err(Some(libc::ENOSPC)));
        assert_eq!(of(i64::MIN), Ok(()), "no error of the kernel; written again");
        assert_eq!((of(0), of(512)), (Ok(()), Ok(())));
    }

    /// Makes `io_setup` and `io_uring_setup` fail in this thread, as sandboxes do.
    fn forbid_asynchronous_io() {
        let jump = |number: i64, skip| libc::sock_filter {
            code: 0x15, // BPF_JMP | BPF_JEQ | BPF_K
            jt: skip,
            jf: 0,
            k: u32::try_from(number).unwrap(),
        };
        let answer = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k }; // BPF_RET | BPF_K
        let mut filter = [
            libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 }, // the system call's number
            jump(libc::SYS_io_setup, 2),
            jump(libc::SYS_io_uring_setup, 1),
            answer(libc::SECCOMP_RET_ALLOW),
            answer(libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap()),
        ];
        let program = libc::sock_fprog { len: 5, filter: filter.as_mut_ptr() };
        // SAFETY: the kernel copies the filter, which lives until the call returns.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        assert!(done, "{}", std::io::Error::last_os_error());
    }

    #[test]
    fn where_asynchronous_io_is_forbidden_transfers_go_one_after_the_other() {
        let work = || {
            forbid_asynchronous_io();
            let file = file();
            let device = RawDevice::open_writer(file.path()).unwrap();
            assert!(device.begin(Direction::Write).is_none());
            device.write_many(&mut writes(&blocks(5))).unwrap();
            assert_there(&device, &blocks(5));
        };
        std::thread::spawn(work).join().unwrap(); // the filter ends with its thread
    }
}
