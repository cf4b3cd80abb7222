//! Guest memory: a memfd, known to the backend by guest addresses and by front-end addresses that both differ from ours.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::mmap::MmapRegion;
use vm_memory::{AtomicAccess, Bytes, FileOffset, VolatileMemory};

/// Where guest memory begins for the guest.
pub const GUEST_BASE: u64 = 0x1_0000_0000;
/// Where it begins for the front end. Not where it is mapped here: the backend must translate, not believe.
const USER_BASE: u64 = 0x7000_0000_0000;
/// Bytes of guest memory. Only what is touched costs anything.
const SIZE: usize = 256 << 20;

/// One region as SET_MEM_TABLE and ADD_MEM_REG tell it.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// Guest address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Front-end address.
    pub user: u64,
    /// Where it begins in the descriptor.
    pub offset: u64,
}

impl Region {
    /// As it stands in a message.
    pub fn bytes(&self) -> Vec<u8> {
        [self.guest, self.size, self.user, self.offset].map(u64::to_le_bytes).concat()
    }
}

/// The memory of a guest, with an allocator.
#[derive(Debug)]
pub struct Memory {
    map: MmapRegion,
    next: u64,
    free: HashMap<u64, Vec<u64>>,
}

impl Memory {
    /// Zeroed memory.
    pub fn new() -> Self {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        Self::of_file(File::from(memfd_create("guest-memory", flags).unwrap()))
    }

    /// Memory in this file, which is empty.
    pub fn of_file(file: File) -> Self {
        file.set_len(SIZE as u64).unwrap();
        let map = MmapRegion::from_file(FileOffset::new(file, 0), SIZE).unwrap();
        Self { map, next: 0, free: HashMap::new() }
    }

    /// The descriptor behind the memory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.file_offset().unwrap().file().as_fd()
    }

    /// All of it as `count` regions of equal size that touch one another.
    pub fn regions(&self, count: u64) -> Vec<Region> {
        let size = SIZE as u64 / count;
        assert_eq!(size % 4096, 0, "regions are whole pages");
        let region = |offset| Region { guest: GUEST_BASE + offset, size, user: USER_BASE + offset, offset };
        (0..count).map(|index| region(index * size)).collect()
    }

    /// The front-end address of a guest address.
    pub fn user_address(guest: u64) -> u64 {
        guest - GUEST_BASE + USER_BASE
    }

    /// Takes room for `len` bytes, aligned to a page or, if it is smaller, to its size.
    pub fn take(&mut self, len: usize) -> u64 {
        let class = class(len);
        if let Some(address) = self.free.get_mut(&class).and_then(Vec::pop) {
            return address;
        }
        let start = self.next.next_multiple_of(class.min(4096));
        self.next = start + class;
        assert!(self.next <= SIZE as u64, "guest memory is full");
        GUEST_BASE + start
    }

    /// Gives room for `len` bytes back.
    pub fn give(&mut self, address: u64, len: usize) {
        self.free.entry(class(len)).or_default().push(address);
    }

    /// Where `len` bytes at a guest address are mapped in this process: for drivers that must be fast.
    pub fn host_address(&self, address: u64, len: usize) -> *mut u8 {
        self.map.as_volatile_slice().subslice(offset(address), len).unwrap().ptr_guard_mut().as_ptr()
    }

    /// Writes bytes.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.map.as_volatile_slice().write_slice(bytes, offset(address)).unwrap();
    }

    /// Reads bytes.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.map.as_volatile_slice().read_slice(&mut bytes, offset(address)).unwrap();
        bytes
    }

    /// Loads an integer that the backend may be changing.
    pub fn load<T: AtomicAccess>(&self, address: u64) -> T {
        self.map.as_volatile_slice().load(offset(address), Ordering::SeqCst).unwrap()
    }

    /// Stores an integer that the backend may be reading.
    pub fn store<T: AtomicAccess>(&self, address: u64, value: T) {
        self.map.as_volatile_slice().store(value, offset(address), Ordering::SeqCst).unwrap();
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

fn class(len: usize) -> u64 {
    (len as u64).next_power_of_two().max(16)
}

fn offset(address: u64) -> usize {
    usize::try_from(address - GUEST_BASE).unwrap()
}
