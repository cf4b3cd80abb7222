//! Carries out the IO of one worker: at once where that cannot block, asynchronously by io_uring, or in line where
//! io_uring is forbidden.

mod sync;
mod uring;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

pub use self::uring::UringEngine;
use crate::image::{CacheMode, Image};
use crate::request::Direction;
use crate::transfer::Io;

/// Which engine to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineKind {
    /// Submission and completion rings shared with the kernel.
    #[value(name = "io_uring")]
    IoUring,
    /// preadv2 and pwritev2 on the guest's own worker.
    Sync,
}

/// The outcome of one IO: the bytes moved, or a negative errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// What [`Engine::submit`] was given.
    pub token: usize,
    /// Bytes moved (never more than asked), or `-errno`.
    pub result: i32,
}

/// What is tried in line before the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InLine {
    /// Nothing.
    Nothing,
    /// What the kernel says it has at hand (RWF_NOWAIT); a direction it refuses that for is not tried again.
    WhatIsAtHand { reads: bool, writes: bool },
    /// Everything: the file is in memory, or there is no ring.
    Everything,
}

/// See the module. It works on one file, which must outlive it.
#[derive(Debug)]
pub struct Engine {
    file: RawFd,
    in_line: InLine,
    ring: Option<UringEngine>,
}

impl Engine {
    /// An engine of the kind that is wanted, or else of the kind that suits the image, for IO on `file`.
    ///
    /// # Errors
    /// Where the kernel or its configuration forbids the io_uring that it needs.
    pub fn new(wanted: Option<EngineKind>, image: &Image, file: &File) -> io::Result<Self> {
        let in_line = match (wanted, image.cache) {
            (Some(EngineKind::Sync), _) => InLine::Everything,
            (Some(EngineKind::IoUring), _) => InLine::Nothing,
            (None, _) if image.is_in_memory => InLine::Everything,
            (None, CacheMode::Page) => InLine::WhatIsAtHand { reads: true, writes: true },
            (None, CacheMode::Direct) => InLine::Nothing,
        };
        let needs_ring = in_line != InLine::Everything;
        let ring = needs_ring.then(|| UringEngine::new(file)).transpose()?;
        Ok(Self { file: file.as_raw_fd(), in_line, ring })
    }

    /// Runs one IO at once if it cannot block, or if everything is done so: bytes moved or `-errno`.
    ///
    /// # Safety
    /// The segments of `io` and the memory they name must be valid.
    pub unsafe fn try_in_line(&mut self, io: Io) -> Option<i32> {
        let flags = match (self.in_line, io.direction) {
            (InLine::Everything, _) => 0,
            (InLine::WhatIsAtHand { reads: true, .. }, Direction::Read)
            | (InLine::WhatIsAtHand { writes: true, .. }, Direction::Write) => libc::RWF_NOWAIT,
            _ => return None,
        };
        // SAFETY: passed on to the caller.
        let result = unsafe { sync::run(self.file, io, flags) };
        if flags == 0 {
            return Some(result);
        }
        if -result == libc::EOPNOTSUPP
            && let InLine::WhatIsAtHand { reads, writes } = &mut self.in_line
        {
            *(if io.direction == Direction::Read { reads } else { writes }) = false;
        }
        // What the kernel would have to wait for, and what it cannot judge, goes through the ring.
        (result > 0).then_some(result)
    }

    /// Queues one IO.
    ///
    /// # Safety
    /// The segments of `io` and the memory they name must stay valid and in place until the
    /// completion with this `token` has been taken.
    pub unsafe fn submit(&mut self, io: Io, token: usize) {
        match &mut self.ring {
            // SAFETY: passed on to the caller.
            Some(ring) => unsafe { ring.submit(io, token) },
            None => debug_assert!(false, "without a ring everything is done in line"),
        }
    }

    /// As the status names it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.in_line {
            InLine::Nothing => "io_uring",
            InLine::WhatIsAtHand { .. } => "io_uring, in line where it cannot block",
            InLine::Everything => "sync",
        }
    }

    /// Hands everything queued to the kernel.
    pub fn flush_submissions(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.flush_submissions();
        }
    }

    /// Adds the IOs that have ended to `completions`.
    pub fn take_completions(&mut self, completions: &mut Vec<Completion>) {
        if let Some(ring) = &mut self.ring {
            ring.take_completions(completions);
        }
    }

    /// Whether any IO is under way.
    pub fn has_io(&self) -> bool {
        self.ring.as_ref().is_some_and(UringEngine::has_io)
    }

    /// Whether an IO has ended that was not taken yet.
    pub fn has_completions(&mut self) -> bool {
        self.ring.as_mut().is_some_and(UringEngine::has_completions)
    }

    /// Whether IO ends while it is started.
    #[must_use]
    pub fn is_in_line(&self) -> bool {
        self.in_line != InLine::Nothing
    }

    /// A descriptor that is readable while completions wait, if there can be any.
    #[must_use]
    pub fn event_fd(&self) -> Option<RawFd> {
        self.ring.as_ref().map(UringEngine::event_fd)
    }
}
