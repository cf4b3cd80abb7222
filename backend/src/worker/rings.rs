//! The rings of a worker: started, stopped, drained a batch at a time, signalled.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::Sender;
use std::time::Instant;

use log::Level;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::{Worker, watch};
use crate::crash::{self, Point};
use crate::inflight::Recovered;
use crate::limits::{
    MAX_BATCH, MAX_BATCH_IN_LINE, MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, MAX_IN_FLIGHT_PIECES,
    MAX_ROUND_DESCRIPTORS,
};
use crate::memory::HostSlice;
use crate::request::Status;
use crate::stats::Counter;
use crate::vring::Vring;

/// A ring and how it is doing.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) vring: Box<Vring>,
    /// Whether requests may be waiting in it.
    pub(super) ready: bool,
    pub(super) stopping: Option<Sender<Box<Vring>>>,
    pub(super) abandoned: bool,
    /// Heads that an earlier process had taken, to be carried out before any new one.
    pub(super) replay: VecDeque<u16>,
}

impl Worker {
    pub(super) fn start_ring(
        &mut self,
        index: usize,
        vring: Box<Vring>,
        features: u64,
        recovered: Recovered,
    ) -> Result<(), (io::Error, Box<Vring>)> {
        if self.rings.len() <= index {
            self.rings.resize_with(index + 1, || None);
        }
        assert!(self.rings[index].is_none(), "a ring is started only while it is stopped");
        // Edge-triggered and never read: a front end cannot make the worker block on its descriptor.
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if let Err(error) = watch(&self.epoll, vring.kick_fd(), events, index as u64) {
            return Err((error, vring));
        }
        vring.signal();
        self.write_through = features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        // Requests may have been there before the kick descriptor was.
        let Recovered { started, waiting } = recovered;
        if started.len() + waiting.len() > 0 {
            let (guest, started, in_flight) =
                (&self.config.guest, started.len(), started.len() + waiting.len());
            self.log.log(
                Level::Info,
                format_args!(
                    "guest={guest} event=replay queue={index} started={started} in_flight={in_flight}"
                ),
            );
        }
        let replay = waiting.into();
        self.rings[index] = Some(Running { vring, ready: true, stopping: None, abandoned: false, replay });
        if !started.is_empty() {
            self.restart_writes(index, &started);
        }
        Ok(())
    }

