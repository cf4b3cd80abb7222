//! An ordinary virtio-blk driver: the `virtio-driver` crate with blocking calls and a queue depth.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, FileOffset, VolatileMemory};

use crate::wait::{listening, readable};

/// Bytes of one request's buffer; larger requests are the raw guest's business.
const SLOT: usize = 1 << 20;

/// A driver with its queues started. `Err` of its requests is the negative errno that the crate makes of the status.
pub struct Driver {
    // Before the transport: the queues live in its memory.
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    transport: Box<VirtioBlkTransport>,
    memory: MmapRegion,
}

impl Driver {
    /// Connects with one queue of 128 entries.
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        Self::connect_with(socket, 1, 128, 1)
    }

    /// Connects with `queues` queues of `size` entries and buffers for `depth` requests.
    #[track_caller]
    pub fn connect_with(socket: &Path, queues: usize, size: u16, depth: usize) -> Self {
        let mut transport = connect(socket);
        let memory = map_memory(transport.as_mut(), depth * SLOT);
        let mut queues = VirtioBlkQueue::setup_queues(transport.as_mut(), queues, size).unwrap();
        queues.iter_mut().for_each(|queue| queue.set_used_notif_enabled(true));
        Self { queues, transport, memory }
    }

    /// Number of sectors that the device tells.
    pub fn capacity(&self) -> u64 {
        u64::from(self.transport.get_config().unwrap().capacity)
    }

    /// Reads `len` bytes at `offset`.
    ///
    /// # Errors
    /// The request's negative errno.
    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        self.submit_read(0, 0, offset, len);
        self.finish()?;
        Ok(self.buffer(0, len))
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// The request's negative errno.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), i32> {
        self.submit_write(0, 0, offset, data);
        self.finish()
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// The request's negative errno.
    pub fn flush(&mut self) -> Result<(), i32> {
        self.queues[0].flush(0).unwrap();
        self.kick(0);
        self.finish()
    }

    /// Discards `len` bytes at `offset`.
    ///
    /// # Errors
    /// The request's negative errno.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), i32> {
        self.queues[0].discard(offset, len, 0).unwrap();
        self.kick(0);
        self.finish()
    }

    /// Zeroes `len` bytes at `offset`.
    ///
    /// # Errors
    /// The request's negative errno.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> Result<(), i32> {
        self.queues[0].write_zeroes(offset, len, unmap, 0).unwrap();
        self.kick(0);
        self.finish()
    }

    /// Starts a read into buffer `slot`.
    pub fn submit_read(&mut self, queue: usize, slot: usize, offset: u64, len: usize) {
        let buffer = self.slot(slot, len);
        // SAFETY: the buffer is in the mapping that lives as long as self, and nothing else refers to it in Rust.
        unsafe { self.queues[queue].read_raw(offset, buffer, len, slot) }.unwrap();
        self.kick(queue);
    }

    /// Starts a write from buffer `slot`, after filling it with `data`.
    pub fn submit_write(&mut self, queue: usize, slot: usize, offset: u64, data: &[u8]) {
        self.memory.as_volatile_slice().write_slice(data, slot * SLOT).unwrap();
        let buffer = self.slot(slot, data.len());
        // SAFETY: as in submit_read; the device only reads it.
        unsafe { self.queues[queue].write_raw(offset, buffer, data.len(), slot) }.unwrap();
        self.kick(queue);
    }

    /// Waits for completions of a queue: `(slot, errno)` of each.
    #[track_caller]
    pub fn wait(&mut self, queue: usize) -> Vec<(usize, i32)> {
        loop {
            let done: Vec<_> =
                self.queues[queue].completions().map(|done| (done.context, done.ret)).collect();
            if !done.is_empty() {
                return done;
            }
            let call = self.transport.get_completion_fd(queue);
            assert!(readable(&*call), "no call for queue {queue}");
            call.read().unwrap();
        }
    }

    /// What is in buffer `slot`.
    pub fn buffer(&self, slot: usize, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.as_volatile_slice().read_slice(&mut data, slot * SLOT).unwrap();
        data
    }

    fn finish(&mut self) -> Result<(), i32> {
        match self.wait(0).as_slice() {
            [(0, 0)] => Ok(()),
            [(0, errno)] => Err(*errno),
            other => panic!("one request in flight, completed: {other:?}"),
        }
    }

    fn kick(&mut self, queue: usize) {
        if self.queues[queue].avail_notif_needed() {
            self.transport.get_submission_notifier(queue).notify().unwrap();
        }
    }

    fn slot(&self, slot: usize, len: usize) -> *mut u8 {
        assert!(len <= SLOT, "requests up to {SLOT} bytes");
        self.memory.as_volatile_slice().subslice(slot * SLOT, len).unwrap().ptr_guard_mut().as_ptr()
    }
}

#[track_caller]
fn connect(socket: &Path) -> Box<VirtioBlkTransport> {
    let ring = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
    let ring = ring | VirtioFeatureFlags::RING_INDIRECT_DESC;
    let features = ring.bits() | VirtioBlkFeatureFlags::all().bits();
    let socket = socket.to_str().unwrap();
    Box::new(listening(|| VhostUser::new(socket, features)))
}

fn map_memory(transport: &mut VirtioBlkTransport, len: usize) -> MmapRegion {
    let file = File::from(memfd_create("driver-buffers", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len as u64).unwrap();
    let fd = file.as_raw_fd();
    let memory: MmapRegion = MmapRegion::from_file(FileOffset::new(file, 0), len).unwrap();
    let address = memory.as_volatile_slice().ptr_guard_mut().as_ptr() as usize;
    transport.map_mem_region(address, len, fd, 0).unwrap();
    memory
}
