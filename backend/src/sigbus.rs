//! Guest memory that vanishes: a front end may truncate the file behind it, or the host may have no huge page left.
//! The first access then raises SIGBUS, which would end the process and with it the disks of all guests.
//!
//! Instead the whole region is replaced by empty memory of our own. Its guest gets nothing sensible any more, its rings
//! are found to be broken, and the others notice nothing.
//!
//! Invariants:
//! 1. A region is in the table from before its first access until after its last.
//! 2. The handler touches nothing but the table's atomics and one system call.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::limits::MAX_GUARDED_REGIONS;

struct Entry {
    start: AtomicUsize,
    len: AtomicUsize,
}

static TABLE: [Entry; MAX_GUARDED_REGIONS] =
    [const { Entry { start: AtomicUsize::new(0), len: AtomicUsize::new(0) } }; MAX_GUARDED_REGIONS];

static LOST_REGIONS: AtomicU64 = AtomicU64::new(0);

/// A mapping whose loss does not end the process, for as long as this lives.
#[derive(Debug)]
pub struct Guard(usize);

impl Guard {
    /// Guards `len` bytes at `start`; `None` when the table is full.
    #[must_use]
    pub fn new(start: *mut u8, len: usize) -> Option<Self> {
        let free = |entry: &Entry| {
            entry.start.compare_exchange(0, start.addr(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let at = TABLE.iter().position(free)?;
        // The handler ignores an entry without a length, so a half-made one is never used.
        TABLE[at].len.store(len, Ordering::Release);
        Some(Self(at))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        TABLE[self.0].len.store(0, Ordering::Release);
        TABLE[self.0].start.store(0, Ordering::Release);
    }
}

/// Regions that were replaced since the start of the process.
#[must_use]
pub fn lost_regions() -> u64 {
    LOST_REGIONS.load(Ordering::Relaxed)
}

/// Installs the handler.
///
/// # Errors
/// When the kernel refuses, which it should not.
pub fn install() -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sigaction` with an empty mask; the fields are set below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler has the signature that SA_SIGINFO demands and calls nothing that a signal may not interrupt.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`, and SIGBUS carries an address.
    let address = unsafe { (*info).si_addr() }.addr();
    let region = TABLE.iter().find_map(|entry| {
        let (start, len) = (entry.start.load(Ordering::Acquire), entry.len.load(Ordering::Acquire));
        (len > 0 && address.checked_sub(start).is_some_and(|offset| offset < len)).then_some((start, len))
    });
    if region.is_some_and(|(start, len)| replace(start, len)) {
        LOST_REGIONS.fetch_add(1, Ordering::Relaxed);
        return;
    }
    // Not guest memory: a fault of our own. The access is repeated on return and ends the process as it should.
    // SAFETY: restoring the default action is allowed in a handler.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Puts empty memory in place of a mapping.
fn replace(start: usize, len: usize) -> bool {
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the range is exactly one mapping that a `Guard` keeps in the table while it exists, and guest memory is
    // only ever accessed as bytes that may change at any time; mmap is a plain system call.
    let mapped = unsafe { libc::mmap(ptr::without_provenance_mut(start), len, access, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}
