//! The receipt store's view of the shared disk through a userspace driver: no virtual machine in between.

use std::cell::RefCell;

use receipt_store::device::{DeviceResult, check_range};
use receipt_store::error::{DeviceError, DeviceOp};

use crate::{Driver, SECTOR};

/// Longest request the driver makes.
const REQUEST_BYTES: usize = 1 << 20;

/// A disk behind a driver.
pub struct GuestDisk {
    driver: RefCell<Driver>,
    size_bytes: u64,
}

impl GuestDisk {
    /// The disk that `driver` drives.
    pub fn new(driver: Driver) -> Self {
        let size_bytes = driver.capacity() * SECTOR as u64;
        Self { driver: RefCell::new(driver), size_bytes }
    }
}

fn failed(op: DeviceOp, offset_bytes: u64, len_bytes: usize, errno: i32) -> DeviceError {
    DeviceError { op, offset_bytes, len_bytes, source: std::io::Error::from_raw_os_error(-errno) }
}

impl receipt_store::Device for GuestDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        check_range(DeviceOp::Read, self.size_bytes, offset_bytes, buf.len())?;
        let mut driver = self.driver.borrow_mut();
        for (at, part) in (offset_bytes..).step_by(REQUEST_BYTES).zip(buf.chunks_mut(REQUEST_BYTES)) {
            let data = driver.read(at, part.len());
            part.copy_from_slice(&data.map_err(|errno| failed(DeviceOp::Read, at, part.len(), errno))?);
        }
        Ok(())
    }

    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        check_range(DeviceOp::Write, self.size_bytes, offset_bytes, buf.len())?;
        let mut driver = self.driver.borrow_mut();
        for (at, part) in (offset_bytes..).step_by(REQUEST_BYTES).zip(buf.chunks(REQUEST_BYTES)) {
            driver.write(at, part).map_err(|errno| failed(DeviceOp::Write, at, part.len(), errno))?;
        }
        Ok(())
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        let len = usize::try_from(len_bytes).unwrap();
        check_range(DeviceOp::Discard, self.size_bytes, offset_bytes, len)?;
        let discarded = self.driver.borrow_mut().discard(offset_bytes, len_bytes);
        discarded.map_err(|errno| failed(DeviceOp::Discard, offset_bytes, len, errno))
    }

    fn flush(&self) -> DeviceResult<()> {
        self.driver.borrow_mut().flush().map_err(|errno| failed(DeviceOp::Flush, 0, 0, errno))
    }
}
