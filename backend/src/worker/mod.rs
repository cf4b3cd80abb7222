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

mod requests;
mod rings;
mod transfers;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use slab::Slab;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use self::requests::InFlight;
use self::rings::Running;
use crate::chain::Chain;
use crate::engine::{Completion, Engine};
use crate::limits::{MAX_BATCH, MAX_BOUNCE_BUFFERS, MAX_IN_FLIGHT, MAX_QUEUES};
use crate::log_limit::LogLimit;
use crate::role::{ReadMode, Role};
use crate::shared::Shared;
use crate::transfer::AlignedBuffer;
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
    waiting_for_buffer: VecDeque<usize>,
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
            waiting_for_buffer: VecDeque::new(),
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
}

fn watch(epoll: &Epoll, fd: RawFd, events: EventSet, number: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, number))
}
