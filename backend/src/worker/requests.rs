//! One request from its chain to its answer: parsed, admitted, kept, given back.

use std::io;

use log::Level;

use super::Worker;
use crate::crash::{self, Point};
use crate::execute::{self, Context, Kind, Ranges, Start, Work};
use crate::limits::{MAX_IN_FLIGHT, MAX_SPARE_SEGMENTS};
use crate::memory::HostSlice;
use crate::order::{Admission, Ticket};
use crate::request::{Request, Status};
use crate::stats::Counter;
use crate::syncer::Waiter;

/// A request that was taken and not yet given back.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) queue: usize,
    pub(super) head: u16,
    pub(super) status: HostSlice,
    /// What it touches.
    pub(super) ranges: Ranges,
    pub(super) work: Work,
    pub(super) kind: Kind,
    pub(super) len_bytes: u64,
    /// Pieces of guest memory that it was taken with.
    pub(super) pieces: usize,
    pub(super) ticket: Option<Ticket>,
}

impl Worker {
    /// Parses and starts one request.
    pub(super) fn begin(&mut self, queue: usize, head: u16) {
        let Some(ring) = &mut self.rings[queue] else {
            return;
        };
        for segments in [&mut self.chain.readable, &mut self.chain.writable] {
            if segments.capacity() == 0 {
                *segments = self.spare_segments.pop().unwrap_or_default();
            }
        }
        if let Err(error) = ring.vring.walk(head, &mut self.chain) {
            log::debug!("guest={} event=bad-chain queue={queue} error=\"{error}\"", self.config.guest);
            ring.give_back(head, 0);
            return self.count(Counter::Errors, 1);
        }
        let Some(request) = Request::parse(&mut self.chain, self.shared.disk.image().capacity_bytes()) else {
            log::debug!("guest={} event=no-status-byte queue={queue}", self.config.guest);
            ring.give_back(head, 0);
            return self.count(Counter::Errors, 1);
        };
        if let Some(throttle) = &mut self.throttle {
            throttle.charge(request.len_bytes());
        }
        let status = request.status;
        let context = Context {
            disk: &self.shared.disk,
            may_write: self.may_write,
            serial: &self.config.serial,
            write_through: self.write_through,
        };
        let (ranges, kind, work, slow) = match request
            .operation
            .map(|operation| execute::start(operation, context))
        {
            Err(refusal) => return self.answer(queue, head, status, refusal, 0),
            Ok(Start::Finished(outcome, data_bytes)) => {
                return self.answer(queue, head, status, outcome, data_bytes);
            }
            Ok(Start::Slow(op)) => (Ranges::NONE, Kind::Flush, Work::AwaitSlow { moved_bytes: 0 }, Some(op)),
            Ok(Start::Ordered { ranges, kind, work }) => (ranges, kind, work, None),
        };
        let (len_bytes, pieces, ticket) = (work.memory_bytes(), work.pieces(), None);
        let token =
            self.keep(InFlight { queue, head, status, ranges, work, kind, len_bytes, pieces, ticket });
        match slow {
            Some(op) => self.shared.syncer.submit(self.waiter(token), op),
            None => self.batch.push(token),
        }
    }

