//! IO in line: pread64 and pwrite64, or preadv2 and pwritev2 for several segments and for what must not block.

use std::io;
use std::os::fd::RawFd;

use crate::request::Direction;
use crate::transfer::Io;

/// Runs one IO: bytes moved, or `-errno`.
///
/// # Safety
/// The segments of `io` and the memory they name must be valid.
pub unsafe fn run(fd: RawFd, io: Io, flags: i32) -> i32 {
    loop {
        // SAFETY: passed on to the caller; the call has ended when this returns.
        match unsafe { try_once(fd, io, flags) } {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return -error.raw_os_error().unwrap_or(libc::EIO),
            Ok(count) => return count,
        }
    }
}

/// # Safety
/// The segments of `io` and the memory they name must be valid.
unsafe fn try_once(fd: RawFd, io: Io, flags: i32) -> io::Result<i32> {
    let segments: *const libc::iovec = io.segments.cast();
    let count = i32::try_from(io.segment_count).map_err(io::Error::other)?;
    let offset = i64::try_from(io.offset_bytes).map_err(io::Error::other)?;
    let moved = if flags == 0 && count == 1 {
        // One segment needs no list of them. The C library's functions make each call a point at which the thread could be cancelled.
        let call = match io.direction {
            Direction::Read => libc::SYS_pread64,
            Direction::Write => libc::SYS_pwrite64,
        };
        // SAFETY: `HostSlice` has the layout of `iovec`; the caller keeps segments and memory valid.
        unsafe { libc::syscall(call, fd, (*segments).iov_base, (*segments).iov_len, offset) }
    } else {
        let moved = match io.direction {
            // SAFETY: as above.
            Direction::Read => unsafe { libc::preadv2(fd, segments, count, offset, flags) },
            // SAFETY: as above.
            Direction::Write => unsafe { libc::pwritev2(fd, segments, count, offset, flags) },
        };
        i64::try_from(moved).map_err(io::Error::other)?
    };
    if moved < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(moved).map_err(io::Error::other)
}
