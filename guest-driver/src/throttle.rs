//! Reads no faster than allowed, so that a scrub leaves the disk to others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Delays reads to a rate, counted from its making.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: u64,
    start: Instant,
    read_bytes: AtomicU64,
}

impl Throttle {
    /// At most so many MiB a second, at least one.
    pub(crate) fn new(mib_per_second: u64) -> Self {
        let bytes_per_second = mib_per_second.max(1).saturating_mul(1 << 20);
        Self { bytes_per_second, start: Instant::now(), read_bytes: AtomicU64::new(0) }
    }

    /// Returns when `len_bytes` more may be read.
    pub(crate) fn wait(&self, len_bytes: usize) {
        let len_bytes = len_bytes as u64;
        let read_bytes = self.read_bytes.fetch_add(len_bytes, Ordering::Relaxed) + len_bytes;
        let due_ms = read_bytes.saturating_mul(1000) / self.bytes_per_second;
        std::thread::sleep(Duration::from_millis(due_ms).saturating_sub(self.start.elapsed()));
    }
}
