//! A device that notes what its user waits for.

use receipt_store::device::{BlockRead, BlockWrite, DeviceResult};
use receipt_store::{Device, RawDevice};
use std::sync::Mutex;
use std::time::Instant;

/// Steps of a commit that wait for the disk, in their order.
pub const STEPS: [&str; 5] =
    ["index pages read", "lease and head read", "records laid out and written", "flush", "pages written"];

pub struct Timed {
    inner: RawDevice,
    /// Microseconds of each step, and how often it was made.
    micros: Mutex<[(f64, u64); 5]>,
}

impl Timed {
    pub fn new(inner: RawDevice) -> Self {
        Self { inner, micros: Mutex::default() }
    }

    /// Time and count of each step since the last call.
    pub fn take(&self) -> [(f64, u64); 5] {
        std::mem::take(&mut self.micros.lock().unwrap())
    }

    fn note<T>(&self, step: usize, run: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let answer = run();
        let (micros, count) = &mut self.micros.lock().unwrap()[step];
        *micros += began.elapsed().as_secs_f64() * 1e6;
        *count += 1;
        answer
    }
}

impl Device for Timed {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        let step = usize::from(buf.len() == 16384);
        self.note(step, || self.inner.read(offset_bytes, buf))
    }
    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        self.note(4, || self.inner.write(offset_bytes, buf))
    }
    fn write_many<'a>(&self, writes: &mut dyn Iterator<Item = BlockWrite<'a>>) -> DeviceResult<()> {
        let mut writes = writes.peekable();
        let step = if writes.peek().is_some_and(|write| write.bytes.len() == 4096) { 4 } else { 2 };
        self.note(step, || self.inner.write_many(&mut writes))
    }
    fn read_many(&self, reads: &mut [BlockRead<'_>]) -> DeviceResult<()> {
        self.note(0, || self.inner.read_many(reads))
    }
    fn flush(&self) -> DeviceResult<()> {
        self.note(3, || self.inner.flush())
    }
}
