//! The load's own driver: a split ring with static descriptors, so that the load is never what is measured.
//!
//! It does what Linux does: one indirect table a request, event indices, one kick a batch, and it sleeps on the call
//! descriptor when nothing has come back. Each slot has a table, a header, a buffer and a status byte of its own, laid out once.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use receiptdisk_tests::listening;
use receiptdisk_tests::raw::inflight::Inflight;
use receiptdisk_tests::raw::{Desc, Front, Memory, Message, Ring, Wire, code, desc_flags, feature, kind};
use rustix::event::epoll;
use rustix::event::{EventfdFlags, eventfd};

use crate::load::Load;

/// Entries of the ring; the largest queue depth.
const RING_SIZE: u16 = 128;
const HEADER_BYTES: u32 = 16;
/// Where in its page of tables a slot has what.
const HEADER_AT: u64 = 64;
const STATUS_AT: u64 = 96;
const SLOT_BYTES: u64 = 128;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Read { sector: u64, len: u32 },
    Write { sector: u64, len: u32 },
    Flush,
    Discard { sector: u64, sectors: u32 },
    WriteZeroes { sector: u64, sectors: u32 },
}

/// Bytes of the range of a discard or write-zeroes: sector u64, sectors u32, flags u32.
const RANGE_BYTES: u32 = 16;

/// A queue of a guest.
pub struct Guest {
    memory: Arc<Memory>,
    sectors: u64,
    ring: Ring,
    tables: u64,
    buffers: u64,
    buffer_bytes: u64,
    kick: OwnedFd,
    /// Watches the call descriptor by its edges, so one system call waits and nothing is read. Backends may make it
    /// non-blocking for both sides.
    called: OwnedFd,
    _call: OwnedFd,
    next_avail: u16,
    announced: u16,
    next_used: u16,
    has_event_idx: bool,
    // Last: the backend lets go of the memory when this closes.
    _front: Arc<Front>,
}

