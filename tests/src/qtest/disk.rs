//! A virtio-blk driver that does one thing at a time, in the memory of a [`Machine`].

use super::Machine;
use super::pci::{Function, Part};
use crate::raw::{Request, feature};
use crate::wait::until;

/// Fields of the common part.
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DEVICE_FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const NUM_QUEUES: u64 = 18;
    pub const DEVICE_STATUS: u64 = 20;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    pub const QUEUE_DESC: u64 = 32;
}

const ACKNOWLEDGE_DRIVER: u64 = 3;
const FEATURES_OK: u64 = 8;
const DRIVER_OK: u64 = 4;
const ISR_QUEUE: u64 = 1;
const ISR_CONFIG: u64 = 2;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const DESC_BYTES: usize = 16;

/// A disk that has been found and reset.
#[derive(Debug)]
pub struct PciDisk {
    function: Function,
    features: u64,
    queues: Vec<Queue>,
}

/// A virtqueue with one request in it at most.
#[derive(Debug)]
struct Queue {
    size: u16,
    notify_at: u64,
    descriptors: u64,
    available: u64,
    used: u64,
    /// Table of an indirect request.
    table: u64,
    buffer: u64,
    /// Requests submitted, and answered.
    next: u16,
}

/// What the device has answered.
#[derive(Debug)]
pub struct Answer {
    /// Its status byte.
    pub status: u8,
    /// What it has written before that.
    pub data: Vec<u8>,
}

const BUFFER_BYTES: usize = 256 << 10;

impl PciDisk {
    /// The disk in `slot`, with these features of those that it offers, and so many queues.
    #[track_caller]
    pub fn start(machine: &mut Machine, slot: u8, features: u64, queues: u16) -> Self {
        let function = Function::find(machine, slot);
        let mut disk = Self { function, features, queues: Vec::new() };
        disk.set(machine, common::DEVICE_STATUS, 1, 0);
        disk.set(machine, common::DEVICE_STATUS, 1, ACKNOWLEDGE_DRIVER);
        let offered = disk.offered(machine);
        assert_eq!(offered & features, features, "offered: {offered:#x}");
        for half in 0..2 {
            disk.set(machine, common::DRIVER_FEATURE_SELECT, 4, half);
            disk.set(machine, common::DRIVER_FEATURE, 4, features >> (32 * half) & 0xffff_ffff);
        }
        disk.set(machine, common::DEVICE_STATUS, 1, ACKNOWLEDGE_DRIVER | FEATURES_OK);
        assert_ne!(disk.get(machine, common::DEVICE_STATUS, 1) & FEATURES_OK, 0, "the features are refused");
        for index in 0..queues {
            let queue = disk.set_up_queue(machine, index);
            disk.queues.push(queue);
        }
        disk.set(machine, common::DEVICE_STATUS, 1, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK);
        disk
    }

    /// All that the device offers.
    #[track_caller]
    pub fn offered(&self, machine: &mut Machine) -> u64 {
        let mut half = |half: u64| {
            self.set(machine, common::DEVICE_FEATURE_SELECT, 4, half);
            self.get(machine, common::DEVICE_FEATURE, 4)
        };
        half(0) | half(1) << 32
    }

    /// Queues that the device has.
    #[track_caller]
    pub fn queue_count(&self, machine: &mut Machine) -> u64 {
        self.get(machine, common::NUM_QUEUES, 2)
    }

    /// A field of the device's own configuration.
    #[track_caller]
    pub fn config(&self, machine: &mut Machine, offset: u64, bytes: usize) -> u64 {
        machine.load(self.function.at(Part::Device, offset), bytes)
    }

    /// Whether the device has interrupted because of a queue since this was last asked.
    #[track_caller]
    pub fn was_interrupted(&self, machine: &mut Machine) -> bool {
        machine.load(self.function.at(Part::Isr, 0), 1) & ISR_QUEUE != 0
    }

    /// Waits until the device says that its configuration has changed.
    #[track_caller]
    pub fn wait_for_config_change(&self, machine: &mut Machine) {
        let isr = self.function.at(Part::Isr, 0);
        until("a change of the configuration", || (machine.load(isr, 1) & ISR_CONFIG != 0).then_some(()));
    }

    /// Carries out one request on a queue, the answer noticed by its used index.
    #[track_caller]
    pub fn request(&mut self, machine: &mut Machine, queue: usize, request: &Request) -> Answer {
        self.submit(machine, queue, request);
        self.wait_used(machine, queue);
        self.answer(machine, queue, request)
    }

