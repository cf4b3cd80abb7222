//! A running virtqueue of one guest: takes chains, gives them back, signals the guest.
//!
//! Invariants:
//! 1. Every head that [`Vring::take`] returns is given back by exactly one [`Vring::give_back`],
//!    unless the ring was abandoned because its front end is gone.
//! 2. `mem` stays mapped until `in_flight` is 0.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::chain::{Chain, ChainError, DescriptorTable};
use crate::crash::{self, Point};
use crate::inflight::Tracker;
use crate::memory::Mem;

/// The used ring (virtio 1.2, 2.7.8): flags u16, index u16, then entries of 8 bytes.
const USED_INDEX_AT: u64 = 2;
const USED_HEADER_BYTES: u64 = 4;
const USED_ENTRY_BYTES: u64 = 8;

/// The available ring (virtio 1.2, 2.7.6): flags u16, index u16, then entries of 2 bytes, then the event index u16.
const AVAIL_HEADER_BYTES: u64 = 4;
const AVAIL_ENTRY_BYTES: u64 = 2;
const AVAIL_NO_INTERRUPT: u16 = 1;

const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A virtqueue that has addresses, memory and a kick descriptor.
#[derive(Debug)]
pub struct Vring {
    queue: Queue,
    mem: Arc<Mem>,
    kick: OwnedFd,
    call: Option<OwnedFd>,
    may_be_indirect: bool,
    has_event_idx: bool,
    /// Requests taken and not given back.
    pub in_flight: usize,
    /// Whether the guest will kick for the next request.
    kick_asked: bool,
    /// Entries written to the used ring that its index does not show yet.
    unpublished: u16,
    broken: bool,
    /// Why it is broken, until somebody has asked.
    complaint: Option<String>,
    /// Keeps what is in flight for the next process, if the front end wants that.
    tracker: Option<Tracker>,
}

impl Vring {
    /// A ring that is ready to run for a driver that accepted `features`; `queue` has been checked against `mem`.
    #[must_use]
    pub fn new(
        queue: Queue,
        mem: Arc<Mem>,
        kick: OwnedFd,
        call: Option<OwnedFd>,
        features: u64,
        tracker: Option<Tracker>,
    ) -> Self {
        Self {
            queue,
            mem,
            kick,
            call,
            may_be_indirect: features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
            has_event_idx: features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            in_flight: 0,
            kick_asked: false,
            unpublished: 0,
            broken: false,
            complaint: None,
            tracker,
        }
    }

