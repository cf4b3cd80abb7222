//! What each guest has done, counted by its worker and read by anybody.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

/// Counters of one guest since the start of the process.
#[derive(Debug, Default)]
pub struct GuestStats {
    connected: AtomicBool,
    counters: [AtomicU64; Counter::COUNT],
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Reads answered with success.
    Reads,
    /// Bytes they returned.
    ReadBytes,
    /// Writes answered with success.
    Writes,
    /// Bytes they wrote.
    WrittenBytes,
    /// Flushes answered with success.
    Flushes,
    /// Discards and write-zeroes answered with success.
    Erases,
    /// Requests answered with an error, or not understood.
    Errors,
    /// Requests that had to wait for others.
    Parked,
    /// Reads that had to wait for a sync.
    WaitedForSync,
    /// Times that the guest had used up its share and its requests were left in the ring.
    HeldBack,
    /// Writes, discards and write-zeroes refused because they touch a sealed range; errors as well.
    RefusedBySeal,
    /// Times that the worker looked around for news before it slept.
    LookedAround,
}

impl Counter {
    const COUNT: usize = Self::LookedAround as usize + 1;
}

/// The counters at one moment.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Snapshot {
    pub connected: bool,
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    pub erases: u64,
    pub errors: u64,
    pub parked: u64,
    pub waited_for_sync: u64,
    pub held_back: u64,
    pub refused_by_seal: u64,
    pub looked_around: u64,
}

impl GuestStats {
    /// Adds to a counter. Only the guest's worker does, so a plain store is enough.
    pub fn add(&self, counter: Counter, count: u64) {
        let place = &self.counters[counter as usize];
        place.store(place.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    /// Notes whether a front end is connected.
    pub fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    /// All counters.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let get = |counter: Counter| self.counters[counter as usize].load(Ordering::Relaxed);
        Snapshot {
            connected: self.connected.load(Ordering::Relaxed),
            reads: get(Counter::Reads),
            read_bytes: get(Counter::ReadBytes),
            writes: get(Counter::Writes),
            written_bytes: get(Counter::WrittenBytes),
            flushes: get(Counter::Flushes),
            erases: get(Counter::Erases),
            errors: get(Counter::Errors),
            parked: get(Counter::Parked),
            waited_for_sync: get(Counter::WaitedForSync),
            held_back: get(Counter::HeldBack),
            refused_by_seal: get(Counter::RefusedBySeal),
            looked_around: get(Counter::LookedAround),
        }
    }
}
