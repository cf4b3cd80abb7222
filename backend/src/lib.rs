//! Host side of receiptdisk: one disk image, served to several QEMU guests in one order.
//!
//! A request goes one way through these modules:
//!
//! ```text
//! kick -> vring (take) -> chain (walk) -> request (parse) -> execute (what does it need)
//!      -> order (admit: now, or parked as data) -> engine (io_uring or sync) / syncer (slow operations)
//!      -> worker (finish) -> vring (publish, signal) -> order (release)
//! ```
//!
//! and a front end's messages through these: `socket -> guest -> wire -> message -> session -> worker`.
//!
//! What guests may rely on (docs/architecture.md says how it is kept):
//! a read that starts after a write has completed returns that write or a later one, whichever
//! guests they are; overlapping requests never interleave; overlapping writes are applied in the
//! order of their admission; a completed flush covers every write completed before it was asked for; a guest
//! that may not write gets an error and changes nothing; a short or failed IO is never a success.

mod activation;
pub mod args;
mod chain;
mod channel;
mod config_space;
mod connections;
mod control;
mod crash;
pub mod ctl;
mod description;
mod dirty;
mod disk;
mod engine;
pub mod error;
mod execute;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gate;
mod group;
mod guest;
mod guest_args;
mod handover;
mod house;
mod image;
mod inflight;
mod interrupt;
pub mod limits;
mod lock;
mod log_limit;
mod memory;
mod message;
mod operator;
pub mod order;
mod places;
mod poll;
mod record;
mod recovery;
mod request;
mod role;
mod sandbox;
mod seals;
pub mod server;
mod session;
mod shared;
mod sigbus;
mod socket;
mod state;
mod stats;
mod syncer;
mod throttle;
mod transfer;
mod values;
mod vring;
mod wire;
mod worker;