    /// Admits the requests that were begun, all under one lock and in ring order, and starts those that may run.
    pub(super) fn admit_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        let (worker, before) = (self.config.index, batch.len());
        let mut entrance = self.shared.gate.enter();
        batch.retain(|&token| {
            let request = &mut self.requests[token];
            let waiter = Waiter { worker, token };
            let admission = entrance.admit(request.ranges.as_slice(), request.kind.access(), waiter);
            let may_run = matches!(admission, Admission::Now(_));
            let (Admission::Now(ticket) | Admission::Parked(ticket)) = admission;
            request.ticket = Some(ticket);
            may_run
        });
        drop(entrance);
        self.count(Counter::Parked, (before - batch.len()) as u64);
        batch.drain(..).for_each(|token| self.run_admitted(token));
        self.batch = batch;
    }

    /// Answers a request that was not kept.
    pub(super) fn answer(
        &mut self,
        queue: usize,
        head: u16,
        status_at: HostSlice,
        status: Status,
        data_bytes: u32,
    ) {
        if status != Status::Ok {
            self.count(Counter::Errors, 1);
        }
        if let Some(ring) = &mut self.rings[queue] {
            ring.finish(head, status_at, status, data_bytes);
        }
    }

    pub(super) fn keep(&mut self, request: InFlight) -> usize {
        assert!(self.requests.len() < MAX_IN_FLIGHT, "the kernel may hold pointers into the requests");
        self.writes += usize::from(request.kind.changes_disk());
        self.in_flight_bytes += request.len_bytes;
        self.in_flight_pieces += request.pieces;
        self.further_ranges += request.ranges.as_slice().len() - 1;
        self.requests.insert(request)
    }

    /// Carries on with a request whose ranges were granted.
    pub(super) fn run_admitted(&mut self, token: usize) {
        if self.requests[token].kind.changes_disk() && self.shared.disk.is_poisoned() {
            return self.finish(token, Status::IoErr, 0);
        }
        if self.requests[token].kind.changes_disk() {
            if self.is_sealed(token) {
                return self.refuse_sealed(token);
            }
            self.note_started(token);
        }
        crash::here(Point::Granted);
        let work = &mut self.requests[token].work;
        match work {
            Work::Transfer { bounces: false, .. } => self.submit_next(token),
            Work::Transfer { bounces: true, .. } => self.waiting_for_buffer.push_back(token),
            Work::Slow(_) => {
                if let Work::Slow(op) = std::mem::replace(work, Work::AwaitSlow { moved_bytes: 0 }) {
                    self.shared.syncer.submit(self.waiter(token), op);
                }
            }
            Work::AwaitSlow { .. } => {}
        }
    }

    fn note_started(&self, token: usize) {
        let InFlight { queue, head, .. } = self.requests[token];
        if let Some(ring) = &self.rings[queue] {
            ring.vring.note_started(head);
        }
    }

    pub(super) fn finish_slow(&mut self, token: usize, result: &io::Result<()>) {
        let Work::AwaitSlow { moved_bytes } = self.requests[token].work else {
            return;
        };
        match result {
            Ok(()) => self.finish(token, Status::Ok, moved_bytes),
            Err(error) => {
                let guest = &self.config.guest;
                self.log.log(
                    Level::Warn,
                    format_args!("guest={guest} event=slow-operation-failed error=\"{error}\""),
                );
                self.finish(token, Status::IoErr, 0);
            }
        }
    }

    /// Gives a request back to its guest; its ranges are released when the guest can see that. `moved_bytes` is what was read or written.
    pub(super) fn finish(&mut self, token: usize, status: Status, moved_bytes: u32) {
        let mut request = self.requests.remove(token);
        let is_read = request.kind == Kind::Read && status == Status::Ok;
        if let Some(ring) = &mut self.rings[request.queue] {
            ring.finish(request.head, request.status, status, if is_read { moved_bytes } else { 0 });
        }
        self.ended.extend(request.ticket.take());
        if let Work::Transfer { transfer, .. } = &mut request.work {
            self.keep_segments(transfer.take_segments());
        }
        self.count_request(request.kind, status, u64::from(moved_bytes));
        self.in_flight_bytes -= request.len_bytes;
        self.in_flight_pieces -= request.pieces;
        self.further_ranges -= request.ranges.as_slice().len() - 1;
        self.writes -= usize::from(request.kind.changes_disk());
        self.note_ended(token);
        if self.writes == 0 {
            for reply in self.waiting_for_writes.drain(..) {
                // An operator that does not wait has lost its connection.
                let _ = reply.send(());
            }
        }
    }

    /// Keeps the memory of a list for a later request.
    fn keep_segments(&mut self, mut segments: Vec<HostSlice>) {
        if segments.capacity() <= MAX_SPARE_SEGMENTS && self.spare_segments.len() < MAX_IN_FLIGHT {
            segments.clear();
            self.spare_segments.push(segments);
        }
    }

    pub(super) fn release_early(&mut self, token: usize) {
        self.ended.extend(self.requests[token].ticket.take());
    }

    pub(super) fn count_request(&self, kind: Kind, status: Status, moved_bytes: u64) {
        let (requests, bytes) = match (status, kind) {
            (Status::IoErr | Status::Unsupported, _) => (Counter::Errors, None),
            (Status::Ok, Kind::Read) => (Counter::Reads, Some(Counter::ReadBytes)),
            (Status::Ok, Kind::Write) => (Counter::Writes, Some(Counter::WrittenBytes)),
            (Status::Ok, Kind::Flush) => (Counter::Flushes, None),
            (Status::Ok, Kind::Erase) => (Counter::Erases, None),
        };
        self.count(requests, 1);
        if let Some(counter) = bytes {
            self.count(counter, moved_bytes);
        }
    }

    pub(super) fn count(&self, counter: Counter, count: u64) {
        self.shared.stats(self.config.index).add(counter, count);
    }

    pub(super) fn waiter(&self, token: usize) -> Waiter {
        Waiter { worker: self.config.index, token }
    }
}
