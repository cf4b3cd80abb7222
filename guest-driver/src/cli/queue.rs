//! Files on their way into group commits: one thread reads them, one commits what has come meanwhile.
//!
//! Invariant: at most [`BYTES_MAX`] bytes wait, or one larger file; a commit takes as much, so that memory stays small.

use receipt_store::OwnedChange;
use receipt_store::layout::BATCH_RECORDS_MAX;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

/// Most bytes that wait, and most in a group commit.
const BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, Default)]
struct State {
    items: VecDeque<OwnedChange>,
    bytes: u64,
    is_closed: bool,
}

/// A queue between one producer and one consumer.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

impl Queue {
    /// Adds an item, waiting for room; false when the consumer has given up.
    pub fn push(&self, item: OwnedChange) -> bool {
        let len = item.data_len();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.is_closed && !state.items.is_empty() && state.bytes + len > BYTES_MAX {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.is_closed {
            state.bytes += len;
            state.items.push_back(item);
            self.changed.notify_all();
        }
        !state.is_closed
    }

    /// No more items: the consumer gets what is left, a waiting producer gives up.
    pub fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.changed.notify_all();
    }

    /// Waits for an item and takes all that fit into one group commit; empty = closed and drained.
    pub fn take_batch(&self) -> Vec<OwnedChange> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.items.is_empty() && !state.is_closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut batch: Vec<OwnedChange> = Vec::new();
        let mut bytes = 0;
        while let Some(item) = state.items.front() {
            let len = item.data_len();
            if !batch.is_empty() && (bytes + len > BYTES_MAX || batch.len() == BATCH_RECORDS_MAX) {
                break;
            }
            bytes += len;
            batch.extend(state.items.pop_front());
        }
        state.bytes -= bytes;
        self.changed.notify_all();
        batch
    }
}