impl Guest {
    /// Connects and starts the queues of `load`, each with buffers for its requests (multiples of 4096 bytes) and, like a processor of
    /// the guest with its own queue, a driver of its own. With `is_tracked` the backend keeps what is in flight across its end.
    pub fn connect(socket: &Path, load: &Load, is_tracked: bool) -> Vec<Self> {
        let Load { queues, depth, len: buffer_bytes, .. } = *load;
        let front = Front::greet(listening(|| Wire::connect(socket))).expect("the backend answers");
        let mut memory = Memory::new();
        let buffer_bytes = u64::from(buffer_bytes).next_power_of_two();
        let room = |bytes: u64| usize::try_from(u64::from(depth) * bytes).unwrap();
        let mut lay_out = || {
            let ring = Ring::new(&mut memory, RING_SIZE, 0);
            (ring, memory.take(room(SLOT_BYTES)), memory.take(room(buffer_bytes)))
        };
        let layouts: Vec<_> = (0..queues).map(|_| lay_out()).collect();
        let accepted = front.features() & !feature::CONFIG_WCE;
        front.must(&Message::u64(code::SET_FEATURES, accepted), &[]);
        front.set_mem_table(&memory, &memory.regions(1));
        let sectors = front.config().capacity;
        if is_tracked {
            Inflight::ask(&front, queues, RING_SIZE).tell(&front);
        }
        let (memory, front) = (Arc::new(memory), Arc::new(front));
        let start = |(queue, (ring, tables, buffers))| {
            let [kick, call] = start_queue(&front, queue, &ring);
            let called = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&called, &call, epoll::EventData::new_u64(0), edges).unwrap();
            let guest = Self {
                memory: Arc::clone(&memory),
                sectors,
                ring,
                tables,
                buffers,
                buffer_bytes,
                kick,
                called,
                _call: call,
                next_avail: 0,
                announced: 0,
                next_used: 0,
                has_event_idx: accepted & feature::EVENT_IDX != 0,
                _front: Arc::clone(&front),
            };
            (0..depth).for_each(|slot| guest.lay_out(slot));
            guest
        };
        (0..).zip(layouts).map(start).collect()
    }

    /// Sectors that the device tells.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// What does not change about a slot; its buffer is filled, so that its pages exist.
    fn lay_out(&self, slot: u16) {
        let table = self.table(slot);
        let first = Desc { addr: table, len: 48, flags: desc_flags::INDIRECT, next: 0 };
        self.ring.write_desc(&self.memory, slot, first);
        let header = Desc { addr: table + HEADER_AT, len: HEADER_BYTES, flags: desc_flags::NEXT, next: 1 };
        let status = Desc { addr: table + STATUS_AT, len: 1, flags: desc_flags::WRITE, next: 0 };
        self.memory.write(table, &header.bytes());
        self.memory.write(table + 32, &status.bytes());
        let bytes = usize::try_from(self.buffer_bytes).unwrap();
        self.memory.write(self.buffer(slot), &receiptdisk_tests::pattern(slot.into(), 0, bytes));
    }

    /// Puts a request into a free slot and the ring. Nobody is told before [`Guest::announce`].
    pub fn put(&mut self, slot: u16, op: Op) {
        let table = self.table(slot);
        let (kind, sector, data) = match op {
            Op::Read { sector, len } => (kind::IN, sector, Some((len, desc_flags::WRITE))),
            Op::Write { sector, len } => (kind::OUT, sector, Some((len, 0))),
            Op::Flush => (kind::FLUSH, 0, None),
            Op::Discard { sector, sectors } => (kind::DISCARD, 0, Some(self.range(slot, sector, sectors))),
            Op::WriteZeroes { sector, sectors } => {
                (kind::WRITE_ZEROES, 0, Some(self.range(slot, sector, sectors)))
            }
        };
        let next = match data {
            None => 2,
            Some((len, flags)) => {
                let (addr, flags) = (self.buffer(slot), flags | desc_flags::NEXT);
                self.memory.write(table + 16, &Desc { addr, len, flags, next: 2 }.bytes());
                1
            }
        };
        self.store(table + 14, next);
        self.memory.store(table + HEADER_AT, kind);
        self.memory.store(table + HEADER_AT + 8, sector);
        self.store(self.ring.avail_ring() + 4 + 2 * u64::from(self.next_avail % RING_SIZE), slot);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Writes the range to the slot's buffer: its length and the flags of its descriptor.
    fn range(&self, slot: u16, sector: u64, sectors: u32) -> (u32, u16) {
        let bytes = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat();
        self.memory.write(self.buffer(slot), &bytes);
        (RANGE_BYTES, 0)
    }

    /// Shows the device what was put, and kicks it if it wants to be told.
    pub fn announce(&mut self) {
        let (old, new) = (self.announced, self.next_avail);
        if old == new {
            return;
        }
        self.u16_at(self.ring.avail_ring() + 2).store(new, Ordering::Release);
        self.announced = new;
        fence(Ordering::SeqCst);
        let wants = if self.has_event_idx {
            let event =
                self.u16_at(self.ring.used_ring() + 4 + 8 * u64::from(RING_SIZE)).load(Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.u16_at(self.ring.used_ring()).load(Ordering::Relaxed) & 1 == 0
        };
        if wants {
            rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
        }
    }

    /// Waits until something has come back, and gives each slot to `done`.
    pub fn wait(&mut self, mut done: impl FnMut(u16)) {
        while !self.has_used() {
            self.sleep();
        }
        let end = self.used_index();
        while self.next_used != end {
            let entry = self.ring.used_ring() + 4 + 8 * u64::from(self.next_used % RING_SIZE);
            let slot = u16::try_from(self.u32_at(entry).load(Ordering::Relaxed)).unwrap();
            let status: u8 = self.memory.load(self.table(slot) + STATUS_AT);
            assert_eq!(status, 0, "a request failed");
            self.next_used = self.next_used.wrapping_add(1);
            done(slot);
        }
    }

    /// Asks to be called for the next used entry, and waits for the call unless it is there by now.
    fn sleep(&self) {
        let avail = self.ring.avail_ring();
        if self.has_event_idx {
            self.store(avail + 4 + 2 * u64::from(RING_SIZE), self.next_used);
        } else {
            self.store(avail, 0);
        }
        fence(Ordering::SeqCst);
        if !self.has_used() {
            let mut events = [MaybeUninit::<epoll::Event>::uninit(); 1];
            epoll::wait(&self.called, &mut events, None).unwrap();
        }
        if !self.has_event_idx {
            self.store(avail, 1);
        }
    }

    fn has_used(&self) -> bool {
        self.used_index() != self.next_used
    }

    fn used_index(&self) -> u16 {
        self.u16_at(self.ring.used_ring() + 2).load(Ordering::Acquire)
    }

    fn table(&self, slot: u16) -> u64 {
        self.tables + u64::from(slot) * SLOT_BYTES
    }

    fn buffer(&self, slot: u16) -> u64 {
        self.buffers + u64::from(slot) * self.buffer_bytes
    }

    fn store(&self, address: u64, value: u16) {
        self.u16_at(address).store(value, Ordering::Relaxed);
    }

    fn u16_at(&self, address: u64) -> &AtomicU16 {
        // SAFETY: the address is one of the ring's or a table's, all of them aligned and inside the mapping, which lives
        // as long as self; the backend changes it at the same time, hence the atomic.
        unsafe { AtomicU16::from_ptr(self.memory.host_address(address, 2).cast()) }
    }

    fn u32_at(&self, address: u64) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.memory.host_address(address, 4).cast()) }
    }
}

/// Describes a queue and enables it; its kick and call descriptors.
fn start_queue(front: &Front, queue: u32, ring: &Ring) -> [OwnedFd; 2] {
    let [kick, call] = [(); 2].map(|()| eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    front.must(&Message::vring(code::SET_VRING_NUM, queue, u32::from(RING_SIZE)), &[]);
    front.must(&Message::vring(code::SET_VRING_BASE, queue, 0), &[]);
    front.set_vring_addr(queue, ring);
    front.set_vring_fd(code::SET_VRING_KICK, queue.into(), kick.as_fd());
    front.set_vring_fd(code::SET_VRING_CALL, queue.into(), call.as_fd());
    front.must(&Message::vring(code::SET_VRING_ENABLE, queue, 1), &[]);
    [kick, call]
}
