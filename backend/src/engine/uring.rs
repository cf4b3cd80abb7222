//! IO through one io_uring: queued without a system call, handed over a few at a time.
//!
//! Invariant: at most [`MAX_IN_FLIGHT`] IOs are under way, so neither ring can overflow.
//!
//! Guest memory is not registered with the ring: that would pin all of it, keep ballooning and page merging from working, and be
//! redone at each change of the memory table.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::{Probe, Restriction};
use io_uring::{Builder, IoUring, opcode, squeue, types};

use super::Completion;
use crate::limits::{MAX_HANDED_OVER, MAX_IN_FLIGHT};
use crate::request::Direction;
use crate::transfer::Io;

/// Entries of the submission ring; a fuller batch is handed over in several calls.
const SUBMISSION_ENTRIES: u32 = 256;

/// All that it is asked to do.
const OPERATIONS: [u8; 4] =
    [opcode::Read::CODE, opcode::Write::CODE, opcode::Readv::CODE, opcode::Writev::CODE];

/// One ring, used by one thread.
pub struct UringEngine {
    ring: IoUring,
    target: Target,
    /// IOs that were queued and whose completions were not taken yet.
    under_way: usize,
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
    /// Where the kernel, its configuration or a sandbox forbids io_uring, or has none that can read and write.
    pub fn new(file: &File) -> io::Result<Self> {
        try_out()?;
        let completion_entries = u32::try_from(2 * MAX_IN_FLIGHT).map_err(io::Error::other)?;
        let mut plain = IoUring::builder();
        // It may be restricted before it is used.
        plain.setup_cqsize(completion_entries).setup_r_disabled();
        // The disk's completions do not interrupt the thread at what it does: they wait for its next system call, or wake it when
        // it sleeps. Linux 5.19.
        let mut wished = plain.clone();
        wished.setup_coop_taskrun().setup_taskrun_flag();
        Self::of(set_up(&wished, &plain)?, file)
    }

    fn of(ring: IoUring, file: &File) -> io::Result<Self> {
        let target = match ring.submitter().register_files(&[file.as_raw_fd()]) {
            Ok(()) => Target::Registered,
            Err(error) => {
                log::debug!("event=file-not-registered error=\"{error}\"");
                Target::Descriptor(file.as_raw_fd())
            }
        };
        restrict(&ring, target)?;
        ring.submitter().register_enable_rings()?;
        Ok(Self { ring, target, under_way: 0 })
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
        self.under_way += 1;
        // A disk that starts on the first few while the rest is prepared ends them earlier, and guest and disk work at the
        // same time instead of in turns.
        if self.ring.submission().len() >= MAX_HANDED_OVER {
            self.flush_submissions();
        }
    }

    /// See [`super::Engine::flush_submissions`].
    pub fn flush_submissions(&mut self) {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                // EAGAIN: the kernel has no memory for it right now. EBUSY: completions first, which it does itself.
                Err(error) if is_passing(&error) => std::thread::yield_now(),
                // Nobody can say which of them the kernel has: to go on could carry out a write twice.
                Err(error) => {
                    log::error!("event=io_uring-failed error=\"{error}\" the process ends; start it again");
                    std::process::exit(1);
                }
            }
        }
    }

    /// See [`super::Engine::take_completions`].
    pub fn take_completions(&mut self, completions: &mut Vec<Completion>) {
        self.let_kernel_end_what_is_done();
        for done in self.ring.completion() {
            let token = usize::try_from(done.user_data()).unwrap_or(usize::MAX);
            completions.push(Completion { token, result: done.result() });
            self.under_way = self.under_way.saturating_sub(1);
        }
    }

    /// See [`super::Engine::has_io`].
    pub fn has_io(&self) -> bool {
        self.under_way > 0
    }

    /// See [`super::Engine::has_completions`].
    pub fn has_completions(&mut self) -> bool {
        self.let_kernel_end_what_is_done();
        !self.ring.completion().is_empty()
    }

    /// IOs that the disk has done get their completions at the next system call of this thread; here that is, if any wait for it.
    fn let_kernel_end_what_is_done(&mut self) {
        if self.ring.submission().taskrun() {
            // Whatever goes wrong here goes wrong, and is told, at the next hand-over.
            let _ = self.ring.submit();
        }
    }

    /// See [`super::Engine::event_fd`].
    #[must_use]
    pub fn event_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// A ring as wished, or the plain one where the kernel does not know the wish.
