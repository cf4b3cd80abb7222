//! A guest made by hand: front end, memory and rings together.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::feature;
use super::front::Front;
use super::inflight::Inflight;
use super::memory::Memory;
use super::request::{Request, status};
use super::ring::{Desc, Ring, desc_flags};
use super::wire::{Message, Wire, code};
use crate::disk::pattern;
use crate::wait::{first_readable, listening};

/// What a driver would accept of what is offered.
const USUAL_FEATURES: u64 = !feature::CONFIG_WCE;

/// How queues are started.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Number of queues.
    pub queues: u16,
    /// Entries of each.
    pub size: u16,
    /// First ring index.
    pub start: u16,
    /// Features to accept, of those offered.
    pub features: u64,
    /// Pieces that the memory is told in.
    pub regions: u64,
    /// Whether what is in flight is kept in a region that outlives the backend.
    pub is_tracked: bool,
}

impl Setup {
    /// One queue, and nothing that outlives the backend.
    pub const USUAL: Self =
        Self { queues: 1, size: 128, start: 0, features: USUAL_FEATURES, regions: 1, is_tracked: false };
}

impl Default for Setup {
    fn default() -> Self {
        Self::USUAL
    }
}

/// A buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// What came back for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The status byte.
    pub status: u8,
    /// The length in the used entry.
    pub used_len: u32,
    /// What the device wrote before the status.
    pub data: Vec<u8>,
}

#[derive(Debug)]
struct Queue {
    ring: Ring,
    kick: OwnedFd,
    call: OwnedFd,
    pending: HashMap<u16, Pending>,
}

/// Memory that a request in flight uses: `(taken, len, begin)` of each piece.
#[derive(Debug, Default)]
struct Pending {
    others: Vec<(u64, usize)>,
    writable: Vec<(u64, usize, usize)>,
    skew: u64,
}

/// A guest of which the test owns every byte.
#[derive(Debug)]
pub struct RawGuest {
    front: Front,
    memory: Memory,
    queues: Vec<Queue>,
    accepted: u64,
    inflight: Option<Inflight>,
}

