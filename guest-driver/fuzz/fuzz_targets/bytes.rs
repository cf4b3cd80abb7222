//! A disk of a few pages that repeat the input, and mended checksums.

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
        let start = usize::try_from(offset_bytes).unwrap_or(usize::MAX);
        for (at, byte) in buf.iter_mut().enumerate() {
            *byte = start.checked_add(at).and_then(|at| self.bytes.get(at)).copied().unwrap_or(0);
        }
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> DeviceResult<()> {
        Ok(())
    }
    fn flush(&self) -> DeviceResult<()> {
        Ok(())
    }
}

/// A slot of 4096 bytes from the input, with magic and checksum.
pub fn slot(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    bytes.resize(4096, 0);
    bytes[..4].copy_from_slice(b"RSPG");
    let crc = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}
