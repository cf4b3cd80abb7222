//! A device that reads no faster than allowed, so that a scrub leaves the disk to others.

use crate::device::{Device, DeviceResult};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Delays reads; writes and flushes go through.
#[derive(Debug)]
pub struct Throttled<D> {
    inner: D,
    bytes_per_second: Option<u64>,
    start: Instant,
    read_bytes: AtomicU64,
}

impl<D> Throttled<D> {
    /// At most `mib_per_second`; `None` = no limit.
    #[must_use]
    pub fn new(inner: D, mib_per_second: Option<u64>) -> Self {
        let bytes_per_second = mib_per_second.map(|mib| mib.saturating_mul(1 << 20));
        Self { inner, bytes_per_second, start: Instant::now(), read_bytes: AtomicU64::new(0) }
    }
}

impl<D: Device> Device for Throttled<D> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        if let Some(bytes_per_second) = self.bytes_per_second {
            let len_bytes = buf.len() as u64;
            let read_bytes = self.read_bytes.fetch_add(len_bytes, Ordering::Relaxed) + len_bytes;
            let due_ms = read_bytes.saturating_mul(1000) / bytes_per_second;
            let due = Duration::from_millis(due_ms).saturating_sub(self.start.elapsed());
            std::thread::sleep(due);
        }
        self.inner.read(offset_bytes, buf)
    }

    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        self.inner.write(offset_bytes, buf)
    }

    fn flush(&self) -> DeviceResult<()> {
        self.inner.flush()
    }
}
