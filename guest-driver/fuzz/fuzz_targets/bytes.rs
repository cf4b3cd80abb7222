//! A disk that begins with the input, zeroes behind it.

use receipt_store::device::{Device, DeviceResult};

pub struct Bytes {
    pub bytes: Vec<u8>,
    pub size_bytes: u64,
}

impl Device for Bytes {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        let behind =
            usize::try_from(offset_bytes).ok().and_then(|start| self.bytes.get(start..)).unwrap_or_default();
        let len = behind.len().min(buf.len());
        buf[..len].copy_from_slice(&behind[..len]);
        buf[len..].fill(0);
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> DeviceResult<()> {
        Ok(())
    }
    fn flush(&self) -> DeviceResult<()> {
        Ok(())
    }
}
