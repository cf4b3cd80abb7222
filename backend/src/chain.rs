//! Walks one descriptor chain (virtio 1.2, 2.7.5) into host slices.
//!
//! The crate's own iterator hides errors by just ending and cannot start from a head index, so the
//! walk is done here. Each descriptor is copied once and then checked: what the guest changes
//! afterwards has no effect.

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::limits::{MAX_CHAIN_DESCRIPTORS, MAX_CHAIN_PIECES, MAX_TABLE_DESCRIPTORS};
use crate::memory::{HostSlice, Mem};

/// Bytes of one descriptor.
const DESCRIPTOR_BYTES: u32 = 16;

/// Why a chain cannot be used at all. Its head is given back with no bytes written.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ChainError {
    #[error("descriptor index {0} is outside the table")]
    IndexOutside(u16),
    #[error("descriptor table is outside guest memory")]
    TableOutside,
    #[error("buffer is outside guest memory")]
    BufferOutside,
    #[error("chain has a loop")]
    Loop,
    #[error("chain has more than {MAX_CHAIN_PIECES} pieces of memory")]
    TooManyPieces,
    #[error("readable descriptor after a writable one")]
    ReadableAfterWritable,
    #[error("indirect table of {0} bytes")]
    BadIndirectLength(u32),
    #[error("indirect descriptor that was not negotiated, is nested or has a successor")]
    BadIndirect,
}

/// Where the descriptors of a ring are.
#[derive(Debug, Clone, Copy)]
pub struct DescriptorTable {
    /// Guest physical address of the table.
    pub address: u64,
    /// Descriptors in it.
    pub size: u32,
    /// Whether VIRTIO_F_INDIRECT_DESC was negotiated; always false inside an indirect table.
    pub may_be_indirect: bool,
}

/// The buffers of one chain: what the device reads, then what it writes.
#[derive(Debug, Default)]
pub struct Chain {
    /// Bytes for the device to read, in order.
    pub readable: Vec<HostSlice>,
    /// Bytes for the device to write, in order.
    pub writable: Vec<HostSlice>,
    /// Whether there were more than [`MAX_CHAIN_DESCRIPTORS`]: then only the last buffers are here,
    /// to find the status byte with which the request is refused.
    pub is_too_long: bool,
    /// Descriptors that were looked at.
    pub walked: usize,
}

impl Chain {
    /// Replaces the content by the chain that starts at `head`.
    ///
    /// # Errors
    /// See [`ChainError`]; the content is then undefined.
    pub fn walk(&mut self, mem: &Mem, ring: DescriptorTable, head: u16) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        self.is_too_long = false;
        self.walked = 0;
        let mut table = ring;
        let mut index = head;
        let mut count = 0;
        loop {
            let descriptor = table.read(mem, index)?;
            self.walked += 1;
            count += 1;
            if count > table.size {
                return Err(ChainError::Loop);
            }
            if descriptor.refers_to_indirect_table() {
                table = table.enter(&descriptor)?;
                (index, count) = (0, 0);
                continue;
            }
            if self.walked > MAX_CHAIN_DESCRIPTORS as usize {
                self.forget_all_but(&descriptor);
            }
            self.add(mem, &descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
    }

    fn forget_all_but(&mut self, descriptor: &Descriptor) {
        self.is_too_long = true;
        self.readable.clear();
        if descriptor.is_write_only() {
            self.writable.clear();
        }
    }

    fn add(&mut self, mem: &Mem, descriptor: &Descriptor) -> Result<(), ChainError> {
        let buffers = if descriptor.is_write_only() {
            &mut self.writable
        } else if self.writable.is_empty() {
            &mut self.readable
        } else {
            return Err(ChainError::ReadableAfterWritable);
        };
        let len = usize::try_from(descriptor.len()).map_err(|_| ChainError::BufferOutside)?;
        HostSlice::resolve(mem, descriptor.addr(), len, buffers).ok_or(ChainError::BufferOutside)?;
        if self.readable.len() + self.writable.len() > MAX_CHAIN_PIECES {
            return Err(ChainError::TooManyPieces);
        }
        Ok(())
    }
}

impl DescriptorTable {
    fn read(&self, mem: &Mem, index: u16) -> Result<Descriptor, ChainError> {
        if u32::from(index) >= self.size {
            return Err(ChainError::IndexOutside(index));
        }
        let offset = u64::from(index) * u64::from(DESCRIPTOR_BYTES);
        let address = self.address.checked_add(offset).ok_or(ChainError::TableOutside)?;
        let address = GuestAddress(address);
        // One that lies across two regions takes longer.
        let in_one_region =
            mem.get_slice(address, DESCRIPTOR_BYTES as usize).ok().and_then(|slice| slice.read_obj(0).ok());
        in_one_region.map_or_else(|| mem.read_obj(address), Ok).map_err(|_| ChainError::TableOutside)
    }

    /// The indirect table that `descriptor` refers to.
    fn enter(&self, descriptor: &Descriptor) -> Result<Self, ChainError> {
        if !self.may_be_indirect || descriptor.has_next() {
            return Err(ChainError::BadIndirect);
        }
        let len = descriptor.len();
        let size = len / DESCRIPTOR_BYTES;
        if !len.is_multiple_of(DESCRIPTOR_BYTES) || size == 0 {
            return Err(ChainError::BadIndirectLength(len));
        }
        if size > MAX_TABLE_DESCRIPTORS {
            return Err(ChainError::BadIndirectLength(len));
        }
        Ok(Self { address: descriptor.addr().0, size, may_be_indirect: false })
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