impl RawGuest {
    /// Connects to a backend that listens, as soon as it does, and greets it.
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        Self::greet(listening(|| Wire::connect(socket)))
    }

    /// Talks over a connection that the backend made.
    #[track_caller]
    pub fn over(stream: UnixStream) -> Self {
        Self::greet(Wire::over(stream))
    }

    /// Greets the backend over `wire`.
    #[track_caller]
    pub fn greet(wire: Wire) -> Self {
        let front = Front::greet(wire).expect("the backend answers");
        Self { front, memory: Memory::new(), queues: Vec::new(), accepted: 0, inflight: None }
    }

    /// The same guest, with other memory, which is not told yet.
    pub fn with_memory(mut self, memory: Memory) -> Self {
        self.memory = memory;
        self
    }

    /// The message layer.
    pub fn front(&self) -> &Front {
        &self.front
    }

    /// Guest memory.
    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// The features offered.
    pub fn features(&self) -> u64 {
        self.front.features()
    }

    /// Starts `count` queues of 128 entries with all that is offered.
    pub fn start_queues(&mut self, count: u16) {
        self.start(Setup { queues: count, ..Setup::default() });
    }

    /// Starts queues.
    pub fn start(&mut self, setup: Setup) {
        self.accept(setup.features);
        self.tell_memory(setup.regions);
        if setup.is_tracked {
            let region = Inflight::ask(&self.front, setup.queues, setup.size);
            region.tell(&self.front);
            self.inflight = Some(region);
        }
        self.start_rings(setup);
    }

    /// Connects anew, to the next backend, with the same memory, rings and requests in flight, as QEMU does.
    #[track_caller]
    pub fn reconnect(&mut self, socket: &Path) {
        self.greet_again(socket);
        for index in 0..self.queues.len() {
            self.start_again(index);
        }
    }

    /// The part of [`RawGuest::reconnect`] before any queue starts.
    #[track_caller]
    pub fn greet_again(&mut self, socket: &Path) {
        // One connection at a time is served.
        let _ = self.front.wire().stream().shutdown(std::net::Shutdown::Both);
        self.front = Front::greet(listening(|| Wire::connect(socket))).expect("the backend answers");
        self.front.must(&Message::u64(code::SET_FEATURES, self.accepted), &[]);
        self.tell_memory(1);
        self.inflight.iter().for_each(|region| region.tell(&self.front));
    }

    /// The part of [`RawGuest::reconnect`] that starts one queue.
    #[track_caller]
    pub fn start_again(&mut self, index: usize) {
        let queue = &self.queues[index];
        let start = queue.ring.used_index(&self.memory);
        queue.announce(&self.front, u16::try_from(index).unwrap(), queue.ring.size(), start);
    }

    /// The region that keeps what is in flight.
    pub fn inflight(&self) -> &Inflight {
        self.inflight.as_ref().expect("a tracked guest")
    }

    /// Goes on with a region of its own making, which is not sealed.
    #[track_caller]
    pub fn use_own_region(&mut self) {
        let region = self.inflight().unsealed_copy();
        region.tell(&self.front);
        self.inflight = Some(region);
    }

    /// Requests that were submitted and not seen to be answered.
    pub fn in_flight(&self) -> usize {
        self.queues.iter().map(|queue| queue.pending.len()).sum()
    }

    /// Tells the memory in `count` regions: in one table where it holds them, else one by one.
    pub fn tell_memory(&self, count: u64) {
        let regions = self.memory.regions(count);
        if regions.len() <= 8 {
            self.front.set_mem_table(&self.memory, &regions);
        } else {
            regions.iter().for_each(|region| self.front.add_mem_region(&self.memory, region));
        }
    }

    /// Accepts `features`, as far as they are offered.
    pub fn accept(&mut self, features: u64) {
        self.accepted = self.features() & features | feature::PROTOCOL_FEATURES;
        self.front.must(&Message::u64(code::SET_FEATURES, self.accepted), &[]);
    }

    /// Starts queues once features and memory are told.
    pub fn start_rings(&mut self, setup: Setup) {
        for index in 0..setup.queues {
            let queue = Queue::new(&mut self.memory, setup.size, setup.start);
            queue.announce(&self.front, index, setup.size, setup.start);
            self.queues.push(queue);
        }
    }

    /// Starts a stopped queue anew, empty, at ring index `start`.
    pub fn restart_queue(&mut self, queue: u16, start: u16) {
        let setup = Setup { start, size: self.ring(usize::from(queue)).size(), ..Setup::default() };
        let fresh = Queue::new(&mut self.memory, setup.size, start);
        fresh.announce(&self.front, queue, setup.size, start);
        self.queues[usize::from(queue)] = fresh;
    }

    /// Keeps the connection, past its greeting, and nothing else.
    pub fn into_wire(self) -> Wire {
        self.front.into_wire()
    }

    /// Stops a queue; returns the backend's next index.
    pub fn stop_queue(&mut self, queue: u16) -> u32 {
        self.front.get_vring_base(u32::from(queue)).expect("an answer to GET_VRING_BASE")
    }

    /// The ring of a queue.
    pub fn ring(&mut self, queue: usize) -> &mut Ring {
        &mut self.queues[queue].ring
    }

    /// Asserts that a write, and a read of it, work.
    #[track_caller]
    pub fn assert_works(&mut self) {
        let data = pattern(9, 0, 2048);
        assert_eq!(self.request(&Request::write(1, &data)).status, status::OK);
        let read = self.request(&Request::read(1, data.len()));
        assert_eq!(read.status, status::OK);
        assert!(read.data == data, "what is read is not what was written");
    }

    /// Asserts that a read works.
    #[track_caller]
    pub fn assert_readable(&mut self) {
        let read = self.request(&Request::read(1, 2048));
        assert_eq!((read.status, read.used_len), (status::OK, 2049));
    }

    /// Submits a request on queue 0 and waits for its outcome.
    #[track_caller]
    pub fn request(&mut self, request: &Request) -> Outcome {
        self.request_on(0, request)
    }

    /// Submits a request on a queue and waits for its outcome; nothing else may be in flight there.
    #[track_caller]
    pub fn request_on(&mut self, queue: usize, request: &Request) -> Outcome {
        let submitted = self.submit(queue, request);
        let (head, outcome) = self.wait_used(queue);
        assert_eq!(head, submitted, "another request completed");
        outcome
    }

    /// Puts a request into the ring and tells the device; returns its head.
    pub fn submit(&mut self, queue: usize, request: &Request) -> u16 {
        let head = self.publish(queue, request);
        self.kick_if_wanted(queue, 1);
        head
    }

    /// Puts a request into the ring and tells nobody.
    pub fn publish(&mut self, queue: usize, request: &Request) -> u16 {
        let (descs, pending) = place(&mut self.memory, request);
        self.publish_descs(queue, &descs, pending)
    }

    /// Puts a chain of the test's own buffers into the ring and tells the device. Its outcome has no data.
    pub fn submit_chain(&mut self, queue: usize, chain: &[Buffer]) -> u16 {
        let descs: Vec<Desc> =
            chain.iter().map(|buffer| desc(buffer.addr, buffer.len, buffer.writable)).collect();
        let head = self.publish_descs(queue, &descs, Pending::default());
        self.kick(queue);
        head
    }

    /// Writes one descriptor of a queue's table, whatever is in it.
    pub fn write_desc(&self, queue: usize, index: u16, desc: Desc) {
        self.queues[queue].ring.write_desc(&self.memory, index, desc);
    }

    /// Puts any number into a queue's available ring and tells the device.
    pub fn submit_head(&mut self, queue: usize, head: u16) {
        self.queues[queue].ring.publish(&self.memory, head);
        self.kick(queue);
    }

    /// Sets a queue's available index to anything and tells the device.
    pub fn submit_index(&mut self, queue: usize, index: u16) {
        self.queues[queue].ring.set_avail_index(&self.memory, index);
        self.kick(queue);
    }

    /// Tells the device of the last `count` entries, if it wants to be told.
    pub fn kick_if_wanted(&self, queue: usize, count: u16) {
        let ring = &self.queues[queue].ring;
        let old = ring.next_avail().wrapping_sub(count);
        if ring.wants_kick(&self.memory, old, self.has_event_idx()) {
            self.kick(queue);
        }
    }

    /// The descriptors by which queue `queue` is kicked and calls.
    pub fn kick_and_call(&self, queue: usize) -> [BorrowedFd<'_>; 2] {
        let Queue { kick, call, .. } = &self.queues[queue];
        [kick.as_fd(), call.as_fd()]
    }

    /// Replaces the descriptor by which queue `queue` is kicked and returns the old one.
    pub fn replace_kick(&mut self, queue: usize, kick: OwnedFd) -> OwnedFd {
        std::mem::replace(&mut self.queues[queue].kick, kick)
    }

    /// Tells the device.
    pub fn kick(&self, queue: usize) {
        rustix::io::write(&self.queues[queue].kick, &1_u64.to_ne_bytes()).unwrap();
    }

    /// Waits for the next used entry of a queue. It waits for the device's call, so a lost call fails the test.
    #[track_caller]
    pub fn wait_used(&mut self, queue: usize) -> (u16, Outcome) {
        loop {
            if let Some(used) = self.poll_used(queue) {
                return used;
            }
            self.queues[queue].ring.ask_for_call(&self.memory);
            if let Some(used) = self.poll_used(queue) {
                return used;
            }
            self.wait_for_call(queue);
        }
    }

    /// Takes the next used entry of a queue, if there is one.
    pub fn poll_used(&mut self, queue: usize) -> Option<(u16, Outcome)> {
        let Queue { ring, pending, .. } = &mut self.queues[queue];
        let (head, used_len) = ring.next_used(&self.memory)?;
        let pending = pending.remove(&head).expect("what is used was pending");
        Some((head, pending.finish(&mut self.memory, used_len)))
    }

    /// Asks to be told of the used entry of a queue that comes after `count` others.
    pub fn ask_for_call_after(&self, queue: usize, count: u16) {
        self.queues[queue].ring.ask_for_call_after(&self.memory, count);
    }

    /// Calls of the device since they were last counted.
    pub fn take_calls(&self, queue: usize) -> u64 {
        let call = &self.queues[queue].call;
        let mut polled = [PollFd::new(call, PollFlags::IN)];
        if poll(&mut polled, Some(&Timespec::default())).unwrap() == 0 {
            return 0;
        }
        let mut count = [0; 8];
        rustix::io::read(call, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    /// Index of the used ring.
    pub fn used_index(&self, queue: usize) -> u16 {
        self.queues[queue].ring.used_index(&self.memory)
    }

    /// Says for the device, whatever it has said itself, after which entry it wants to be told.
    pub fn set_kick_event(&self, queue: usize, index: u16) {
        self.queues[queue].ring.set_kick_event(&self.memory, index);
    }

    /// What the device has last written beside its answers: after which entry it wants to be told.
    pub fn kick_event(&self, queue: usize) -> u16 {
        self.queues[queue].ring.kick_event(&self.memory)
    }

    /// True when the device wants to be told of the next entry.
    pub fn wants_kick(&self, queue: usize) -> bool {
        self.queues[queue].ring.wants_next_kick(&self.memory, self.has_event_idx())
    }

    fn publish_descs(&mut self, queue: usize, descs: &[Desc], pending: Pending) -> u16 {
        let queue = &mut self.queues[queue];
        let head = queue.ring.link(&self.memory, descs);
        queue.pending.insert(head, pending);
        queue.ring.publish(&self.memory, head);
        head
    }

    /// Waits for a call of the device.
    #[track_caller]
    pub fn wait_for_call(&self, queue: usize) {
        let call = &self.queues[queue].call;
        match first_readable(&[call.as_fd(), self.front.wire().stream().as_fd()]) {
            Some(0) => rustix::io::read(call, &mut [0; 8]).unwrap(),
            Some(_) => panic!("the backend hung up while queue {queue} waited"),
            None => panic!("no call for queue {queue}"),
        };
    }

    fn has_event_idx(&self) -> bool {
        self.accepted & feature::EVENT_IDX != 0
    }
}

impl Queue {
    fn new(memory: &mut Memory, size: u16, start: u16) -> Self {
        let eventfd = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let ring = Ring::new(memory, size, start);
        Self { ring, kick: eventfd(), call: eventfd(), pending: HashMap::new() }
    }

    /// Tells the backend of the queue in QEMU's order.
    fn announce(&self, front: &Front, index: u16, size: u16, start: u16) {
        let queue = u32::from(index);
        front.must(&Message::vring(code::SET_VRING_NUM, queue, u32::from(size)), &[]);
        front.must(&Message::vring(code::SET_VRING_BASE, queue, u32::from(start)), &[]);
        front.set_vring_addr(queue, &self.ring);
        front.set_vring_fd(code::SET_VRING_KICK, u64::from(queue), self.kick.as_fd());
        front.set_vring_fd(code::SET_VRING_CALL, u64::from(queue), self.call.as_fd());
        front.must(&Message::vring(code::SET_VRING_ENABLE, queue, 1), &[]);
    }
}

impl Pending {
    /// Collects what the device wrote and gives the memory back.
    fn finish(self, memory: &mut Memory, used_len: u32) -> Outcome {
        let mut written = Vec::new();
        for (address, len, taken) in &self.writable {
            written.extend(memory.read(*address + self.skew, *len));
            memory.give(*address, *taken);
        }
        for (address, taken) in &self.others {
            memory.give(*address, *taken);
        }
        let status = written.pop().unwrap_or(status::NONE);
        Outcome { status, used_len, data: written }
    }
}

/// Lays a request out in memory; the room for each piece is its own, so no two pieces touch by accident.
fn place(memory: &mut Memory, request: &Request) -> (Vec<Desc>, Pending) {
    let mut pending = Pending { skew: request.skew as u64, ..Pending::default() };
    let mut descs = Vec::new();
    let mut rest = request.readable.as_slice();
    for len in request.readable_pieces() {
        let (piece, after) = rest.split_at(len);
        rest = after;
        let address = memory.take(len + request.skew);
        memory.write(address + pending.skew, piece);
        pending.others.push((address, len + request.skew));
        descs.push(desc(address + pending.skew, length(len), false));
    }
    for len in request.writable_pieces() {
        let address = memory.take(len + request.skew);
        memory.write(address + pending.skew, &vec![status::NONE; len]);
        pending.writable.push((address, len, len + request.skew));
        descs.push(desc(address + pending.skew, length(len), true));
    }
    if request.is_indirect {
        descs = vec![indirect(memory, &descs, &mut pending)];
    }
    (descs, pending)
}

/// Moves `descs` into a table of their own and returns the descriptor of the table.
fn indirect(memory: &mut Memory, descs: &[Desc], pending: &mut Pending) -> Desc {
    let mut table = Vec::new();
    for (position, desc) in descs.iter().enumerate() {
        let mut desc = *desc;
        if position + 1 < descs.len() {
            desc.flags |= desc_flags::NEXT;
            desc.next = u16::try_from(position + 1).unwrap();
        }
        table.extend(desc.bytes());
    }
    let address = memory.take(table.len());
    memory.write(address, &table);
    pending.others.push((address, table.len()));
    Desc { addr: address, len: length(table.len()), flags: desc_flags::INDIRECT, next: 0 }
}

fn desc(addr: u64, len: u32, writable: bool) -> Desc {
    let flags = if writable { desc_flags::WRITE } else { 0 };
    Desc { addr, len, flags, next: 0 }
}

fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap()
}
