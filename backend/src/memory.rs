//! Guest memory: the regions a front end shares, and slices of them on the host side.
//!
//! Invariant: a [`HostSlice`] is made only from a [`Mem`] and used only while that `Mem` is alive;
//! a virtqueue keeps its `Mem` until its last request has ended.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, StatxFlags, fcntl_get_seals, fstat, statx};
use rustix::io::Errno;
use thiserror::Error;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion, VolatileSlice,
};

use crate::limits::{MAX_MAPPED_BYTES, MAX_MEM_SLOTS};
use crate::sigbus::Guard;

/// Mapped memory of one guest; addresses are guest physical.
pub type Mem = GuestMemoryMmap<()>;

/// Why a memory region was refused.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum MemoryError {
    #[error("memory region is empty or its addresses wrap around")]
    BadRegion,
    #[error("memory region wants {wanted_bytes} bytes of a file of {file_bytes}")]
    BeyondFile { wanted_bytes: u64, file_bytes: u64 },
    #[error("memory region cannot be mapped: {0}")]
    Map(io::Error),
    #[error(
        "memory region is of a file for which another process or host may answer; use a memfd, tmpfs or huge pages"
    )]
    Unreliable,
    #[error("memory regions overlap")]
    Overlap,
    #[error("more than {MAX_MEM_SLOTS} memory regions")]
    TooMany,
    #[error("more than {MAX_MAPPED_BYTES} bytes of guest memory")]
    TooMuch,
    #[error("no such memory region")]
    Unknown,
}

/// One shared region and where the front end itself has it mapped.
#[derive(Debug)]
struct Region {
    guest_addr: u64,
    user_addr: u64,
    size_bytes: u64,
    /// Goes before the mapping. Nobody accesses that any more then: rings are stopped before a region is removed.
    _guard: Guard,
    mapping: Arc<GuestRegionMmap<()>>,
}

/// The regions of one session. Vring addresses arrive as addresses of the front end's own process.
#[derive(Debug, Default)]
pub struct MemoryTable {
    regions: Vec<Region>,
}

impl MemoryTable {
    /// A table of all `regions`, each with its descriptor; the order does not matter.
    ///
    /// # Errors
    /// When a region is empty, wraps, overlaps another, reaches past its file or cannot be mapped.
    pub fn new(regions: Vec<(VhostUserMemoryRegion, OwnedFd)>) -> Result<Self, MemoryError> {
        let mut table = Self::default();
        for (region, fd) in regions {
            table.add(&region, fd)?;
        }
        Ok(table)
    }

    /// Maps one more region.
    ///
    /// # Errors
    /// As for [`MemoryTable::new`].
    pub fn add(&mut self, region: &VhostUserMemoryRegion, fd: OwnedFd) -> Result<(), MemoryError> {
        if self.regions.len() >= MAX_MEM_SLOTS {
            return Err(MemoryError::TooMany);
        }
        let mapped_bytes: u64 = self.regions.iter().map(|r| r.size_bytes).sum();
        if region.memory_size > MAX_MAPPED_BYTES - mapped_bytes {
            return Err(MemoryError::TooMuch);
        }
        let added = Region::map(region, fd)?;
        let overlaps = |r: &Region| {
            added.guest_addr < r.guest_addr + r.size_bytes
                && r.guest_addr < added.guest_addr + added.size_bytes
        };
        if self.regions.iter().any(overlaps) {
            return Err(MemoryError::Overlap);
        }
        self.regions.push(added);
        Ok(())
    }

    /// Forgets one region.
    ///
    /// # Errors
    /// When no region has these addresses.
    pub fn remove(&mut self, region: &VhostUserMemoryRegion) -> Result<(), MemoryError> {
        let VhostUserMemoryRegion { guest_phys_addr, user_addr, memory_size, .. } = *region;
        let at = self
            .regions
            .iter()
            .position(|r| {
                (r.guest_addr, r.user_addr, r.size_bytes) == (guest_phys_addr, user_addr, memory_size)
            })
            .ok_or(MemoryError::Unknown)?;
        self.regions.swap_remove(at);
        Ok(())
    }

