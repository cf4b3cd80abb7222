//! `serve --replace`: a running process gives everything to a new one, and guests only pause (docs/operations.md).
//!
//! ```text
//! new -> old   {"command":"replace","protocol":1}          over the control socket
//! old -> new   {"ok":true,"result":null}                   or an error: then nothing happens
//! old -> new   Offer, with the image and the sockets       guests go on; no command of an operator is carried out
//! new -> old   Ready                                       the new process has made all it needs
//!              the old one hears no front end, takes no request, and waits for those in flight
//! old -> new   Given, with memory, rings and connections of all guests
//!              the new one maps and checks them, but writes nothing there
//! new -> old   Taken
//! ```
//!
//! Invariants:
//! 1. At no moment do both take requests: the new process begins after `Taken` has left it, and the old one goes on only
//!    if no `Taken` has come and none can come any more.
//! 2. Until then the old process can go on as if nothing had happened, whatever becomes of the new one; the new one
//!    changes nothing but what is its own: no byte of a guest's memory or in-flight region. It has all its threads by then, so
//!    that nothing but a kill can keep it from serving afterwards.
//! 3. No request is in flight while rings change hands, so there is no order to hand over. What the front ends keep as in
//!    flight is what nobody has begun.
//!
//! A field that a later version adds is optional (`#[serde(default)]`); what an older one must not miss raises
//! [`PROTOCOL`].

mod give;
mod link;
mod take;

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

pub use self::give::Giver;
pub use self::take::Takeover;
use crate::role::Role;
use crate::state::State;

/// Version of the conversation.
pub const PROTOCOL: u32 = 1;

/// Number of a descriptor among those that come with a guest.
pub type FdIndex = usize;

/// What the new process gets while guests still run. Descriptors: the image's reader, its writer if there is one, the
/// control socket, then a socket for each guest that is listened for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Offer {
    /// Version of the old program, for the log.
    pub version: String,
    /// Bytes of the disk; the file may be longer.
    pub capacity_bytes: u64,
    /// Whether any guest may ever write.
    pub is_writable: bool,
    /// Whether the image was opened for direct IO.
    pub is_direct: bool,
    /// Where decisions are kept.
    pub state_file: String,
    /// The decisions.
    pub state: State,
    /// The socket over which all this goes.
    pub control: ListenerState,
    /// All guests.
    pub guests: Vec<OfferedGuest>,
    /// Where a supervisor hears which process is the main one. It tells only the process that it has started itself.
    #[serde(default)]
    pub supervisor: Option<String>,
}

/// A guest as the old process was told to serve it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedGuest {
    /// Its name.
    pub name: String,
    /// What it was told that it may do.
    pub access: Role,
    /// Where its connections come from.
    pub endpoint: String,
    /// The socket that is listened on, if any.
    pub listener: Option<ListenerState>,
}

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerState {
    /// Number of its file, if that goes away with the process.
    pub inode: Option<u64>,
}

/// The new process has made all it needs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ready {}

/// All guests, in the order of the offer. Their descriptors come in this order, too.
#[derive(Debug, Serialize, Deserialize)]
pub struct Given {
    /// Whether writes are refused because a sync has failed.
    pub is_poisoned: bool,
    /// The guests.
    pub guests: Vec<GivenGuest>,
}

/// A guest and how many descriptors come with it.
#[derive(Debug, Serialize, Deserialize)]
pub struct GivenGuest {
    /// Its connection, if it has one.
    pub session: Option<SessionState>,
    /// Descriptors of it.
    pub fds: usize,
}

/// The new process takes requests from now on.
#[derive(Debug, Serialize, Deserialize)]
pub struct Taken {}

/// A connection, what it has negotiated, its memory and its rings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionState {
    /// The connection.
    pub stream: FdIndex,
    /// The way back to the front end.
    pub channel: Option<FdIndex>,
    /// Whether the first part of the handshake is over.
    pub is_owned: bool,
    /// Feature bits that the driver accepted.
    pub features: u64,
    /// Feature bits that the front end accepted.
    pub protocol_features: u64,
    /// Size of the disk as the front end knows it, in bytes.
    pub known_capacity_bytes: Option<u64>,
    /// Memory of the guest.
    pub memory: Vec<RegionState>,
    /// Where requests in flight are kept.
    pub inflight: Option<InflightState>,
    /// The rings.
    pub rings: Vec<RingState>,
}

/// A region of guest memory; addresses and sizes in bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RegionState {
    pub fd: FdIndex,
    pub guest_addr: u64,
    pub user_addr: u64,
    pub size_bytes: u64,
    pub offset_bytes: u64,
}

/// A region that keeps requests in flight.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct InflightState {
    pub fd: FdIndex,
    pub offset_bytes: u64,
    pub queues: u16,
    pub queue_size: u16,
}

/// A ring. Its used index is in guest memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RingState {
    /// Entries; 0 if it has none yet.
    pub size: u16,
    /// Descriptor table, available ring, used ring: addresses in the front end's process.
    pub addresses: Option<[u64; 3]>,
    /// Position in the available ring from which to go on.
    pub next_avail: u16,
    /// Descriptor that the guest kicks.
    pub kick: Option<FdIndex>,
    /// Descriptor that signals the guest.
    pub call: Option<FdIndex>,
    /// Whether the front end has enabled it.
    pub is_enabled: bool,
    /// Whether it ran.
    pub ran: bool,
}

/// A connection and its descriptors.
#[derive(Debug)]
pub struct GivenSession {
    /// What is told of it.
    pub state: SessionState,
    /// What its [`FdIndex`]es count.
    pub fds: Vec<OwnedFd>,
}
