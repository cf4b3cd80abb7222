//! The rings of a worker: started, stopped, drained a batch at a time, signalled.

use std::io;
use std::sync::mpsc::Sender;

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::{Worker, watch};
use crate::limits::{MAX_BATCH, MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, MAX_ROUND_DESCRIPTORS};
use crate::memory::HostSlice;
use crate::request::Status;
use crate::vring::Vring;

/// A ring and how it is doing.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) vring: Box<Vring>,
    /// Whether requests may be waiting in it.
    pub(super) ready: bool,
    pub(super) stopping: Option<Sender<Box<Vring>>>,
    pub(super) abandoned: bool,
}

impl Worker {
    pub(super) fn start_ring(
        &mut self,
        index: usize,
        vring: Box<Vring>,
        features: u64,
    ) -> Result<(), (io::Error, Box<Vring>)> {
        assert!(self.rings[index].is_none(), "a ring is started only while it is stopped");
        // Edge-triggered and never read: a front end cannot make the worker block on its descriptor.
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if let Err(error) = watch(&self.epoll, vring.kick_fd(), events, index as u64) {
            return Err((error, vring));
        }
        vring.signal();
        self.write_through = features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        // Requests may have been there before the kick descriptor was.
        self.rings[index] = Some(Running { vring, ready: true, stopping: None, abandoned: false });
        Ok(())
    }

    pub(super) fn stop_ring(&mut self, index: usize, abandon: bool, reply: Sender<Box<Vring>>) {
        let Some(Some(ring)) = self.rings.get_mut(index) else {
            return;
        };
        // A descriptor that stays open in the front end would stay in the epoll set after our close.
        if let Err(error) =
            self.epoll.ctl(ControlOperation::Delete, ring.vring.kick_fd(), EpollEvent::default())
        {
            log::warn!("guest={} event=unwatch-failed queue={index} error=\"{error}\"", self.config.guest);
        }
        ring.stopping = Some(reply);
        ring.abandoned = abandon;
    }

    /// Takes requests from the rings that have some, a batch from each, until enough descriptors were walked;
    /// the next round begins where this one ends.
    pub(super) fn drain_rings(&mut self) {
        let mut walked = 0;
        for _ in 0..self.rings.len() {
            if walked >= MAX_ROUND_DESCRIPTORS {
                return;
            }
            let index = self.next_ring;
            self.next_ring = (index + 1) % self.rings.len();
            walked += self.drain_ring(index);
        }
    }

    /// Takes a batch from one ring and returns the number of descriptors walked.
    pub(super) fn drain_ring(&mut self, index: usize) -> usize {
        let room = (MAX_IN_FLIGHT - self.requests.len()).min(MAX_BATCH);
        let has_room = self.has_room();
        let Some(ring) = self.rings[index].as_mut().filter(|ring| has_room && ring.may_take()) else {
            return 0;
        };
        let mut walked = 0;
        let mut heads = std::mem::take(&mut self.heads);
        ring.ready = !ring.vring.take(room, &mut heads);
        for head in heads.drain(..) {
            self.begin(index, head);
            walked += self.chain.walked;
            if self.engine.is_inline() {
                self.reap_completions();
            }
        }
        self.heads = heads;
        walked
    }

    pub(super) fn has_room(&self) -> bool {
        self.requests.len() < MAX_IN_FLIGHT && self.in_flight_bytes < MAX_IN_FLIGHT_BYTES
    }

    /// Signals guests, and hands back the rings that are to stop and have no request left.
    pub(super) fn settle_rings(&mut self) {
        for slot in &mut self.rings {
            let Some(ring) = slot else { continue };
            ring.vring.notify();
            if ring.vring.in_flight == 0
                && let Some(reply) = ring.stopping.take()
                && let Some(stopped) = slot.take()
            {
                // A session that does not wait is gone with all its rings.
                let _ = reply.send(stopped.vring);
            }
        }
    }
}

impl Running {
    pub(super) fn may_take(&self) -> bool {
        self.ready && self.stopping.is_none()
    }

    /// Writes the status byte and gives the chain back.
    pub(super) fn finish(&mut self, head: u16, status_at: HostSlice, status: Status, data_bytes: u32) {
        if !self.abandoned {
            status_at.copy_from(&[status.to_byte()]);
        }
        self.publish(head, data_bytes + 1);
    }

    pub(super) fn publish(&mut self, head: u16, written_bytes: u32) {
        if self.abandoned {
            self.vring.end_request();
        } else {
            self.vring.publish(head, written_bytes);
        }
    }
}
