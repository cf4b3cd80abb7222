//! What all guests share: the disk, the order of requests on it, and what is counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

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
    /// Whether no request is taken because this process is about to end, or another one to take its place.
    is_closing: AtomicBool,
    stats: Vec<GuestStats>,
}

impl Shared {
    /// State for `workers` workers on `disk`, which meet at `gate`.
    #[must_use]
    pub fn new(disk: Disk, gate: Gate, recovery: Recovery, workers: usize) -> Self {
        let stats = (0..workers).map(|_| GuestStats::default()).collect();
        let is_closing = AtomicBool::new(false);
        let (syncer, channels) = (Syncer::default(), Channels::new(workers));
        Self { disk, syncer, gate, channels, recovery, is_closing, stats }
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
        self.is_closing.load(Ordering::Acquire) || self.recovery.is_holding()
    }

    /// Has new requests of all guests wait in their rings, and returns once those that were taken are answered; false if they
    /// are not until `deadline`.
    pub fn close_rings(&self, deadline: Instant) -> bool {
        self.is_closing.store(true, Ordering::Release);
        let ask = |worker| {
            let (reply, answer) = mpsc::channel();
            self.mailbox(worker).send(Mail::TellWhenIdle { reply });
            answer
        };
        let answers: Vec<_> = (0..self.stats.len()).map(ask).collect();
        let left = || deadline.saturating_duration_since(Instant::now());
        answers.into_iter().all(|answer| answer.recv_timeout(left()).is_ok())
    }

    /// Takes requests again after [`Shared::close_rings`].
    pub fn open_rings(&self) {
        self.is_closing.store(false, Ordering::Release);
        self.wake_workers();
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
