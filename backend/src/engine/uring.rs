//! IO through one io_uring: queued without a system call, handed over in one per batch.
//!
//! Invariant: at most [`MAX_IN_FLIGHT`] IOs are under way, so neither ring can overflow.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types};

use super::Completion;
use crate::limits::MAX_IN_FLIGHT;
use crate::request::Direction;
use crate::transfer::Io;

/// Entries of the submission ring; a fuller batch is handed over in several calls.
const SUBMISSION_ENTRIES: u32 = 256;

/// One ring, used by one thread.
pub struct UringEngine {
    ring: IoUring,
    target: Target,
}

/// How entries name the file.
#[derive(Debug, Clone, Copy)]
enum Target {
    /// As the first of the ring's own table, which saves the kernel a reference an IO.
    Registered,
    Descriptor(RawFd),
}

impl std::fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringEngine").field("fd", &self.ring.as_raw_fd()).finish()
    }
}

impl UringEngine {
    /// A new ring for IO on `file`, which must outlive it.
    ///
    /// # Errors
    /// Where the kernel or its configuration forbids io_uring.
    pub fn new(file: &File) -> io::Result<Self> {
        let completion_entries = u32::try_from(2 * MAX_IN_FLIGHT).map_err(io::Error::other)?;
        let ring = IoUring::builder().setup_cqsize(completion_entries).build(SUBMISSION_ENTRIES)?;
        let target = match ring.submitter().register_files(&[file.as_raw_fd()]) {
            Ok(()) => Target::Registered,
            Err(error) => {
                log::debug!("event=file-not-registered error=\"{error}\"");
                Target::Descriptor(file.as_raw_fd())
            }
        };
        Ok(Self { ring, target })
    }

    /// See [`super::Engine::submit`].
    ///
    /// # Safety
    /// The segments of `io` and the memory they name must stay valid and in place until the
    /// completion with this `token` has been taken.
    pub unsafe fn submit(&mut self, io: Io, token: usize) {
        // SAFETY: passed on to the caller.
        let entry = unsafe { entry(self.target, io) }.user_data(token as u64);
        // SAFETY: passed on to the caller.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.flush_submissions();
        }
    }

    /// See [`super::Engine::flush_submissions`].
    pub fn flush_submissions(&mut self) {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                // EINTR, EAGAIN and EBUSY pass; nothing else can happen to a ring that was set up.
                Err(error) => {
                    log::debug!("event=submit-again error=\"{error}\"");
                    std::thread::yield_now();
                }
            }
        }
    }

    /// See [`super::Engine::take_completions`].
    pub fn take_completions(&mut self, completions: &mut Vec<Completion>) {
        for done in self.ring.completion() {
            let token = usize::try_from(done.user_data()).unwrap_or(usize::MAX);
            completions.push(Completion { token, result: done.result() });
        }
    }

    /// See [`super::Engine::has_completions`].
    pub fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// See [`super::Engine::event_fd`].
    #[must_use]
    pub fn event_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// # Safety
/// The segments of `io` must be valid.
unsafe fn entry(target: Target, io: Io) -> squeue::Entry {
    let (fd, flags) = match target {
        Target::Registered => (types::Fd(0), squeue::Flags::FIXED_FILE),
        Target::Descriptor(fd) => (types::Fd(fd), squeue::Flags::empty()),
    };
    let segments: *const libc::iovec = io.segments.cast();
    // SAFETY: passed on to the caller; `HostSlice` has the layout of `iovec`.
    let first = unsafe { *segments };
    let (base, offset, count) = (first.iov_base.cast::<u8>(), io.offset_bytes, io.segment_count);
    let entry = match (io.direction, u32::try_from(first.iov_len)) {
        // One segment needs no list of them.
        (Direction::Read, Ok(len)) if count == 1 => opcode::Read::new(fd, base, len).offset(offset).build(),
        (Direction::Write, Ok(len)) if count == 1 => opcode::Write::new(fd, base, len).offset(offset).build(),
        (Direction::Read, _) => opcode::Readv::new(fd, segments, count).offset(offset).build(),
        (Direction::Write, _) => opcode::Writev::new(fd, segments, count).offset(offset).build(),
    };
    entry.flags(flags)
}