fn set_up(wished: &Builder, plain: &Builder) -> io::Result<IoUring> {
    match wished.build(SUBMISSION_ENTRIES) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => plain.build(SUBMISSION_ENTRIES),
        made => made,
    }
}

/// From now on the ring reads and writes, the one file if that is registered, and nothing else: entries do not pass the
/// filter of system calls, so without this whoever gets hold of the ring could open and connect by it.
fn restrict(ring: &IoUring, target: Target) -> io::Result<()> {
    let mut allowed = Vec::from(OPERATIONS.map(Restriction::sqe_op));
    if let Target::Registered = target {
        allowed.push(Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()));
    }
    ring.submitter().register_restrictions(&mut allowed)
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// Uses a ring once: a sandbox may let one be made and then forbid its use, and old kernels lack operations.
fn try_out() -> io::Result<()> {
    let mut ring = IoUring::new(1)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if let Some(missing) = OPERATIONS.into_iter().find(|&code| !probe.is_supported(code)) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, format!("no operation {missing}")));
    }
    let nothing = opcode::Nop::new().build();
    // SAFETY: a no-operation names no memory.
    unsafe { ring.submission().push(&nothing) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    match ring.completion().next() {
        Some(done) if done.result() == 0 => Ok(()),
        other => Err(io::Error::other(format!("a no-operation ended with {other:?}"))),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of one entry.
    fn result_of(engine: &mut UringEngine, entry: &squeue::Entry) -> i32 {
        // SAFETY: the entries below name no memory, or none that a refused entry would look at.
        unsafe { engine.ring.submission().push(entry) }.unwrap();
        engine.ring.submit_and_wait(1).unwrap();
        engine.ring.completion().next().unwrap().result()
    }

    #[test]
    fn ring_does_nothing_but_read_and_write_its_file() {
        let file = tempfile::tempfile().unwrap();
        let other = tempfile::tempfile().unwrap();
        let Ok(mut engine) = UringEngine::new(&file) else { return println!("this kernel forbids io_uring") };
        let path = c"/etc/passwd".as_ptr();
        let nowhere = std::ptr::null_mut();
        let fixed = squeue::Flags::FIXED_FILE;
        for (name, entry) in [
            ("open", opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path).build()),
            ("open with the flag", opcode::OpenAt::new(types::Fd(0), path).build().flags(fixed)),
            ("socket", opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build()),
            ("another file", opcode::Write::new(types::Fd(other.as_raw_fd()), nowhere, 0).build()),
            ("sync of another file", opcode::Fsync::new(types::Fd(other.as_raw_fd())).build()),
            ("no operation", opcode::Nop::new().build()),
        ] {
            assert_eq!(result_of(&mut engine, &entry), -libc::EACCES, "{name}");
        }
        let own = opcode::Write::new(types::Fd(0), nowhere, 0).build().flags(fixed);
        assert_eq!(result_of(&mut engine, &own), 0);
        let sync = opcode::Fsync::new(types::Fd(0)).build().flags(fixed);
        assert_eq!(result_of(&mut engine, &sync), -libc::EACCES);
    }

    #[test]
    fn kernel_that_does_not_know_the_wish_gets_a_plain_ring() {
        let file = tempfile::tempfile().unwrap();
        if try_out().is_err() {
            return println!("this kernel forbids io_uring");
        }
        let mut plain = IoUring::builder();
        plain.setup_r_disabled();
        // Refused by every kernel: by new ones without `setup_single_issuer`, by old ones as a flag that they do not know.
        let mut unknown = plain.clone();
        unknown.setup_defer_taskrun();
        assert_eq!(unknown.build(1).err().and_then(|error| error.raw_os_error()), Some(libc::EINVAL));
        let mut engine = UringEngine::of(set_up(&unknown, &plain).unwrap(), &file).unwrap();
        let bytes = b"plain";
        let write =
            opcode::Write::new(types::Fd(0), bytes.as_ptr(), 5).build().flags(squeue::Flags::FIXED_FILE);
        assert_eq!(result_of(&mut engine, &write), 5);
        assert_eq!(std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap(), bytes);
    }
}