    /// All regions with their descriptors, as they were told.
    pub fn regions(&self) -> impl Iterator<Item = (VhostUserMemoryRegion, BorrowedFd<'_>)> {
        self.regions.iter().filter_map(|r| {
            let file = r.mapping.file_offset()?;
            let region = VhostUserMemoryRegion::new(r.guest_addr, r.size_bytes, r.user_addr, file.start());
            Some((region, file.file().as_fd()))
        })
    }

    /// The guest physical address of an address in the front end's process.
    #[must_use]
    pub fn guest_address(&self, user_addr: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|r| {
            let offset = user_addr.checked_sub(r.user_addr)?;
            (offset < r.size_bytes).then(|| GuestAddress(r.guest_addr + offset))
        })
    }

    /// The mapped memory for the data path; `None` while there is no region.
    ///
    /// # Errors
    /// When regions overlap.
    pub fn mem(&self) -> Result<Option<Arc<Mem>>, MemoryError> {
        if self.regions.is_empty() {
            return Ok(None);
        }
        let mut sorted: Vec<_> = self.regions.iter().map(|r| Arc::clone(&r.mapping)).collect();
        sorted.sort_by_key(|mapping| mapping.start_addr());
        let mem = Mem::from_arc_regions(sorted).map_err(|_| MemoryError::Overlap)?;
        Ok(Some(Arc::new(mem)))
    }
}

impl Region {
    fn map(region: &VhostUserMemoryRegion, fd: OwnedFd) -> Result<Self, MemoryError> {
        let VhostUserMemoryRegion { guest_phys_addr, memory_size, user_addr, mmap_offset } = *region;
        let ends = [guest_phys_addr, user_addr, mmap_offset].map(|start| start.checked_add(memory_size));
        let [Some(_), Some(_), Some(wanted_bytes)] = ends else {
            return Err(MemoryError::BadRegion);
        };
        let size = usize::try_from(memory_size).map_err(|_| MemoryError::BadRegion)?;
        if size == 0 {
            return Err(MemoryError::BadRegion);
        }
        if may_never_answer(&fd).map_err(MemoryError::Map)? {
            return Err(MemoryError::Unreliable);
        }
        // A mapping that reaches past its file would end the whole process with SIGBUS on first use.
        let stat = fstat(&fd).map_err(|error| MemoryError::Map(error.into()))?;
        let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let is_device = FileType::from_raw_mode(stat.st_mode).is_char_device();
        if file_bytes < wanted_bytes && !is_device {
            return Err(MemoryError::BeyondFile { wanted_bytes, file_bytes });
        }
        let mapping = MmapRegion::from_file(FileOffset::new(File::from(fd), mmap_offset), size)
            .map_err(|error| MemoryError::Map(map_error(error)))?;
        keep_out_of_core_dumps(&mapping);
        let guard = Guard::new(mapping.as_ptr(), mapping.size()).ok_or(MemoryError::TooMany)?;
        let mapping =
            GuestRegionMmap::new(mapping, GuestAddress(guest_phys_addr)).ok_or(MemoryError::BadRegion)?;
        Ok(Self {
            guest_addr: guest_phys_addr,
            user_addr,
            size_bytes: memory_size,
            _guard: guard,
            mapping: Arc::new(mapping),
        })
    }
}

/// Whether an access to a mapping of `fd` may never end, because another process or host answers for its pages, as in FUSE and NFS.
/// Guest memory is touched while ranges of the disk are held, and everybody who wants these would wait. The question itself must
/// not wait either, so it is only put to what this kernel knows by itself.
///
/// # Errors
/// When the kernel does not say.
pub fn may_never_answer(fd: &OwnedFd) -> io::Result<bool> {
    // Only memory of this host has seals: memfds, tmpfs, huge pages.
    if fcntl_get_seals(fd).is_ok() {
        return Ok(false);
    }
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(fd, c"", flags, StatxFlags::TYPE)?;
    // A file system on a block device has that device's number, any other one of no driver.
    Ok(!FileType::from_raw_mode(stat.stx_mode.into()).is_char_device() && stat.stx_dev_major == 0)
}

