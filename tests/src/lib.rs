//! Harness shared by the tests: processes that end with the test, two drivers for the backend, a console for guests.
//!
//! * [`Serve`] starts the real backend with a disk image in a temporary folder and waits until it listens.
//! * [`Driver`] is an ordinary driver (the `virtio-driver` crate): reads, writes, flushes, with a queue depth.
//! * [`raw::RawGuest`] owns every byte: messages, guest memory and ring entries, for what no honest driver sends.
//! * [`Polite`] is a guest that reads and writes all the time while another one misbehaves.
//! * [`recorder::Recorder`] drives several raw guests at random, [`history::History`] checks what they saw.
//! * [`crash_log`] makes the disks that a host crash could leave from the log of `serve --record`;
//!   [`guest_disk`] is the store's view of the disk through a driver.
//! * [`FaultDisk`] is a disk whose operations can be held or fail, and which knows what was synced.
//! * [`Mounted`] is `receipt mount` on a store in a file.
//! * [`GuestFile`] is a guest's disk as a file of this host, for programs on it, such as a [`Gateway`]; [`Client`] talks to one.
//! * [`Ctl`] is the operator.
//! * [`Guest`] is a QEMU guest driven over its serial console, [`qtest::Machine`] a QEMU whose driver is the test itself.
//!
//! Everything waits for a condition; [`SAFETY_NET`] only turns a hang into a failure.

mod backend;
mod bins;
#[path = "../../guest-driver/tests/support/child.rs"]
mod child;
#[path = "../../guest-driver/tests/gateway/client.rs"]
mod client;
pub mod crash_log;
mod ctl;
mod disk;
mod driver;
mod fault_disk;
mod fault_stand;
mod fuse;
mod gateway;
mod guest;
pub mod guest_disk;
mod guest_file;
pub mod guest_root;
pub mod history;
mod loop_device;
mod mounted;
mod polite;
mod proc;
mod qmp;
pub mod qtest;
pub mod raw;
pub mod recorder;
pub mod rng;
mod seccomp;
mod stand;
mod storage_daemon;
mod wait;

pub use backend::{Backend, Serve};
pub use bins::{
    backend_binary, exercise_binary, gateway_binary, kexec_binary, pauses_binary, receipt_binary,
    receipt_mount_binary, repository, static_binary, static_gateway_binary, static_mount_binary,
    static_receipt_binary,
};
pub use child::die_with_parent;
pub use client::{Answer, Client};
pub use ctl::Ctl;
pub use disk::{Scratch, pattern};
pub use driver::Driver;
pub use fault_disk::{DiskOp, FaultDisk, SmallTmpfs};
pub use fault_stand::FaultStand;
pub use gateway::Gateway;
pub use guest::{Guest, GuestImage, Output, free_port};
pub use guest_file::GuestFile;
pub use loop_device::{FileSystem, LoopDevice};
pub use mounted::Mounted;
pub use polite::Polite;
pub use proc::{Exit, Proc};
pub use qmp::Qmp;
pub use stand::Stand;
pub use storage_daemon::StorageDaemon;
pub use wait::{SAFETY_NET, listening, readable, until};

/// Bytes in the sector that virtio-blk counts in, whatever the logical block size is.
pub const SECTOR: usize = 512;
