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
mod sealing;
mod transfers;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use slab::Slab;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use self::requests::InFlight;
use self::rings::Running;
use self::sealing::Sealing;
use crate::chain::Chain;
use crate::crash::{self, Point};
use crate::engine::{Completion, Engine};
use crate::inflight::Recovered;
use crate::limits::{MAX_BATCH, MAX_BOUNCE_BUFFERS, MAX_IN_FLIGHT};
use crate::log_limit::LogLimit;
use crate::memory::HostSlice;
use crate::order::Ticket;
use crate::poll::Patience;
use crate::role::ReadMode;
use crate::seals::Seals;
use crate::shared::Shared;
use crate::stats::Counter;
use crate::syncer::Waiter;
use crate::throttle::{Limits, Throttle};
use crate::transfer::AlignedBuffer;
use crate::vring::Vring;

/// Event numbers past those of the rings.
const WAKE_EVENT: u64 = u64::MAX;
const ENGINE_EVENT: u64 = u64::MAX - 1;

/// Rounds with work between two looks at the descriptors: what they tell is seen in the rings as well, but for the end of
/// a front end's patience.
const ROUNDS_BETWEEN_EVENTS: u32 = 32;

/// Looks for news between two looks at the clock.
const LOOKS_BETWEEN_CLOCKS: u32 = 16;

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
        /// What an earlier process had in flight.
        recovered: Recovered,
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
    /// Refuse writes to these ranges from now on, and to no others.
    SetSeals {
        /// The ranges.
        seals: Arc<Seals>,
        /// Told when it is so and the writes to them that were taken before have ended.
        reply: Sender<()>,
    },
    /// Tell when no request of the guest is left here.
    TellWhenIdle {
        /// Told then.
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
    /// Whether its writes are carried out at first.
    pub may_write: bool,
    /// What nobody may write, at first.
    pub seals: Arc<Seals>,
    /// What its reads promise.
    pub reads: ReadMode,
    /// Its serial.
    pub serial: Vec<u8>,
    /// How long the worker looks for news before it sleeps.
    pub poll: Duration,
    /// What the guest may do a second.
    pub limits: Limits,
    /// The processor to run on, if not any.
    pub cpu: Option<usize>,
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
    /// Pieces of it that they have lists of.
    in_flight_pieces: usize,
    /// Ranges that they touch beyond the first of each: everybody's admission looks at all of them.
    further_ranges: usize,
    /// Of these, the ones that change the disk.
    writes: usize,
    /// Ring at which the next round begins.
    next_ring: usize,
    may_write: bool,
    /// Told when `writes` is 0.
    waiting_for_writes: Vec<Sender<()>>,
    /// What nobody may write.
    seals: Arc<Seals>,
    /// Who waits for writes to ranges that are being sealed.
    sealings: Vec<Sealing>,
    /// Told when `requests` is empty.
    waiting_for_idle: Vec<Sender<()>>,
    write_through: bool,
    /// Aligned buffers that may still be made, those that are free, and requests that wait for one.
    unmade_buffers: usize,
    free_buffers: Vec<AlignedBuffer>,
    waiting_for_buffer: VecDeque<usize>,
    /// Tickets of requests that have ended, released once their used entries are published.
    ended: Vec<Ticket>,
    /// How long to look for news from the guest, while it has no request here, and from the disk.
    for_guest: Patience,
    for_disk: Patience,
    throttle: Option<Throttle>,
    /// When requests that wait in a ring may be taken, if the guest has used up its share.
    held_until: Option<Instant>,
    /// Rounds since the descriptors were last looked at.
    rounds_awake: u32,
    /// Kept between rounds for their memory: nothing on the way of an ordinary request allocates any.
    heads: Vec<u16>,
    batch: Vec<usize>,
    granted: Vec<Waiter>,
    completions: Vec<Completion>,
    chain: Chain,
    spare_segments: Vec<Vec<HostSlice>>,
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
        let [for_guest, for_disk] = [(); 2].map(|()| Patience::new(config.poll));
        let (may_write, seals) = (config.may_write, Arc::clone(&config.seals));
        let throttle = Throttle::new(config.limits, Instant::now());
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
            rings: Vec::new(),
            requests: Slab::with_capacity(MAX_IN_FLIGHT),
            in_flight_bytes: 0,
            in_flight_pieces: 0,
            further_ranges: 0,
            next_ring: 0,
            log: LogLimit::default(),
            writes: 0,
            may_write,
            waiting_for_writes: Vec::new(),
            seals,
            sealings: Vec::new(),
            waiting_for_idle: Vec::new(),
            write_through: false,
            unmade_buffers: MAX_BOUNCE_BUFFERS,
            free_buffers: Vec::new(),
            waiting_for_buffer: VecDeque::new(),
            ended: Vec::with_capacity(MAX_IN_FLIGHT),
            for_guest,
            for_disk,
            throttle,
            held_until: None,
            rounds_awake: 0,
            heads: Vec::with_capacity(MAX_BATCH),
            batch: Vec::with_capacity(MAX_BATCH),
            granted: Vec::new(),
            completions: Vec::with_capacity(MAX_IN_FLIGHT),
            chain: Chain::default(),
            spare_segments: Vec::new(),
            exiting: false,
        })
    }

    /// Works until told to exit.
    ///
    /// # Errors
    /// When the kernel refuses to wait for events, which it never should.
    pub fn run(mut self) -> io::Result<()> {
        if let Some(cpu) = self.config.cpu {
            let mut only = CpuSet::new();
            only.set(cpu);
            sched_setaffinity(None, &only)?;
        }
        let mut events = [EpollEvent::default(); 64];
        while !self.exiting {
            let count = self.wait(&mut events)?;
            for event in &events[..count] {
                self.note_event(event.data());
            }
            self.read_mail();
            self.drain_rings();
            self.engine.flush_submissions();
            if !self.requests.is_empty() {
                crash::here(Point::Submitted);
            }
            self.reap_completions();
            self.settle();
            if self.requests.is_empty() {
                // Who does not wait any more has given up.
                self.waiting_for_idle.drain(..).for_each(|reply| reply.send(()).unwrap_or(()));
            }
        }
        assert!(self.requests.is_empty(), "a worker exits only after its rings have stopped");
        Ok(())
    }

    /// Returns at once while there is work; else looks for some, and then sleeps. Returns the number of events.
    fn wait(&mut self, events: &mut [EpollEvent]) -> io::Result<usize> {
        if self.held_until.is_some_and(|until| Instant::now() >= until) {
            self.held_until = None;
        }
        if self.has_work() {
            self.rounds_awake += 1;
            if !self.rounds_awake.is_multiple_of(ROUNDS_BETWEEN_EVENTS) {
                // A ring that never gets empty must not keep the others waiting until then.
                self.look_into_rings();
                return Ok(0);
            }
            return self.take_events(0, events);
        }
        // To look around for what other threads do, a flush above all, could keep their processor from them.
        let waits_for_threads = !self.requests.is_empty() && !self.engine.has_io();
        let longest = if waits_for_threads { Duration::ZERO } else { self.patience().now() };
        let pause = (longest > Duration::ZERO).then(Instant::now);
        self.count(Counter::LookedAround, pause.is_some().into());
        if pause.is_some_and(|began| self.look_around(began, longest)) || self.ask_for_kicks() {
            return Ok(0);
        }
        let began = pause.unwrap_or_else(Instant::now);
        let count = self.take_events(self.longest_sleep_ms(), events)?;
        if !waits_for_threads {
            self.patience().learn(began.elapsed());
        }
        Ok(count)
    }

    /// A guest that thinks and a disk that works take times of their own: what is learned of one says nothing of the other.
    fn patience(&mut self) -> &mut Patience {
        if self.requests.is_empty() { &mut self.for_guest } else { &mut self.for_disk }
    }

    /// For ever, unless requests are held back.
    fn longest_sleep_ms(&self) -> i32 {
        let left = self.held_until.map(|until| until.saturating_duration_since(Instant::now()));
        left.map_or(-1, |left| i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX))
    }

    fn take_events(&mut self, timeout_ms: i32, events: &mut [EpollEvent]) -> io::Result<usize> {
        self.rounds_awake = 0;
        match self.epoll.wait(timeout_ms, events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            other => other,
        }
    }

    fn has_work(&self) -> bool {
        self.has_room() && self.rings.iter().flatten().any(Running::may_take)
    }

    /// Looks for news for `longest` at most: true when there are some.
    fn look_around(&mut self, began: Instant, longest: Duration) -> bool {
        loop {
            for _ in 0..LOOKS_BETWEEN_CLOCKS {
                if self.sees_news() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if began.elapsed() >= longest {
                return false;
            }
        }
    }

    fn sees_news(&mut self) -> bool {
        let has_requests = self.has_room() && self.look_into_rings();
        has_requests || self.engine.has_completions() || self.shared.mailbox(self.config.index).has_mail()
    }

    /// Whether requests wait in any ring that may be drained.
    fn look_into_rings(&mut self) -> bool {
        let mut found = false;
        for ring in self.rings.iter_mut().flatten() {
            ring.ready |= ring.vring.has_waiting();
            found |= ring.may_take();
        }
        found
    }

    /// Has the guest kick from now on; true when a ring has got a request in between.
    fn ask_for_kicks(&mut self) -> bool {
        let mut found = false;
        for ring in self.rings.iter_mut().flatten() {
            ring.ready |= ring.vring.ask_for_kick();
            found |= ring.may_take();
        }
        self.log_broken_rings();
        found && self.has_room()
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
        if !self.shared.mailbox(self.config.index).has_mail() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        while let Some(mail) = shared.mailbox(self.config.index).receive() {
            match mail {
                Mail::Start { index, vring, features, recovered, reply } => {
                    let started = self.start_ring(index, vring, features, recovered);
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
                Mail::SetSeals { seals, reply } => self.set_seals(seals, reply),
                Mail::TellWhenIdle { reply } => self.waiting_for_idle.push(reply),
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
