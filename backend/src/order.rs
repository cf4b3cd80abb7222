//! The one order of all requests on the disk. Pure: no IO, no virtio, no threads.
//!
//! Invariants:
//! 1. Two admitted requests whose ranges overlap are never granted at once, unless both only read.
//! 2. Conflicting requests are granted in the order of their admission, so nothing overtakes and nothing starves.
//! 3. A request waits only for earlier ones, so there is no cycle and no deadlock.
//!
//! A request that must wait is not a thread: the caller keeps it as data and runs it when a
//! release names its owner.

use slab::Slab;

/// Half-open range of bytes on the disk: `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// First byte after the range.
    pub end: u64,
}

impl ByteRange {
    /// The range grown on both sides to multiples of `align_bytes` (a power of two).
    #[must_use]
    pub fn rounded_out(self, align_bytes: u64) -> Self {
        debug_assert!(align_bytes.is_power_of_two());
        let mask = align_bytes - 1;
        Self { start: self.start & !mask, end: self.end.saturating_add(mask) & !mask }
    }

    /// The largest range inside this one whose ends are multiples of `align_bytes` (a power of two);
    /// empty when there is none.
    #[must_use]
    pub fn rounded_in(self, align_bytes: u64) -> Self {
        debug_assert!(align_bytes.is_power_of_two());
        let mask = align_bytes - 1;
        let start = self.start.saturating_add(mask) & !mask;
        Self { start, end: (self.end & !mask).max(start) }
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// How a request touches its ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads: may run beside other reads.
    Shared,
    /// Writes, discards, write-zeroes: alone on its ranges.
    Exclusive,
}

/// Place of one admitted request; given back with [`Order::release`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an admitted range that is not released blocks the disk for ever"]
pub struct Ticket(usize);

/// Whether an admitted request may run at once.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Nothing conflicts: run it.
    Now(Ticket),
    /// Earlier requests conflict: keep it until a release grants it.
    Parked(Ticket),
}

#[derive(Debug)]
struct Pending<O> {
    owner: O,
    blockers: usize,
    dependents: Vec<usize>,
    /// Entries in `live`.
    ranges: usize,
}

#[derive(Debug, Clone, Copy)]
struct Live {
    range: ByteRange,
    access: Access,
    ticket: usize,
}

/// All requests admitted and not yet released; `O` names who is told when one may run.
#[derive(Debug)]
pub struct Order<O> {
    pending: Slab<Pending<O>>,
    live: Vec<Live>,
}

impl<O: Copy> Default for Order<O> {
    fn default() -> Self {
        Self { pending: Slab::new(), live: Vec::new() }
    }
}

impl<O: Copy> Order<O> {
    /// Admits a request that touches all of `ranges` (none of them empty) in one step.
    pub fn admit(&mut self, ranges: &[ByteRange], access: Access, owner: O) -> Admission {
        let ticket =
            self.pending.insert(Pending { owner, blockers: 0, dependents: Vec::new(), ranges: ranges.len() });
        let mut blockers = 0;
        for live in &self.live {
            let both_read = live.access == Access::Shared && access == Access::Shared;
            if !both_read && ranges.iter().any(|range| range.overlaps(live.range)) {
                self.pending[live.ticket].dependents.push(ticket);
                blockers += 1;
            }
        }
        for &range in ranges {
            debug_assert!(!range.is_empty());
            self.live.push(Live { range, access, ticket });
        }
        self.pending[ticket].blockers = blockers;
        if blockers == 0 { Admission::Now(Ticket(ticket)) } else { Admission::Parked(Ticket(ticket)) }
    }

    /// Ends a request that was granted, and adds the owners of those that may run now to `granted`.
    pub fn release(&mut self, ticket: Ticket, granted: &mut Vec<O>) {
        let done = self.pending.remove(ticket.0);
        assert_eq!(done.blockers, 0, "a parked request cannot end before it was granted");
        self.forget(ticket.0, done.ranges);
        for dependent in done.dependents {
            let waiting = &mut self.pending[dependent];
            waiting.blockers -= 1;
            if waiting.blockers == 0 {
                granted.push(waiting.owner);
            }
        }
    }

    /// Removes the entries of a ticket from `live`, whose order does not matter.
    fn forget(&mut self, ticket: usize, mut ranges: usize) {
        let mut at = self.live.len();
        while ranges > 0 {
            at -= 1;
            if self.live[at].ticket == ticket {
                self.live.swap_remove(at);
                ranges -= 1;
            }
        }
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
