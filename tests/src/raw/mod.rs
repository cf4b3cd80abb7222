//! A vhost-user front end and virtio driver of which the test owns every byte.
//!
//! ```no_run
//! # use receiptdisk_tests::raw::{RawGuest, Request};
//! # let socket = std::path::Path::new("guest.sock");
//! let mut guest = RawGuest::connect(socket);
//! guest.start_queues(2);
//! let outcome = guest.request(&Request::read(0, 4096).cut_readable(&[8, 8]).indirect());
//! assert_eq!(outcome.status, 0);
//! ```
//!
//! [`Wire`] sends messages (or parts of them, or nonsense), [`Memory`] is the guest's, [`Ring`] a split ring, [`Request`]
//! a request and the way it is cut into descriptors, [`RawGuest`] all of them together.

mod config;
mod front;
mod guest;
pub mod inflight;
mod memory;
mod request;
mod ring;
mod wire;

pub use config::Config;
pub use front::{Front, mem_table};
pub use guest::{Buffer, Outcome, RawGuest, Setup};
pub use inflight::Inflight;
pub use memory::{GUEST_BASE, Memory, Region};
pub use request::{Request, SegmentFlags, kind, status};
pub use ring::{Desc, Ring, desc_flags};
pub use wire::{Message, Wire, code, flags};

/// Feature bits of virtio and of virtio-blk.
pub mod feature {
    /// Longest segment is in the configuration space.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// Most segments of a request are in the configuration space.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk cannot be written.
    pub const RO: u64 = 1 << 5;
    /// The logical block size is in the configuration space.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// There is a FLUSH request.
    pub const FLUSH: u64 = 1 << 9;
    /// Physical block and optimal sizes are in the configuration space.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The driver may switch the write cache.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// There are several queues.
    pub const MQ: u64 = 1 << 12;
    /// There is a DISCARD request.
    pub const DISCARD: u64 = 1 << 13;
    /// There is a WRITE_ZEROES request.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// Descriptors may stand in a table of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are asked for by ring index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user: there are protocol features.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Virtio 1.x.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Protocol feature bits of vhost-user.
pub mod protocol {
    /// Several queues.
    pub const MQ: u64 = 1 << 0;
    /// Every message may ask for an acknowledgement.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// SET_BACKEND_REQ_FD.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// GET_CONFIG and SET_CONFIG.
    pub const CONFIG: u64 = 1 << 9;
    /// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// ADD_MEM_REG and REM_MEM_REG.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}
