//! Files on their way into group commits: one thread reads them, one commits what has come meanwhile.
//!
//! Invariant: as many bytes wait at most as one commit may have, or one larger file, so that memory stays small.

use receipt_store::{CommitLimits, OwnedChange};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Debug, Default)]
struct State {
    items: VecDeque<OwnedChange>,
    bytes: u64,
    is_closed: bool,
    /// The producer waits for room.
    is_full: bool,
}

/// A queue between one producer and one consumer.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limits: CommitLimits,
}

impl Queue {
    /// An empty queue; a commit takes as much as `limits` say.
    pub fn new(limits: CommitLimits) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), limits: limits.bounded() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item, waiting for room; false when the consumer has given up.
    pub fn push(&self, item: OwnedChange) -> bool {
        let len = item.data_len();
        let mut state = self.lock();
        while !state.is_closed && !state.items.is_empty() && state.bytes + len > self.limits.bytes {
            state.is_full = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_full = false;
        if !state.is_closed {
            state.bytes += len;
            state.items.push_back(item);
            self.changed.notify_all();
        }
        !state.is_closed
    }

    /// No more items: the consumer gets what is left, a waiting producer gives up.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Waits for an item, then for more as long as the limits say, and takes all that fit into one group commit; empty = closed and drained.
    pub fn take_batch(&self) -> Vec<OwnedChange> {
        let mut state = self.lock();
        while state.items.is_empty() && !state.is_closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let began = Instant::now();
        while !state.is_closed && !state.is_full && state.items.len() < self.limits.records {
            let Some(left) = self.limits.wait.checked_sub(began.elapsed()).filter(|left| !left.is_zero())
            else {
                break;
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut batch: Vec<OwnedChange> = Vec::new();
        let mut bytes = 0;
        while let Some(item) = state.items.front() {
            let len = item.data_len();
            if !batch.is_empty() && (bytes + len > self.limits.bytes || batch.len() == self.limits.records) {
                break;
            }
            bytes += len;
            batch.extend(state.items.pop_front());
        }
        state.bytes -= bytes;
        state.is_full = false;
        self.changed.notify_all();
        batch
    }
}
