//! One guest's worker: a thread that owns the guest's running rings and all its requests.
//!
//! A request goes one way: ring -> parse -> admit (now, or parked as data) -> engine -> publish, and
//! only then are its ranges released.
//!
//! Invariants:
//! 1. A request in `requests` belongs to exactly one ring, whose `in_flight` counts it.
//! 2. `requests` never grows past [`MAX_IN_FLIGHT`] and so never moves: the kernel may hold
//!    pointers into it.
//! 3. A ring is stopped only when none of its requests is left.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use log::Level;
use slab::Slab;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::chain::Chain;
use crate::engine::{Completion, Engine};
use crate::execute::{self, Context, Kind, Start, Work};
use crate::limits::{
    BOUNCE_BUFFER_BYTES, MAX_BATCH, MAX_BOUNCE_BUFFERS, MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, MAX_QUEUES,
    MAX_ROUND_DESCRIPTORS,
};
use crate::log_limit::LogLimit;
use crate::memory::HostSlice;
use crate::order::{Admission, Ticket};
use crate::request::{Direction, Request, Status};
use crate::role::{ReadMode, Role};
use crate::shared::Shared;
use crate::stats::Counter;
use crate::syncer::{SlowOp, Waiter};
use crate::transfer::{AlignedBuffer, BUFFER_ALIGNMENT_BYTES};
use crate::vring::Vring;

/// Event numbers past those of the rings.
const WAKE_EVENT: u64 = u64::MAX;
const ENGINE_EVENT: u64 = u64::MAX - 1;

/// What a worker is told.
#[derive(Debug)]
pub enum Mail {
    /// Run a ring for a driver that accepted `features`.
    Start {
        /// Queue index.
        index: usize,
        /// The ring.
        vring: Box<Vring>,
        /// Feature bits the driver accepted.
        features: u64,
        /// Told that the ring runs, or gets it back.
        reply: Sender<Result<(), (io::Error, Box<Vring>)>>,
    },
    /// Stop a ring once its last request has ended.
    Stop {
        /// Queue index.
        index: usize,
        /// Whether the front end is gone: then nothing more is published to it.
        abandon: bool,
        /// Gets the ring.
        reply: Sender<Box<Vring>>,
    },
    /// Signal a ring's guest by another descriptor from now on.
    SetCall {
        /// Queue index.
        index: usize,
        /// The descriptor, if any.
        call: Option<std::os::fd::OwnedFd>,
        /// Told when it is so.
        reply: Sender<()>,
    },
    /// Carry out or refuse the guest's writes from now on.
    SetMayWrite {
        /// Which of the two.
        may_write: bool,
        /// Told when it is so and, if they are refused, the writes taken before have ended.
        reply: Sender<()>,
    },
    /// A parked request may run.
    Granted(usize),
    /// A slow operation has ended.
    SlowDone {
        /// The request.
        token: usize,
        /// Whether it was done.
        result: io::Result<()>,
    },
    /// End the thread; all rings are stopped.
    Exit,
}

/// A ring and how it is doing.
#[derive(Debug)]
struct Running {
    vring: Box<Vring>,
    /// Whether requests may be waiting in it.
    ready: bool,
    stopping: Option<Sender<Box<Vring>>>,
    abandoned: bool,
}

/// A request that was taken and not yet given back.
#[derive(Debug)]
struct InFlight {
    queue: usize,
    head: u16,
    status: HostSlice,
    work: Work,
    kind: Kind,
    len_bytes: u64,
    ticket: Option<Ticket>,
}

/// The guest a worker works for.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Index of the worker and its mailbox.
    pub index: usize,
    /// The guest's name, for the log.
    pub guest: String,
    /// The guest's access by the command line.
    pub access: Role,
    /// Whether its writes are carried out at first.
    pub may_write: bool,
    /// What its reads promise.
    pub reads: ReadMode,
    /// Its serial.
    pub serial: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    shared: Arc<Shared>,
    epoll: Epoll,
    engine: Engine,
    rings: Vec<Option<Running>>,
    requests: Slab<InFlight>,
    /// Bytes of guest memory that they move.
    in_flight_bytes: u64,
    /// Ring at which the next round begins.
    next_ring: usize,
    /// Of these, the ones that change the disk.
    writes: usize,
    may_write: bool,
    /// Told when `writes` is 0.
    waiting_for_writes: Vec<Sender<()>>,
    write_through: bool,
    /// Aligned buffers that may still be made, those that are free, and requests that wait for one.
    unmade_buffers: usize,
    free_buffers: Vec<AlignedBuffer>,
    waiting_for_buffer: std::collections::VecDeque<usize>,
    /// Kept between rounds for their memory.
    heads: Vec<u16>,
    completions: Vec<Completion>,
    chain: Chain,
    log: LogLimit,
    exiting: bool,
}

