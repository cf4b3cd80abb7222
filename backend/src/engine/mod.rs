//! Carries out the IO of one worker: asynchronous by io_uring, or in line where that is forbidden.

mod sync;
mod uring;

use std::os::fd::RawFd;

pub use self::sync::SyncEngine;
pub use self::uring::UringEngine;
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

/// One of the two engines.
#[derive(Debug)]
pub enum Engine {
    /// See [`UringEngine`].
    Uring(Box<UringEngine>),
    /// See [`SyncEngine`].
    Sync(SyncEngine),
}

impl Engine {
    /// Queues one IO on the open descriptor `fd`.
    ///
    /// # Safety
    /// The segments of `io` and the memory they name must stay valid and in place until the
    /// completion with this `token` has been taken.
    pub unsafe fn submit(&mut self, fd: RawFd, io: Io, token: usize) {
        match self {
            // SAFETY: passed on to the caller.
            Self::Uring(engine) => unsafe { engine.submit(fd, io, token) },
            // SAFETY: passed on to the caller.
            Self::Sync(engine) => unsafe { engine.submit(fd, io, token) },
        }
    }

    /// As the command line writes it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uring(_) => "io_uring",
            Self::Sync(_) => "sync",
        }
    }

    /// Hands everything queued to the kernel.
    pub fn flush_submissions(&mut self) {
        if let Self::Uring(engine) = self {
            engine.flush_submissions();
        }
    }

    /// Adds the IOs that have ended to `completions`.
    pub fn take_completions(&mut self, completions: &mut Vec<Completion>) {
        match self {
            Self::Uring(engine) => engine.take_completions(completions),
            Self::Sync(engine) => engine.take_completions(completions),
        }
    }

    /// Whether an IO has ended when [`Engine::submit`] returns.
    #[must_use]
    pub fn is_inline(&self) -> bool {
        matches!(self, Self::Sync(_))
    }

    /// Whether completions wait that no descriptor tells of.
    #[must_use]
    pub fn has_completions(&self) -> bool {
        match self {
            Self::Uring(_) => false,
            Self::Sync(engine) => engine.has_completions(),
        }
    }

    /// A descriptor that is readable while completions wait, if this engine has one.
    #[must_use]
    pub fn event_fd(&self) -> Option<RawFd> {
        match self {
            Self::Uring(engine) => Some(engine.event_fd()),
            Self::Sync(_) => None,
        }
    }
}
