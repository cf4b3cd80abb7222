//! What the device says of itself: feature bits and `struct virtio_blk_config` (virtio 1.2, 5.2.3 and 5.2.4).

use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::disk::Disk;
use crate::limits::{MAX_ERASE_SECTORS, MAX_ERASE_SEGMENTS, SECTOR_BYTES, SEG_MAX, SIZE_MAX_BYTES};
use crate::role::Role;

/// Bytes a front end may read: the structure and zeroes after it.
pub const CONFIG_SPACE_BYTES: usize = 256;

/// Offset at which Cloud Hypervisor up to version 46 asks for the space.
const OLD_CONFIG_OFFSET: u32 = 0x100;

/// Physical block and best small request, in bytes: the page and block size of common file systems.
const PHYSICAL_BLOCK_BYTES: u32 = 4096;

/// Best large request, in bytes.
const OPTIMAL_IO_BYTES: u32 = 64 * 1024;

/// virtio feature bits offered to a guest. CONFIG_WCE is not among them: a guest's choice would be
/// lost with a restart of the backend.
#[must_use]
pub fn offered_features(role: Role) -> u64 {
    let mut bits = vec![
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
    ];
    if role.looks_writable() {
        bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
    } else {
        bits.push(VIRTIO_BLK_F_RO);
    }
    bits.iter().fold(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(), |features, bit| features | 1 << bit)
}

/// vhost-user protocol feature bits offered.
#[must_use]
pub fn offered_protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::BACKEND_REQ
}

/// The configuration space of a device with `queues` virtqueues on `disk`.
#[must_use]
pub fn config_space(disk: &Disk, queues: u16) -> [u8; CONFIG_SPACE_BYTES] {
    let block = disk.image().logical_block_bytes();
    let physical = block.max(PHYSICAL_BLOCK_BYTES);
    let sectors = |bytes: u32| bytes / u32::try_from(SECTOR_BYTES).unwrap_or(512);
    let blocks = |bytes: u32| bytes / block;

    let mut space = Space { bytes: [0; CONFIG_SPACE_BYTES], at: 0 };
    space.put(&(disk.image().capacity_bytes() / SECTOR_BYTES).to_le_bytes()); // 0 capacity
    space.put(&SIZE_MAX_BYTES.to_le_bytes()); // 8 size_max
    space.put(&SEG_MAX.to_le_bytes()); // 12 seg_max
    space.put(&[0; 4]); // 16 geometry: not offered
    space.put(&block.to_le_bytes()); // 20 blk_size
    space.put(&[physical.checked_div(block).map_or(0, u32::ilog2).to_le_bytes()[0]]); // 24 physical_block_exp
    space.put(&[0]); // 25 alignment_offset
    space.put(&blocks(physical).to_le_bytes()[..2]); // 26 min_io_size
    space.put(&blocks(OPTIMAL_IO_BYTES).to_le_bytes()); // 28 opt_io_size
    space.put(&[1]); // 32 writeback
    space.put(&[0]); // 33 unused
    space.put(&queues.to_le_bytes()); // 34 num_queues
    space.put(&MAX_ERASE_SECTORS.to_le_bytes()); // 36 max_discard_sectors
    space.put(&MAX_ERASE_SEGMENTS.to_le_bytes()); // 40 max_discard_seg
    space.put(&sectors(physical).to_le_bytes()); // 44 discard_sector_alignment
    space.put(&MAX_ERASE_SECTORS.to_le_bytes()); // 48 max_write_zeroes_sectors
    space.put(&MAX_ERASE_SEGMENTS.to_le_bytes()); // 52 max_write_zeroes_seg
    space.put(&[u8::from(disk.unmaps())]); // 56 write_zeroes_may_unmap
    space.bytes
}

/// The part of `space` that a GET_CONFIG asks for; `None` when it reaches past the end.
#[must_use]
pub fn config_part(space: &[u8; CONFIG_SPACE_BYTES], offset: u32, len: u32) -> Option<&[u8]> {
    let start = usize::try_from(offset.checked_sub(OLD_CONFIG_OFFSET).unwrap_or(offset)).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    space.get(start..end).filter(|part| !part.is_empty())
}

struct Space {
    bytes: [u8; CONFIG_SPACE_BYTES],
    at: usize,
}

impl Space {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}
