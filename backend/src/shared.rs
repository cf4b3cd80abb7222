//! What all guests share: the disk, the order of requests on it, and what is counted.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::channel::Channels;
use crate::disk::Disk;
use crate::gate::{Gate, Mailbox};
use crate::recovery::Recovery;
use crate::stats::GuestStats;
use crate::syncer::Syncer;
use crate::worker::Mail;

/// One per process.
#[derive(Debug)]
pub struct Shared {
    /// The disk.
    pub disk: Disk,
    /// The slow operations of the disk.
    pub syncer: Syncer,
    /// The order of requests, and the way workers tell each other.
    pub gate: Gate,
    /// The way back to the guests' front ends.
    pub channels: Channels,
    /// Who is waited for after a kill.
    pub recovery: Recovery,
    /// Whether no request is taken because another process is about to take this one's place, or the other way round.
    is_handing_over: AtomicBool,
    stats: Vec<GuestStats>,
}

impl Shared {
    /// State for `workers` workers on `disk`, which meet at `gate`.
    #[must_use]
    pub fn new(disk: Disk, gate: Gate, recovery: Recovery, workers: usize) -> Self {
        let stats = (0..workers).map(|_| GuestStats::default()).collect();
        let is_handing_over = AtomicBool::new(false);
        let (syncer, channels) = (Syncer::default(), Channels::new(workers));
        Self { disk, syncer, gate, channels, recovery, is_handing_over, stats }
    }

    /// Carries out slow operations until the syncer is stopped, and calls `keep_poison` before any guest
    /// is told that a sync has failed. One thread calls this.
    pub fn run_syncer(&self, keep_poison: impl Fn()) {
        self.syncer.run(&self.disk, &|waiter, result| {
            if result.is_err() {
                keep_poison();
            }
            let mail = Mail::SlowDone { token: waiter.token, result };
            self.mailbox(waiter.worker).send(mail);
        });
    }

    /// Waits for guests that were writing when an earlier process was killed, then lets all workers go on.
    pub fn run_recovery(&self) {
        self.recovery.wait(|| self.wake_workers());
    }

    /// Whether new requests must wait in their rings.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.is_handing_over() || self.recovery.is_holding()
    }

    /// Whether this process and another are about to change places.
    #[must_use]
    pub fn is_handing_over(&self) -> bool {
        self.is_handing_over.load(Ordering::Acquire)
    }

    /// Has new requests of all guests wait in their rings while one process takes the place of another.
    pub fn set_handing_over(&self, is_handing_over: bool) {
        self.is_handing_over.store(is_handing_over, Ordering::Release);
        if !is_handing_over {
            self.wake_workers();
        }
    }

    fn wake_workers(&self) {
        (0..self.stats.len()).for_each(|worker| self.mailbox(worker).wake_up());
    }

    /// The counters of a worker's guest, by index.
    #[must_use]
    pub fn stats(&self, worker: usize) -> &GuestStats {
        &self.stats[worker]
    }

    /// The mailbox of a worker, by index.
    #[must_use]
    pub fn mailbox(&self, worker: usize) -> &Mailbox {
        self.gate.mailbox(worker)
    }
}
