//! IO through one io_uring: queued without a system call, handed over in one per batch.
//!
//! Invariant: at most [`MAX_IN_FLIGHT`] IOs are under way, so neither ring can overflow.

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
}

impl std::fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringEngine").field("fd", &self.ring.as_raw_fd()).finish()
    }
}

impl UringEngine {
    /// A new ring.
    ///
    /// # Errors
    /// Where the kernel or its configuration forbids io_uring.
    pub fn new() -> io::Result<Self> {
        let completion_entries = u32::try_from(2 * MAX_IN_FLIGHT).map_err(io::Error::other)?;
        let ring = IoUring::builder().setup_cqsize(completion_entries).build(SUBMISSION_ENTRIES)?;
        Ok(Self { ring })
    }

    /// See [`super::Engine::submit`].
    ///
    /// # Safety
    /// The segments of `io` and the memory they name must stay valid and in place until the
    /// completion with this `token` has been taken.
    pub unsafe fn submit(&mut self, fd: RawFd, io: Io, token: usize) {
        let entry = entry(fd, io).user_data(token as u64);
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

    /// See [`super::Engine::event_fd`].
    #[must_use]
    pub fn event_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

fn entry(fd: RawFd, io: Io) -> squeue::Entry {
    let segments: *const libc::iovec = io.segments.cast();
    match io.direction {
        Direction::Read => {
            opcode::Readv::new(types::Fd(fd), segments, io.segment_count).offset(io.offset_bytes).build()
        }
        Direction::Write => {
            opcode::Writev::new(types::Fd(fd), segments, io.segment_count).offset(io.offset_bytes).build()
        }
    }
}
