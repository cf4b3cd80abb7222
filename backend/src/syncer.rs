//! The slow operations of the disk, on one thread of their own: syncs, discards, write-zeroes.
//!
//! Invariants:
//! 1. A flush is answered by a sync that started after the flush arrived; flushes that wait
//!    together share one, and none joins a sync that already runs.
//! 2. Erasing goes in pieces of [`ERASE_PIECE_BYTES`], and waiting flushes go between two pieces.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::disk::Disk;
use crate::limits::ERASE_PIECE_BYTES;
use crate::order::ByteRange;
use crate::request::{Erase, EraseRange};

/// Which request of which worker waits for a slow operation or a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter {
    /// Index of the worker.
    pub worker: usize,
    /// Its number for the request.
    pub token: usize,
}

/// A slow operation.
#[derive(Debug)]
pub enum SlowOp {
    /// Make every write that has completed durable.
    Flush,
    /// Make the completed writes up to `sequence` durable, unless they are already.
    SyncUpTo {
        /// Sequence number of the last write to cover.
        sequence: u64,
    },
    /// Discard or zero ranges, then sync if `durable`.
    Erase {
        /// Which of the two.
        kind: Erase,
        /// What is left to do.
        ranges: VecDeque<EraseRange>,
        /// Whether it must survive a host crash when it is answered.
        durable: bool,
    },
}

#[derive(Debug)]
struct Job {
    waiter: Waiter,
    op: SlowOp,
}

#[derive(Debug, Default)]
struct State {
    syncs: Vec<Job>,
    erases: VecDeque<Job>,
    stop: bool,
}

/// The queue of slow operations.
#[derive(Debug, Default)]
pub struct Syncer {
    state: Mutex<State>,
    changed: Condvar,
}

impl Syncer {
    /// Queues one operation.
    pub fn submit(&self, waiter: Waiter, op: SlowOp) {
        let job = Job { waiter, op };
        let mut state = self.lock();
        match job.op {
            SlowOp::Erase { .. } => state.erases.push_back(job),
            SlowOp::Flush | SlowOp::SyncUpTo { .. } => state.syncs.push(job),
        }
        self.changed.notify_one();
    }

    /// Ends [`Syncer::run`] once its queue is empty.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_one();
    }

    /// Carries out operations until [`Syncer::stop`], and tells `done` whether each was done.
    /// One thread calls this.
    pub fn run(&self, disk: &Disk, done: &impl Fn(Waiter, io::Result<()>)) {
        while let Some((syncs, erase)) = self.next() {
            sync_for(&syncs, disk, done);
            if let Some(job) = erase {
                self.erase_piece(job, disk, done);
            }
        }
    }

    /// All waiting syncs and the first erase; `None` when stopped and empty.
    fn next(&self) -> Option<(Vec<Job>, Option<Job>)> {
        let mut state = self.lock();
        loop {
            if !state.syncs.is_empty() || !state.erases.is_empty() {
                return Some((std::mem::take(&mut state.syncs), state.erases.pop_front()));
            }
            if state.stop {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn erase_piece(&self, mut job: Job, disk: &Disk, done: &impl Fn(Waiter, io::Result<()>)) {
        let SlowOp::Erase { kind, ranges, durable } = &mut job.op else {
            return;
        };
        let result = match ranges.pop_front() {
            None if *durable => disk.sync(),
            None => Ok(()),
            Some(erase) => {
                let (piece, rest) = cut(erase);
                ranges.extend(rest);
                let erased = match kind {
                    Erase::Discard => disk.discard(piece.range),
                    Erase::WriteZeroes => disk.write_zeroes(piece.range, piece.unmap),
                };
                match kind {
                    Erase::Discard => disk.note_discard(piece.range),
                    Erase::WriteZeroes => drop(disk.note_completed_write(piece.range)),
                }
                if erased.is_ok() && (!ranges.is_empty() || *durable) {
                    self.lock().erases.push_back(job);
                    return;
                }
                erased
            }
        };
        done(job.waiter, result);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sync_for(jobs: &[Job], disk: &Disk, done: &impl Fn(Waiter, io::Result<()>)) {
    let needed = |job: &Job| match job.op {
        SlowOp::SyncUpTo { sequence } => !disk.is_synced(sequence),
        _ => true,
    };
    let result = if jobs.iter().any(needed) { disk.sync() } else { Ok(()) };
    for job in jobs {
        let result = match &result {
            Err(error) if needed(job) => {
                Err(io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO)))
            }
            _ => Ok(()),
        };
        done(job.waiter, result);
    }
}

/// The first piece of `erase`, and what remains.
fn cut(erase: EraseRange) -> (EraseRange, Option<EraseRange>) {
    let EraseRange { range, unmap } = erase;
    let middle = range.end.min(range.start.saturating_add(ERASE_PIECE_BYTES));
    let part = |start, end| EraseRange { range: ByteRange { start, end }, unmap };
    (part(range.start, middle), (middle < range.end).then(|| part(middle, range.end)))
}