/// Why a mapping failed.
#[must_use]
pub fn map_error(error: MmapRegionError) -> io::Error {
    match error {
        MmapRegionError::Mmap(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// Whether an error says that this process has no more of something, whatever it was asked for.
#[must_use]
pub fn is_out_of_resources(error: &io::Error) -> bool {
    let exhausted = [Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::AGAIN].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|errno| exhausted.contains(&errno))
}

/// What the guest holds in memory goes into no file of the host. Without the sandbox the process may dump core.
fn keep_out_of_core_dumps(mapping: &MmapRegion<()>) {
    // SAFETY: the range is exactly the mapping; the advice changes nothing about what can be read and written there.
    if unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_DONTDUMP) } != 0 {
        log::debug!("event=memory-in-core-dumps error=\"{}\"", std::io::Error::last_os_error());
    }
}

/// A piece of guest memory as the host's system calls see it. The guest may change it at any time,
/// so it is copied before it is looked at, and only by volatile access.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct HostSlice(libc::iovec);

impl HostSlice {
    /// Adds the host slices of `len` bytes at `addr` to `out`, split where regions meet.
    /// `None` when any byte of them is not memory of the guest.
    #[must_use]
    pub fn resolve(mem: &Mem, addr: GuestAddress, len: usize, out: &mut Vec<HostSlice>) -> Option<()> {
        // Nearly always one region has it all.
        if let Ok(slice) = mem.get_slice(addr, len)
            && len > 0
        {
            out.push(Self::of(&slice));
            return Some(());
        }
        for slice in mem.get_slices(addr, len) {
            out.push(Self::of(&slice.ok()?));
        }
        Some(())
    }

    fn of(slice: &VolatileSlice<'_>) -> Self {
        Self(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
    }

    /// A slice of the backend's own memory.
    ///
    /// # Safety
    /// `buffer` must stay valid and unmoved for as long as the slice is used.
    #[must_use]
    pub unsafe fn of_buffer(buffer: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: buffer.cast(), iov_len: len })
    }

    /// Where it is on the host.
    #[cfg(any(test, fuzzing))]
    pub fn address(&self) -> usize {
        self.0.iov_base.addr()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether the slice has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    /// Whether address and length are multiples of these alignments (powers of two).
    #[must_use]
    pub fn is_aligned(&self, addr_align: usize, len_align: usize) -> bool {
        self.0.iov_base.addr() & (addr_align - 1) == 0 && self.0.iov_len & (len_align - 1) == 0
    }

    /// Splits off the first `at` bytes; `at` is clamped to the length.
    #[must_use]
    pub fn split(self, at: usize) -> (Self, Self) {
        let at = at.min(self.len());
        let first = libc::iovec { iov_base: self.0.iov_base, iov_len: at };
        let rest = libc::iovec {
            iov_base: self.0.iov_base.cast::<u8>().wrapping_add(at).cast(),
            iov_len: self.len() - at,
        };
        (Self(first), Self(rest))
    }

    /// Copies as many bytes as fit into `to` and returns their number.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        self.volatile().copy_to(to)
    }

    /// Copies as many bytes as fit from `from` and returns their number.
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let len = from.len().min(self.len());
        self.volatile().copy_from(&from[..len]);
        len
    }

    fn volatile(&self) -> VolatileSlice<'_> {
        // SAFETY: the slice came from mapped guest memory that its virtqueue keeps mapped, or from a
        // buffer that outlives it (`of_buffer`); were it unmapped, the access would fault.
        unsafe { VolatileSlice::new(self.0.iov_base.cast(), self.0.iov_len) }
    }
}

/// Total bytes of `slices`.
#[must_use]
pub fn total_len(slices: &[HostSlice]) -> usize {
    slices.iter().map(HostSlice::len).sum()
}

/// Copies from `slices`, after the first `skip` bytes, into `to`; returns the bytes copied.
pub fn gather(slices: &[HostSlice], mut skip: usize, to: &mut [u8]) -> usize {
    let mut copied = 0;
    for slice in slices {
        let (skipped, rest) = slice.split(skip);
        skip -= skipped.len();
        copied += rest.copy_to(&mut to[copied..]);
    }
    copied
}

/// Copies `from` into `slices` after their first `skip` bytes; returns the bytes copied.
pub fn scatter(slices: &[HostSlice], mut skip: usize, from: &[u8]) -> usize {
    let mut copied = 0;
    for slice in slices {
        let (skipped, rest) = slice.split(skip);
        skip -= skipped.len();
        copied += rest.copy_from(&from[copied..]);
    }
    copied
}