    /// Carries out again what may be half done, whatever else waits: until then nobody may look at its range.
    fn restart_writes(&mut self, index: usize, heads: &[u16]) {
        let mut heads = heads.iter().copied();
        while self.free_places() > 0 && heads.len() > 0 {
            let batch = self.free_places().min(MAX_BATCH);
            for head in heads.by_ref().take(batch) {
                self.rings[index].iter_mut().for_each(|ring| ring.vring.take_again());
                self.begin(index, head);
            }
            self.admit_batch();
        }
        // No process has more in flight: a front end that says so waits for its turn.
        if let Some(ring) = &mut self.rings[index] {
            heads.rev().for_each(|head| ring.replay.push_front(head));
        }
        crash::here(Point::Replayed);
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
        // What has not begun stays in flight for whoever runs the ring next.
        ring.replay.clear();
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
            let index = self.next_ring % self.rings.len();
            self.next_ring = index + 1;
            walked += self.drain_ring(index);
        }
    }

    /// Takes a batch from one ring and returns the number of descriptors walked.
    fn drain_ring(&mut self, index: usize) -> usize {
        // In line the guest would see nothing until the batch is done, and so go to sleep for as long.
        let longest = if self.engine.is_in_line() { MAX_BATCH_IN_LINE } else { MAX_BATCH };
        let room = self.free_places().min(longest);
        let has_room = self.has_room();
        if !has_room || !self.rings[index].as_ref().is_some_and(Running::may_take) {
            return 0;
        }
        let is_replay = self.rings[index].as_ref().is_some_and(|ring| !ring.replay.is_empty());
        // What was taken once has been counted as the guest's share.
        let room = if is_replay { room } else { room.min(self.share()) };
        let Some(ring) = self.rings[index].as_mut().filter(|_| room > 0) else {
            return 0;
        };
        let mut walked = 0;
        let mut heads = std::mem::take(&mut self.heads);
        ring.take(room, &mut heads);
        for head in heads.drain(..) {
            self.begin(index, head);
            walked += self.chain.walked;
        }
        self.heads = heads;
        self.admit_batch();
        walked
    }

    /// Requests that the guest's share lets it have now. With none, its requests are held back for a while.
    fn share(&mut self) -> usize {
        let Some(throttle) = &mut self.throttle else {
            return usize::MAX;
        };
        let now = Instant::now();
        let room = throttle.room(now);
        if room == 0 {
            self.held_until = Some(now + throttle.pause());
            self.count(Counter::HeldBack, 1);
        }
        room
    }

    /// Requests that may be taken, if each touches one range.
    fn free_places(&self) -> usize {
        if self.in_flight_pieces >= MAX_IN_FLIGHT_PIECES {
            return 0;
        }
        MAX_IN_FLIGHT.saturating_sub(self.requests.len() + self.further_ranges)
    }

    /// Whether another request may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.held_until.is_none()
            && !self.shared.is_holding()
            && self.free_places() > 0
            && self.in_flight_bytes < MAX_IN_FLIGHT_BYTES
    }

    /// Shows guests what has ended, releases its ranges, and runs what that lets run; then hands back the rings
    /// that are to stop and have no request left.
    pub(super) fn settle(&mut self) {
        loop {
            self.resume_waiting_for_buffer();
            self.rings.iter_mut().flatten().for_each(|ring| ring.vring.publish());
            let mut granted = std::mem::take(&mut self.granted);
            self.shared.gate.release(self.config.index, &mut self.ended, &mut granted);
            let is_done = granted.is_empty();
            granted.drain(..).for_each(|waiter| self.run_admitted(waiter.token));
            self.granted = granted;
            self.engine.flush_submissions();
            if is_done {
                break;
            }
        }
        self.log_broken_rings();
        for slot in &mut self.rings {
            let Some(ring) = slot else { continue };
            if ring.vring.in_flight == 0
                && let Some(reply) = ring.stopping.take()
                && let Some(stopped) = slot.take()
            {
                // A session that does not wait is gone with all its rings.
                let _ = reply.send(stopped.vring);
            }
        }
        while self.rings.pop_if(|last| last.is_none()).is_some() {}
    }

    pub(super) fn log_broken_rings(&mut self) {
        for (queue, ring) in self.rings.iter_mut().enumerate() {
            let Some(error) = ring.as_mut().and_then(|ring| ring.vring.take_complaint()) else { continue };
            let (guest, lost) = (&self.config.guest, crate::sigbus::lost_regions());
            let line = format_args!(
                "guest={guest} event=broken-ring queue={queue} error=\"{error}\" lost_memory_regions={lost} the guest must reset it"
            );
            self.log.log(Level::Warn, line);
        }
    }
}

impl Running {
    pub(super) fn may_take(&self) -> bool {
        self.ready && self.stopping.is_none()
    }

    /// Takes up to `limit` heads: first those that an earlier process had taken.
    fn take(&mut self, limit: usize, heads: &mut Vec<u16>) {
        if self.replay.is_empty() {
            self.ready = !self.vring.take(limit, heads);
            return;
        }
        let count = self.replay.len().min(limit);
        for head in self.replay.drain(..count) {
            self.vring.take_again();
            heads.push(head);
        }
    }

    /// Writes the status byte and gives the chain back.
    pub(super) fn finish(&mut self, head: u16, status_at: HostSlice, status: Status, data_bytes: u32) {
        if !self.abandoned {
            status_at.copy_from(&[status.to_byte()]);
        }
        self.give_back(head, data_bytes + 1);
    }

    /// Gives a chain back, to be shown with the rest of the round.
    pub(super) fn give_back(&mut self, head: u16, written_bytes: u32) {
        if self.abandoned {
            self.vring.end_request();
        } else {
            self.vring.give_back(head, written_bytes);
        }
    }
}
