//! A running virtqueue of one guest: takes chains, gives them back, signals the guest.
//!
//! Invariants:
//! 1. Every head that [`Vring::take`] returns is given back by exactly one [`Vring::publish`],
//!    unless the ring was abandoned because its front end is gone.
//! 2. `mem` stays mapped until `in_flight` is 0.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use crate::chain::{Chain, ChainError, DescriptorTable};
use crate::memory::Mem;

const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A virtqueue that has addresses, memory and a kick descriptor.
#[derive(Debug)]
pub struct Vring {
    queue: Queue,
    mem: Arc<Mem>,
    kick: OwnedFd,
    call: Option<OwnedFd>,
    may_be_indirect: bool,
    /// Requests taken and not given back.
    pub in_flight: usize,
    has_news: bool,
    broken: bool,
}

impl Vring {
    /// A ring that is ready to run; `queue` has been checked against `mem`.
    #[must_use]
    pub fn new(
        queue: Queue,
        mem: Arc<Mem>,
        kick: OwnedFd,
        call: Option<OwnedFd>,
        may_be_indirect: bool,
    ) -> Self {
        Self { queue, mem, kick, call, may_be_indirect, in_flight: 0, has_news: false, broken: false }
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
        drained.unwrap_or_else(|error| {
            self.note_broken(&error);
            true
        })
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
        if taken == limit {
            return Ok(false);
        }
        Ok(!self.queue.enable_notification(&*self.mem)?)
    }

    fn note_broken(&mut self, error: &virtio_queue::Error) {
        if !std::mem::replace(&mut self.broken, true) {
            let lost = crate::sigbus::lost_regions();
            log::warn!(
                "event=broken-ring error=\"{error}\" lost_memory_regions={lost} the guest must reset it"
            );
        }
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

    /// Gives the chain at `head` back with `written_bytes` written to it.
    pub fn publish(&mut self, head: u16, written_bytes: u32) {
        self.end_request();
        if let Err(error) = self.queue.add_used(&*self.mem, head, written_bytes) {
            self.note_broken(&error);
        }
        self.has_news = true;
    }

    /// Ends a request without giving it back: its front end is gone and will ask again.
    pub fn end_request(&mut self) {
        debug_assert!(self.in_flight > 0);
        self.in_flight -= 1;
    }

    /// Signals the guest if chains were given back since the last call and it wants to know.
    pub fn notify(&mut self) {
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        if self.queue.needs_notification(&*self.mem).unwrap_or(true) {
            self.signal();
        }
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
