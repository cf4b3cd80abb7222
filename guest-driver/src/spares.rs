//! Buffers of receipts that nobody needs any more, for the next ones: fresh memory costs a page fault and two times zeroing for
//! every 4 KiB, in a guest without KVM more than reading them.
//!
//! Invariant: what a buffer held before is never seen: a whole device read replaces every byte, or the buffer is thrown away.

use crate::device::AlignedBuf;
use std::sync::{Mutex, PoisonError};

/// Most buffers that are kept.
const BUFFERS_MAX: usize = 4;
/// Most blocks of a kept buffer, 512 KiB: a reader stays small.
const BLOCKS_MAX: usize = 128;

/// The buffers.
#[derive(Debug, Default)]
pub struct Spares(Mutex<Vec<AlignedBuf>>);

impl Spares {
    /// A buffer of any length and content; an empty one when none is left.
    pub fn take(&self) -> AlignedBuf {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Keeps a buffer if there is room for it.
    pub fn give_back(&self, buf: AlignedBuf) {
        if (1..=BLOCKS_MAX).contains(&buf.capacity_blocks()) {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < BUFFERS_MAX {
                kept.push(buf);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_small_buffers_are_kept() {
        let spares = Spares::default();
        spares.give_back(AlignedBuf::default());
        spares.give_back(AlignedBuf::zeroed(BLOCKS_MAX + 1));
        assert_eq!(spares.take().capacity_blocks(), 0);
        (0..BUFFERS_MAX + 1).for_each(|_| spares.give_back(AlignedBuf::zeroed(BLOCKS_MAX)));
        let kept = std::iter::from_fn(|| Some(spares.take()).filter(|buf| buf.capacity_blocks() > 0));
        assert_eq!(kept.count(), BUFFERS_MAX);
    }
}