impl Worker {
    /// A worker with its own engine.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(config: WorkerConfig, shared: Arc<Shared>, engine: Engine) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let may_write = config.may_write;
        let wake = shared.mailbox(config.index).wake.as_raw_fd();
        watch(&epoll, wake, EventSet::IN, WAKE_EVENT)?;
        if let Some(fd) = engine.event_fd() {
            watch(&epoll, fd, EventSet::IN, ENGINE_EVENT)?;
        }
        Ok(Self {
            config,
            shared,
            epoll,
            engine,
            rings: (0..MAX_QUEUES).map(|_| None).collect(),
            requests: Slab::with_capacity(MAX_IN_FLIGHT),
            in_flight_bytes: 0,
            next_ring: 0,
            log: LogLimit::default(),
            writes: 0,
            may_write,
            waiting_for_writes: Vec::new(),
            write_through: false,
            unmade_buffers: MAX_BOUNCE_BUFFERS,
            free_buffers: Vec::new(),
            waiting_for_buffer: std::collections::VecDeque::new(),
            heads: Vec::with_capacity(MAX_BATCH),
            completions: Vec::with_capacity(MAX_IN_FLIGHT),
            chain: Chain::default(),
            exiting: false,
        })
    }

    /// Works until told to exit.
    ///
    /// # Errors
    /// When the kernel refuses to wait for events, which it never should.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 64];
        while !self.exiting {
            let count = match self.epoll.wait(if self.has_work() { 0 } else { -1 }, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                other => other?,
            };
            for event in &events[..count] {
                self.note_event(event.data());
            }
            self.read_mail();
            self.drain_rings();
            self.engine.flush_submissions();
            self.reap_completions();
            self.settle_rings();
        }
        assert!(self.requests.is_empty(), "a worker exits only after its rings have stopped");
        Ok(())
    }

    fn has_work(&self) -> bool {
        self.engine.has_completions()
            || (self.has_room() && self.rings.iter().flatten().any(Running::may_take))
    }

    fn note_event(&mut self, event: u64) {
        if event == WAKE_EVENT {
            // Nothing to read means that another wake-up took it: the mail is looked at anyway.
            let _ = self.shared.mailbox(self.config.index).wake.read();
        } else if let Some(Some(ring)) =
            usize::try_from(event).ok().and_then(|index| self.rings.get_mut(index))
        {
            ring.ready = true;
        }
    }

    fn read_mail(&mut self) {
        let shared = Arc::clone(&self.shared);
        while let Some(mail) = shared.mailbox(self.config.index).receive() {
            match mail {
                Mail::Start { index, vring, features, reply } => {
                    let started = self.start_ring(index, vring, features);
                    // A session that does not wait for the answer is gone, and stops its rings itself.
                    let _ = reply.send(started);
                }
                Mail::Stop { index, abandon, reply } => self.stop_ring(index, abandon, reply),
                Mail::SetCall { index, call, reply } => {
                    if let Some(Some(ring)) = self.rings.get_mut(index) {
                        ring.vring.set_call(call);
                    }
                    let _ = reply.send(());
                }
                Mail::SetMayWrite { may_write, reply } => {
                    self.may_write = may_write;
                    if may_write || self.writes == 0 {
                        // An operator that does not wait has lost its connection.
                        let _ = reply.send(());
                    } else {
                        self.waiting_for_writes.push(reply);
                    }
                }
                Mail::Granted(token) => self.run_admitted(token),
                Mail::SlowDone { token, result } => self.finish_slow(token, &result),
                Mail::Exit => self.exiting = true,
            }
        }
    }

    fn start_ring(
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

    fn stop_ring(&mut self, index: usize, abandon: bool, reply: Sender<Box<Vring>>) {
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
    fn drain_rings(&mut self) {
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
    fn drain_ring(&mut self, index: usize) -> usize {
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

    fn has_room(&self) -> bool {
        self.requests.len() < MAX_IN_FLIGHT && self.in_flight_bytes < MAX_IN_FLIGHT_BYTES
    }

    /// Parses and starts one request.
    fn begin(&mut self, queue: usize, head: u16) {
        let Some(ring) = &mut self.rings[queue] else {
            return;
        };
        if let Err(error) = ring.vring.walk(head, &mut self.chain) {
            log::debug!("guest={} event=bad-chain queue={queue} error=\"{error}\"", self.config.guest);
            ring.publish(head, 0);
            return self.count(Counter::Errors, 1);
        }
        let Some(request) = Request::parse(&mut self.chain, self.shared.disk.image().capacity_bytes) else {
            log::debug!("guest={} event=no-status-byte queue={queue}", self.config.guest);
            ring.publish(head, 0);
            return self.count(Counter::Errors, 1);
        };
        let status = request.status;
        let context = Context {
            disk: &self.shared.disk,
            may_write: self.may_write,
            serial: &self.config.serial,
            write_through: self.write_through,
        };
        match request.operation.map(|operation| execute::start(operation, context)) {
            Err(refusal) => self.answer(queue, head, status, refusal, 0),
            Ok(Start::Finished(outcome, data_bytes)) => self.answer(queue, head, status, outcome, data_bytes),
            Ok(Start::Slow(op)) => {
                let (work, kind) = (Work::AwaitSlow { moved_bytes: 0 }, Kind::Flush);
                let token =
                    self.keep(InFlight { queue, head, status, work, kind, len_bytes: 0, ticket: None });
                self.shared.syncer.submit(self.waiter(token), op);
            }
            Ok(Start::Ordered { ranges, kind, work }) => {
                let len_bytes = work.memory_bytes();
                let token = self.keep(InFlight { queue, head, status, work, kind, len_bytes, ticket: None });
                match self.shared.gate.admit(&ranges, kind.access(), self.waiter(token)) {
                    Admission::Now(ticket) => {
                        self.requests[token].ticket = Some(ticket);
                        self.run_admitted(token);
                    }
                    Admission::Parked(ticket) => {
                        self.requests[token].ticket = Some(ticket);
                        self.count(Counter::Parked, 1);
                    }
                }
            }
        }
    }

    /// Answers a request that was not kept.
    fn answer(&mut self, queue: usize, head: u16, status_at: HostSlice, status: Status, data_bytes: u32) {
        if status != Status::Ok {
            self.count(Counter::Errors, 1);
        }
        if let Some(ring) = &mut self.rings[queue] {
            ring.finish(head, status_at, status, data_bytes);
        }
    }

    fn keep(&mut self, request: InFlight) -> usize {
        assert!(self.requests.len() < MAX_IN_FLIGHT, "the kernel may hold pointers into the requests");
        self.writes += usize::from(request.kind.changes_disk());
        self.in_flight_bytes += request.len_bytes;
        self.requests.insert(request)
    }

    /// Carries on with a request whose ranges were granted.
    fn run_admitted(&mut self, token: usize) {
        if self.requests[token].kind.changes_disk() && self.shared.disk.is_poisoned() {
            return self.finish(token, Status::IoErr, 0);
        }
        let work = &mut self.requests[token].work;
        match work {
            Work::Transfer { bounces: false, .. } => self.submit_next(token),
            Work::Transfer { bounces: true, .. } => match self.free_buffer() {
                Some(buffer) => self.submit_bounced(token, buffer),
                None => self.waiting_for_buffer.push_back(token),
            },
            Work::Slow(_) => {
                if let Work::Slow(op) = std::mem::replace(work, Work::AwaitSlow { moved_bytes: 0 }) {
                    self.shared.syncer.submit(self.waiter(token), op);
                }
            }
            Work::AwaitSlow { .. } => {}
        }
    }

    fn free_buffer(&mut self) -> Option<AlignedBuffer> {
        self.free_buffers.pop().or_else(|| {
            self.unmade_buffers = self.unmade_buffers.checked_sub(1)?;
            Some(AlignedBuffer::new(BOUNCE_BUFFER_BYTES, BUFFER_ALIGNMENT_BYTES))
        })
    }

    fn submit_bounced(&mut self, token: usize, buffer: AlignedBuffer) {
        if let Work::Transfer { transfer, .. } = &mut self.requests[token].work {
            transfer.use_bounce_buffer(buffer);
        }
        self.submit_next(token);
    }

    /// Submits the next IO of a transfer, or ends it when nothing is left.
    fn submit_next(&mut self, token: usize) {
        let Work::Transfer { transfer, .. } = &mut self.requests[token].work else {
            return;
        };
        let Some(io) = transfer.next_io() else {
            return self.finish_transfer(token, Status::Ok);
        };
        let file = self.shared.disk.file(self.config.access.looks_writable());
        // SAFETY: the request stays at its place in `requests` until its completion was taken, its
        // ring keeps the guest memory mapped until then, and the disk outlives the worker.
        unsafe { self.engine.submit(file.as_raw_fd(), io, token) };
    }

    /// Carries on with the requests whose IO has ended. One pass: what that submits comes in the next round.
    fn reap_completions(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.engine.take_completions(&mut completions);
        for completion in completions.drain(..) {
            self.io_done(completion);
        }
        self.completions = completions;
        self.engine.flush_submissions();
    }

    fn io_done(&mut self, completion: Completion) {
        let Completion { token, result } = completion;
        let Work::Transfer { transfer, .. } = &mut self.requests[token].work else {
            return;
        };
        match usize::try_from(result) {
            Ok(0) => self.fail_transfer(token, &io::Error::other("the image ends before the disk does")),
            Ok(count) => {
                transfer.advance(count);
                self.submit_next(token);
            }
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => self.submit_next(token),
            Err(_) => self.fail_transfer(token, &io::Error::from_raw_os_error(-result)),
        }
    }

    fn fail_transfer(&mut self, token: usize, error: &io::Error) {
        let Work::Transfer { transfer, .. } = &self.requests[token].work else {
            return;
        };
        let (guest, op, at) = (&self.config.guest, transfer.direction(), transfer.offset_bytes());
        self.log.log(
            Level::Warn,
            format_args!("guest={guest} event=io-error op={op:?} offset_bytes={at} error=\"{error}\""),
        );
        self.finish_transfer(token, Status::IoErr);
    }

    /// Ends a transfer: all bytes are moved, or it failed.
    fn finish_transfer(&mut self, token: usize, status: Status) {
        let Work::Transfer { transfer, .. } = &mut self.requests[token].work else {
            return;
        };
        let (direction, touched) = (transfer.direction(), transfer.touched_range());
        let moved_bytes = transfer.moved_bytes();
        if let Some(buffer) = transfer.take_bounce_buffer() {
            self.hand_on_buffer(buffer);
        }
        let unsynced = match direction {
            // Failed writes count too: a part of them may be on the disk.
            Direction::Write => {
                let sequence = self.shared.disk.note_completed_write(touched);
                self.write_through.then_some(sequence)
            }
            Direction::Read if self.config.reads == ReadMode::Durable => {
                // From here on others may change what was read: it is in guest memory already.
                let unsynced = self.shared.disk.unsynced_sequence(touched);
                self.release_early(token);
                unsynced
            }
            Direction::Read => None,
        };
        match unsynced {
            Some(sequence) if status == Status::Ok => {
                self.count(Counter::WaitedForSync, 1);
                self.requests[token].work = Work::AwaitSlow { moved_bytes };
                self.shared.syncer.submit(self.waiter(token), SlowOp::SyncUpTo { sequence });
            }
            _ => self.finish(token, status, moved_bytes),
        }
    }

    fn release_early(&mut self, token: usize) {
        if let Some(ticket) = self.requests[token].ticket.take() {
            self.shared.gate.release(ticket);
        }
    }

    fn finish_slow(&mut self, token: usize, result: &io::Result<()>) {
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

    /// Gives a request back to its guest and then releases its ranges. `moved_bytes` is what was read or written.
    fn finish(&mut self, token: usize, status: Status, moved_bytes: u32) {
        let request = self.requests.remove(token);
        let is_read = request.kind == Kind::Read && status == Status::Ok;
        if let Some(ring) = &mut self.rings[request.queue] {
            ring.finish(request.head, request.status, status, if is_read { moved_bytes } else { 0 });
        }
        if let Some(ticket) = request.ticket {
            self.shared.gate.release(ticket);
        }
        self.count_request(request.kind, status, u64::from(moved_bytes));
        self.in_flight_bytes -= request.len_bytes;
        self.writes -= usize::from(request.kind.changes_disk());
        if self.writes == 0 {
            for reply in self.waiting_for_writes.drain(..) {
                // An operator that does not wait has lost its connection.
                let _ = reply.send(());
            }
        }
    }

    fn count_request(&self, kind: Kind, status: Status, moved_bytes: u64) {
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

    fn count(&self, counter: Counter, count: u64) {
        self.shared.stats(self.config.index).add(counter, count);
    }

    fn hand_on_buffer(&mut self, buffer: AlignedBuffer) {
        match self.waiting_for_buffer.pop_front() {
            Some(token) => self.submit_bounced(token, buffer),
            None => self.free_buffers.push(buffer),
        }
    }

    /// Signals guests, and hands back the rings that are to stop and have no request left.
    fn settle_rings(&mut self) {
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

    fn waiter(&self, token: usize) -> Waiter {
        Waiter { worker: self.config.index, token }
    }
}

impl Running {
    fn may_take(&self) -> bool {
        self.ready && self.stopping.is_none()
    }

    /// Writes the status byte and gives the chain back.
    fn finish(&mut self, head: u16, status_at: HostSlice, status: Status, data_bytes: u32) {
        if !self.abandoned {
            status_at.copy_from(&[status.to_byte()]);
        }
        self.publish(head, data_bytes + 1);
    }

    fn publish(&mut self, head: u16, written_bytes: u32) {
        if self.abandoned {
            self.vring.end_request();
        } else {
            self.vring.publish(head, written_bytes);
        }
    }
}

fn watch(epoll: &Epoll, fd: RawFd, events: EventSet, number: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, number))
}
