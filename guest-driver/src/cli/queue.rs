//! Files on their way into group commits: one thread reads them, one commits what has come meanwhile.
//!
//! Invariant: at most [`BATCH_BYTES_MAX`] bytes wait, or one larger file.

use receipt_store::ReceiptPath;
use receipt_store::layout::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

/// A receipt to store.
#[derive(Debug)]
pub struct Item {
    /// Path.
    pub path: ReceiptPath,
    /// Bytes.
    pub data: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
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
    pub fn push(&self, item: Item) -> bool {
        let len = item.data.len() as u64;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.is_closed && !state.items.is_empty() && state.bytes + len > BATCH_BYTES_MAX {
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
    pub fn take_batch(&self) -> Vec<Item> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.items.is_empty() && !state.is_closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut batch: Vec<Item> = Vec::new();
        let mut bytes = 0;
        while let Some(item) = state.items.front() {
            let len = item.data.len() as u64;
            if !batch.is_empty() && (bytes + len > BATCH_BYTES_MAX || batch.len() == BATCH_RECORDS_MAX) {
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
