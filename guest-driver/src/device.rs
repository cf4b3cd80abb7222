//! What the store needs of a disk: whole reads and writes of 4 KiB blocks, and a flush.
//!
//! The trait has two kinds of implementation: [`crate::raw_device::RawDevice`] (a block device or a file) and the
//! simulator of the tests, which runs the same reader and writer code through power failures.

use crate::error::{DeviceError, DeviceOp};
use crate::layout::BLOCK_BYTES_USIZE;
use std::ops::Deref;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Result of one device operation.
pub type DeviceResult<T> = std::result::Result<T, DeviceError>;

/// A write of whole blocks, one of several that need no order among themselves.
#[derive(Clone, Copy, Debug)]
pub struct BlockWrite<'a> {
    /// Where.
    pub offset_bytes: u64,
    /// What.
    pub bytes: &'a [u8],
}

/// A read of whole blocks, one of several.
#[derive(Debug)]
pub struct BlockRead<'a> {
    /// Where.
    pub offset_bytes: u64,
    /// Filled.
    pub bytes: &'a mut [u8],
}

/// A disk of 4 KiB blocks with a volatile cache. Offsets and lengths are multiples of 4096 bytes.
pub trait Device {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills all of `buf` from `offset_bytes`.
    ///
    /// # Errors
    /// The device failed or ends before the last byte.
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()>;

    /// Writes all of `buf` at `offset_bytes`; it is visible to every reader on return, durable after the next flush.
    ///
    /// # Errors
    /// The device failed or ends before the last byte; what is on the medium is unknown then.
    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()>;

    /// Makes several writes that need no order among themselves, at the same time where the device can: they land in any order and may
    /// interleave. Each is taken from `writes` only when there is room for it, so what it points to may be made at that moment.
    ///
    /// # Errors
    /// One of them failed; which of the others are on the medium is unknown. None is under way any more.
    fn write_many<'a>(&self, writes: &mut dyn Iterator<Item = BlockWrite<'a>>) -> DeviceResult<()> {
        for write in writes {
            self.write(write.offset_bytes, write.bytes)?;
        }
        Ok(())
    }

    /// Makes several reads, at the same time where the device can.
    ///
    /// # Errors
    /// One of them failed. None is under way any more.
    fn read_many(&self, reads: &mut [BlockRead<'_>]) -> DeviceResult<()> {
        reads.iter_mut().try_for_each(|read| self.read(read.offset_bytes, read.bytes))
    }

    /// Writes `len_bytes` zeroes at `offset_bytes`, as [`Device::write`] would.
    ///
    /// # Errors
    /// As [`Device::write`].
    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        write_zeroes_plainly(self, offset_bytes, len_bytes)
    }

    /// Tells the disk that nothing needs these bytes any more: they may read as anything afterwards.
    ///
    /// # Errors
    /// The disk cannot; nothing has changed then.
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        let _ = (offset_bytes, len_bytes);
        Ok(())
    }

    /// Makes every completed write durable.
    ///
    /// # Errors
    /// The device failed; it is unknown which writes are durable.
    fn flush(&self) -> DeviceResult<()>;
}

/// Blocks of zeroes in one write: 1 MiB.
const ZEROES_BLOCKS: usize = 256;

/// Zeroes by plain writes of 1 MiB.
pub(crate) fn write_zeroes_plainly<D: Device + ?Sized>(
    device: &D,
    offset_bytes: u64,
    len_bytes: u64,
) -> DeviceResult<()> {
    let zeroes = AlignedBuf::zeroed(ZEROES_BLOCKS);
    let end_bytes = offset_bytes.saturating_add(len_bytes);
    let mut at_bytes = offset_bytes;
    while at_bytes < end_bytes {
        let left = usize::try_from(end_bytes - at_bytes).unwrap_or(usize::MAX);
        let piece = zeroes.as_slice().get(..left).unwrap_or(zeroes.as_slice());
        device.write(at_bytes, piece)?;
        at_bytes += piece.len() as u64;
    }
    Ok(())
}

/// A device behind a reference, an `Arc` or a `Box`.
impl<P: Deref<Target: Device>> Device for P {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        (**self).read(offset_bytes, buf)
    }
    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        (**self).write(offset_bytes, buf)
    }
    fn write_many<'a>(&self, writes: &mut dyn Iterator<Item = BlockWrite<'a>>) -> DeviceResult<()> {
        (**self).write_many(writes)
    }
    fn read_many(&self, reads: &mut [BlockRead<'_>]) -> DeviceResult<()> {
        (**self).read_many(reads)
    }
    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        (**self).write_zeroes(offset_bytes, len_bytes)
    }
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        (**self).discard(offset_bytes, len_bytes)
    }
    fn flush(&self) -> DeviceResult<()> {
        (**self).flush()
    }
}

