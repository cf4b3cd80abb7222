//! The configuration space, `struct virtio_blk_config` (virtio 1.2, 5.2.4), read field by field.

/// What a driver reads from the configuration space.
#[expect(missing_docs, reason = "the names are the specification's")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub capacity: u64,
    pub size_max: u32,
    pub seg_max: u32,
    pub blk_size: u32,
    pub physical_block_exp: u8,
    pub alignment_offset: u8,
    pub min_io_size: u16,
    pub opt_io_size: u32,
    pub writeback: u8,
    pub num_queues: u16,
    pub max_discard_sectors: u32,
    pub max_discard_seg: u32,
    pub discard_sector_alignment: u32,
    pub max_write_zeroes_sectors: u32,
    pub max_write_zeroes_seg: u32,
    pub write_zeroes_may_unmap: u8,
}

impl Config {
    /// Bytes up to and including `write_zeroes_may_unmap` and its padding.
    pub const SIZE: u32 = 60;

    /// Takes the bytes apart.
    pub fn parse(bytes: &[u8]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Self {
            capacity: u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            size_max: u32_at(8),
            seg_max: u32_at(12),
            blk_size: u32_at(20),
            physical_block_exp: bytes[24],
            alignment_offset: bytes[25],
            min_io_size: u16_at(26),
            opt_io_size: u32_at(28),
            writeback: bytes[32],
            num_queues: u16_at(34),
            max_discard_sectors: u32_at(36),
            max_discard_seg: u32_at(40),
            discard_sector_alignment: u32_at(44),
            max_write_zeroes_sectors: u32_at(48),
            max_write_zeroes_seg: u32_at(52),
            write_zeroes_may_unmap: bytes[56],
        }
    }
}
