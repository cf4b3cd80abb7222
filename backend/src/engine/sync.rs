//! IO in line with preadv2 and pwritev2. It may block: each guest has a worker of its own.

use std::io;
use std::os::fd::RawFd;

use super::Completion;
use crate::request::Direction;
use crate::transfer::Io;

/// Runs each IO at once and keeps its outcome until it is asked for.
#[derive(Debug, Default)]
pub struct SyncEngine {
    completions: Vec<Completion>,
}

impl SyncEngine {
    /// See [`super::Engine::submit`].
    ///
    /// # Safety
    /// The segments of `io` and the memory they name must be valid.
    pub unsafe fn submit(&mut self, fd: RawFd, io: Io, token: usize) {
        let result = loop {
            // SAFETY: passed on to the caller; the call has ended when this returns.
            match unsafe { run(fd, io) } {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break -error.raw_os_error().unwrap_or(libc::EIO),
                Ok(count) => break count,
            }
        };
        self.completions.push(Completion { token, result });
    }

    /// See [`super::Engine::has_completions`].
    #[must_use]
    pub fn has_completions(&self) -> bool {
        !self.completions.is_empty()
    }

    /// See [`super::Engine::take_completions`].
    pub fn take_completions(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.completions);
    }
}

/// # Safety
/// The segments of `io` and the memory they name must be valid.
unsafe fn run(fd: RawFd, io: Io) -> io::Result<i32> {
    let segments: *const libc::iovec = io.segments.cast();
    let count = i32::try_from(io.segment_count).map_err(io::Error::other)?;
    let offset = i64::try_from(io.offset_bytes).map_err(io::Error::other)?;
    let moved = match io.direction {
        // SAFETY: `HostSlice` has the layout of `iovec`; the caller keeps segments and memory valid.
        Direction::Read => unsafe { libc::preadv2(fd, segments, count, offset, 0) },
        // SAFETY: as above.
        Direction::Write => unsafe { libc::pwritev2(fd, segments, count, offset, 0) },
    };
    if moved < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(moved).map_err(io::Error::other)
}