/// Checks that a transfer lies inside the device and on block boundaries.
///
/// # Errors
/// `InvalidInput` or `UnexpectedEof` as the source of the [`DeviceError`].
pub fn check_range(op: DeviceOp, size_bytes: u64, offset_bytes: u64, len_bytes: usize) -> DeviceResult<()> {
    let block = BLOCK_BYTES_USIZE as u64;
    let fail = |kind: std::io::ErrorKind, text: &'static str| {
        Err(DeviceError { op, offset_bytes, len_bytes, source: std::io::Error::new(kind, text) })
    };
    if !offset_bytes.is_multiple_of(block) || !len_bytes.is_multiple_of(BLOCK_BYTES_USIZE) {
        return fail(std::io::ErrorKind::InvalidInput, "not on a 4096 byte boundary");
    }
    match offset_bytes.checked_add(len_bytes as u64) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => fail(std::io::ErrorKind::UnexpectedEof, "beyond the end of the device"),
    }
}

/// One block, aligned for direct IO.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct AlignedBlock([u8; BLOCK_BYTES_USIZE]);

/// A buffer of whole blocks whose address is a multiple of 4096, as direct IO wants it.
#[derive(Clone, Default)]
pub struct AlignedBuf {
    blocks: Vec<AlignedBlock>,
}

impl AlignedBuf {
    /// A buffer of `block_count` zeroed blocks.
    #[must_use]
    pub fn zeroed(block_count: usize) -> Self {
        Self { blocks: vec![AlignedBlock([0; BLOCK_BYTES_USIZE]); block_count] }
    }

    /// Adds `block_count` zeroed blocks and returns them.
    pub fn grow(&mut self, block_count: usize) -> &mut [u8] {
        let start = self.blocks.len();
        self.blocks.resize(start.saturating_add(block_count), AlignedBlock([0; BLOCK_BYTES_USIZE]));
        self.blocks.get_mut(start..).unwrap_or_default().as_mut_bytes()
    }

    /// At least `block_count` blocks of any content, which keep their memory from one use to the next.
    pub fn at_least(&mut self, block_count: usize) -> &mut [u8] {
        if self.blocks.len() < block_count {
            *self = Self::zeroed(block_count);
        }
        self.blocks.get_mut(..block_count).unwrap_or_default().as_mut_bytes()
    }

    /// A buffer of `block_count` blocks of any content, in the memory of this one where that is enough.
    #[must_use]
    pub fn resized(mut self, block_count: usize) -> Self {
        if self.blocks.capacity() < block_count {
            return Self::zeroed(block_count);
        }
        self.blocks.resize(block_count, AlignedBlock([0; BLOCK_BYTES_USIZE]));
        self
    }

    /// Blocks for which it has memory.
    #[must_use]
    pub fn capacity_blocks(&self) -> usize {
        self.blocks.capacity()
    }

    /// Length in blocks.
    #[must_use]
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.blocks.as_slice().as_bytes()
    }

    /// The bytes, writable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.blocks.as_mut_slice().as_mut_bytes()
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} blocks)", self.blocks.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_grow_zeroed() {
        let mut buf = AlignedBuf::zeroed(1);
        buf.as_mut_slice().fill(7);
        assert!(buf.grow(2).iter().all(|b| *b == 0));
        assert_eq!(buf.as_slice().len(), 3 * 4096);
        assert_eq!(buf.as_slice().as_ptr().addr() % 4096, 0);
        assert_eq!(buf.as_slice()[4095], 7);
    }

    #[test]
    fn a_buffer_is_resized_in_its_own_memory_while_that_is_enough() {
        let mut buf = AlignedBuf::zeroed(3);
        buf.as_mut_slice().fill(7);
        let place = buf.as_slice().as_ptr();
        let buf = buf.resized(1).resized(3);
        assert_eq!((buf.as_slice().as_ptr(), buf.block_count(), buf.capacity_blocks()), (place, 3, 3));
        assert_eq!(buf.as_slice()[0], 7);
        assert_eq!(buf.resized(4).as_slice(), vec![0; 4 * 4096]);
    }

    #[test]
    fn ranges_outside_or_unaligned_are_refused() {
        assert!(check_range(DeviceOp::Read, 8192, 4096, 4096).is_ok());
        assert!(check_range(DeviceOp::Read, 8192, 4096, 8192).is_err());
        assert!(check_range(DeviceOp::Read, 8192, 512, 4096).is_err());
        assert!(check_range(DeviceOp::Read, 8192, u64::MAX - 4095, 4096).is_err());
    }
}