    /// Descriptor that the front end writes to when the ring has new requests.
    #[must_use]
    pub fn kick_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }

    /// Position in the available ring from which to go on, and the kick and call descriptors.
    #[must_use]
    pub fn into_parts(self) -> (u16, OwnedFd, Option<OwnedFd>) {
        (self.queue.next_avail(), self.kick, self.call)
    }

    /// Replaces the descriptor to signal, and signals it.
    pub fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
        self.signal();
    }

    /// Takes up to `limit` chain heads off the ring. False when more may be waiting.
    ///
    /// A ring whose indices make no sense is broken: nothing more is taken until it is set up anew.
    pub fn take(&mut self, limit: usize, heads: &mut Vec<u16>) -> bool {
        if self.broken {
            return true;
        }
        let before = heads.len();
        let drained = self.try_take(limit, heads);
        self.in_flight += heads.len() - before;
        if let Some(tracker) = &mut self.tracker {
            heads[before..].iter().for_each(|&head| tracker.take(head));
            if heads.len() > before {
                crash::here(Point::Marked);
            }
        }
        drained.unwrap_or_else(|error| {
            self.note_broken(&error);
            true
        })
    }

    /// Counts a request that an earlier process had taken.
    pub fn take_again(&mut self) {
        self.in_flight += 1;
    }

    /// Notes that the write at `head` begins to change the disk.
    pub fn note_started(&self, head: u16) {
        if let Some(tracker) = &self.tracker {
            tracker.note_started(head);
        }
    }

    fn try_take(&mut self, limit: usize, heads: &mut Vec<u16>) -> Result<bool, virtio_queue::Error> {
        let before = heads.len();
        let size = self.queue.size();
        let available = self.queue.avail_idx(&*self.mem, Ordering::Acquire)?.0;
        let waiting = usize::from(available.wrapping_sub(self.queue.next_avail()));
        heads.extend(self.queue.iter(&*self.mem)?.take(limit).map(|chain| chain.head_index()));
        if let Some(bad) = heads[before..].iter().position(|&head| head >= size) {
            heads.truncate(before + bad);
            return Err(virtio_queue::Error::InvalidDescriptorIndex);
        }
        let taken = heads.len() - before;
        if taken < waiting.min(limit) {
            // The iterator ends early, and for good, where an entry cannot be read.
            return Err(virtio_queue::Error::InvalidAvailRingIndex);
        }
        self.kick_asked &= taken == 0;
        Ok(taken < limit)
    }

    /// Whether requests wait in the ring.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        let available = self.queue.avail_idx(&*self.mem, Ordering::Acquire);
        !self.broken && available.is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Has the guest kick for the next request. True when one waits already.
    pub fn ask_for_kick(&mut self) -> bool {
        if self.kick_asked || self.broken {
            return false;
        }
        match self.queue.enable_notification(&*self.mem) {
            Ok(more) => {
                self.kick_asked = true;
                more
            }
            Err(error) => {
                self.note_broken(&error);
                false
            }
        }
    }

    fn note_broken(&mut self, error: &virtio_queue::Error) {
        if !std::mem::replace(&mut self.broken, true) {
            self.complaint = Some(error.to_string());
        }
    }

    /// Why the ring has just been found to be broken. A guest can have that as often as it likes, so this is not logged here.
    pub fn take_complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }

    /// Reads the chain at `head`.
    ///
    /// # Errors
    /// See [`ChainError`]; the head must be given back all the same.
    pub fn walk(&self, head: u16, chain: &mut Chain) -> Result<(), ChainError> {
        let table = DescriptorTable {
            address: self.queue.desc_table(),
            size: u32::from(self.queue.size()),
            may_be_indirect: self.may_be_indirect,
        };
        chain.walk(&self.mem, table, head)
    }

    /// Gives the chain at `head` back with `written_bytes` written to it; the guest sees it after [`Vring::publish`].
    pub fn give_back(&mut self, head: u16, written_bytes: u32) {
        self.end_request();
        let at = u64::from(self.queue.next_used().wrapping_add(self.unpublished) % self.queue.size());
        // Two words of 4 bytes: head and length.
        let entry = (u64::from(written_bytes) << 32 | u64::from(head)).to_le();
        let address = self.queue.used_ring() + USED_HEADER_BYTES + at * USED_ENTRY_BYTES;
        match self.mem.write_obj(entry, GuestAddress(address)) {
            Ok(()) => {
                self.unpublished += 1;
                if let Some(tracker) = &mut self.tracker {
                    tracker.give_back(head);
                }
                crash::here(Point::UsedEntry);
            }
            Err(error) => self.note_broken(&virtio_queue::Error::GuestMemory(error)),
        }
    }

    /// Shows the guest all that was given back, in one step, and signals it if it wants to know.
    pub fn publish(&mut self) {
        if self.unpublished == 0 {
            return;
        }
        let old = self.queue.next_used();
        let new = old.wrapping_add(std::mem::take(&mut self.unpublished));
        let index = GuestAddress(self.queue.used_ring() + USED_INDEX_AT);
        self.queue.set_next_used(new);
        if let Err(error) = self.mem.store(new.to_le(), index, Ordering::Release) {
            return self.note_broken(&virtio_queue::Error::GuestMemory(error));
        }
        crash::here(Point::UsedIndex);
        if let Some(tracker) = &mut self.tracker {
            tracker.published(new);
        }
        crash::here(Point::Published);
        // The guest's wish is read after the index is written: it writes its wish and then reads the index.
        fence(Ordering::SeqCst);
        if self.wants_signal(old, new) {
            self.signal();
        }
    }

    /// Whether the guest wants to be signalled for used entries `old` up to, not including, `new`.
    fn wants_signal(&self, old: u16, new: u16) -> bool {
        let ring = self.queue.avail_ring();
        let event = ring + AVAIL_HEADER_BYTES + AVAIL_ENTRY_BYTES * u64::from(self.queue.size());
        let wish = |address| self.mem.load(GuestAddress(address), Ordering::Relaxed).map(u16::from_le);
        if self.has_event_idx {
            wish(event).map_or(true, |event| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            wish(ring).map_or(true, |flags| flags & AVAIL_NO_INTERRUPT == 0)
        }
    }

    /// Ends a request without giving it back: its front end is gone and will ask again.
    pub fn end_request(&mut self) {
        debug_assert!(self.in_flight > 0);
        self.in_flight -= 1;
    }

    /// Signals the guest. Whether the descriptor blocks is up to the front end at any time, so it is
    /// written only while there is room; where there is none, a signal is under way already.
    pub fn signal(&self) {
        let Some(call) = &self.call else { return };
        let mut polled = [PollFd::new(call, PollFlags::OUT)];
        let has_room = poll(&mut polled, Some(&NO_TIME)).is_ok_and(|count| count > 0);
        if has_room
            && let Err(error) = rustix::io::write(call, &1u64.to_ne_bytes())
            && error != rustix::io::Errno::AGAIN
        {
            log::debug!("event=call-failed error=\"{error}\"");
        }
    }
}