    /// Waits for the interrupt, too.
    #[track_caller]
    pub fn interrupting_request(&mut self, machine: &mut Machine, queue: usize, request: &Request) -> Answer {
        self.submit(machine, queue, request);
        until("an interrupt", || self.was_interrupted(machine).then_some(()));
        self.wait_used(machine, queue);
        self.answer(machine, queue, request)
    }

    /// Wants the next interrupt only once so many more requests have been answered than now; needs EVENT_IDX.
    #[track_caller]
    pub fn interrupt_after(&mut self, machine: &mut Machine, queue: usize, answers: u16) {
        let Queue { size, available, next, .. } = self.queues[queue];
        let at = available + 4 + 2 * u64::from(size);
        machine.store(at, 2, u64::from(next.wrapping_add(answers - 1)));
    }

    /// Notifies a queue that the device does not have.
    #[track_caller]
    pub fn notify_nobody(&self, machine: &mut Machine, queue: u16) {
        machine.store(self.function.notify_at(u64::from(queue)), 2, u64::from(queue));
    }

    /// Lets the disk be taken away.
    pub fn eject(self, machine: &mut Machine) {
        self.function.eject(machine);
    }

    #[track_caller]
    fn set_up_queue(&self, machine: &mut Machine, index: u16) -> Queue {
        self.set(machine, common::QUEUE_SELECT, 2, index.into());
        let size = u16::try_from(self.get(machine, common::QUEUE_SIZE, 2)).unwrap();
        assert!(size >= 8, "queue {index} has {size} entries");
        let off = self.get(machine, common::QUEUE_NOTIFY_OFF, 2);
        let entries = usize::from(size);
        let queue = Queue {
            size,
            notify_at: self.function.notify_at(off),
            descriptors: machine.allocate(DESC_BYTES * entries),
            available: machine.allocate(6 + 2 * entries),
            used: machine.allocate(6 + 8 * entries),
            table: machine.allocate(DESC_BYTES * entries),
            buffer: machine.allocate(BUFFER_BYTES),
            next: 0,
        };
        for (field, place) in [queue.descriptors, queue.available, queue.used].into_iter().enumerate() {
            let at = common::QUEUE_DESC + 8 * field as u64;
            self.set(machine, at, 4, place);
            self.set(machine, at + 4, 4, 0);
        }
        self.set(machine, common::QUEUE_ENABLE, 2, 1);
        queue
    }

    /// Header and data in one descriptor for the device to read, one for it to write.
    #[track_caller]
    fn submit(&mut self, machine: &mut Machine, queue: usize, request: &Request) {
        let Queue { size, notify_at, descriptors, available, table, buffer, next, .. } = self.queues[queue];
        let (readable, writable) = (request.readable(), request.writable_len());
        assert!(readable.len() + writable <= BUFFER_BYTES);
        machine.write(buffer, readable);
        let answer = buffer + readable.len() as u64;
        machine.write(answer, &vec![0xaa; writable]);
        let pair =
            [descriptor(buffer, readable.len(), DESC_NEXT, 1), descriptor(answer, writable, DESC_WRITE, 0)]
                .concat();
        if self.features & feature::INDIRECT_DESC != 0 {
            machine.write(table, &pair);
            machine.write(descriptors, &descriptor(table, pair.len(), DESC_INDIRECT, 0));
        } else {
            machine.write(descriptors, &pair);
        }
        machine.store(available + 4 + 2 * u64::from(next % size), 2, 0);
        self.queues[queue].next = next.wrapping_add(1);
        machine.store(available + 2, 2, u64::from(self.queues[queue].next));
        machine.store(notify_at, 2, queue as u64);
    }

    #[track_caller]
    fn wait_used(&self, machine: &mut Machine, queue: usize) {
        let Queue { used, next, .. } = self.queues[queue];
        until("an answer", || (machine.load(used + 2, 2) == u64::from(next)).then_some(()));
    }

    #[track_caller]
    fn answer(&self, machine: &mut Machine, queue: usize, request: &Request) -> Answer {
        let writable = request.writable_len();
        let mut data = machine.read(self.queues[queue].buffer + request.readable().len() as u64, writable);
        let status = data.pop().unwrap();
        Answer { status, data }
    }

    #[track_caller]
    fn get(&self, machine: &mut Machine, field: u64, bytes: usize) -> u64 {
        machine.load(self.function.at(Part::Common, field), bytes)
    }

    #[track_caller]
    fn set(&self, machine: &mut Machine, field: u64, bytes: usize, value: u64) {
        machine.store(self.function.at(Part::Common, field), bytes, value);
    }
}

fn descriptor(at: u64, bytes: usize, flags: u16, next: u16) -> Vec<u8> {
    let bytes = u32::try_from(bytes).unwrap();
    let parts: [&[u8]; 4] =
        [&at.to_le_bytes(), &bytes.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
    parts.concat()
}
