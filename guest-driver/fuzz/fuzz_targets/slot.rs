//! Mended checksums.

/// A slot of 4096 bytes from the input, with magic and checksum.
pub fn slot(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    bytes.resize(4096, 0);
    bytes[..4].copy_from_slice(b"RSPG");
    let crc = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}
