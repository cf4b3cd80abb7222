//! One front end's connection: what it has negotiated, its memory and its rings.
//!
//! Invariants:
//! 1. A ring runs (is with the worker) only while it has a size, addresses inside the memory table, a
//!    kick descriptor, and is enabled; nothing about it changes while it runs but its call descriptor.
//! 2. Memory is unmapped only after every ring that could use it has stopped.
//! 3. When a session ends, all its rings have stopped.

mod handover;
mod rings;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use thiserror::Error;
use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};

use self::rings::RingSetup;
use crate::config_space::{
    CONFIG_SPACE_BYTES, config_part, config_space, offered_features, offered_protocol_features,
};
use crate::gate::Mailbox;
use crate::inflight::{InflightError, Region};
use crate::limits::MAX_MEM_SLOTS;
use crate::memory::{Mem, MemoryError, MemoryTable, is_out_of_resources};
use crate::message::Message;
use crate::role::Role;
use crate::shared::Shared;

/// Why a message was not carried out.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum SessionError {
    #[error("feature bits {0:#x} were not offered")]
    NotOffered(u64),
    #[error("ring {0} is beyond the {1} offered")]
    NoSuchRing(u32, usize),
    #[error("ring size {0} is not a power of two up to {1}")]
    BadRingSize(u32, u16),
    #[error("ring index {0} is beyond 65535")]
    BadRingBase(u32),
    #[error("ring addresses are outside guest memory, misaligned or logged")]
    BadRingAddress,
    #[error(
        "no guest memory is shared; QEMU needs -object memory-backend-memfd,share=on and -machine memory-backend="
    )]
    NoMemory,
    #[error("ring enable of {0}")]
    BadEnable(u32),
    #[error("ring {0} without a kick descriptor to wait on")]
    NoKick(u32),
    #[error("the configuration space cannot be written")]
    ConfigReadOnly,
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("ring {index}: {error}")]
    Start { index: usize, error: io::Error },
    #[error("kick or call descriptor is not an eventfd")]
    NotAnEventfd,
    #[error("the descriptor for messages to the front end is not a socket")]
    NotASocket,
    #[error("descriptor cannot be used: {0}")]
    Descriptor(io::Error),
    #[error(transparent)]
    Inflight(#[from] InflightError),
    #[error("the guest's worker has ended")]
    NoWorker,
    #[error("what another process has told of it does not fit together")]
    BadHandover,
}

impl SessionError {
    /// Whether only the front end can have brought this about, in a session that another process has run with the same offer: it
    /// has changed the files that it shares. The others need not wait for it.
    #[must_use]
    pub fn is_the_front_ends(&self) -> bool {
        match self {
            Self::Memory(MemoryError::Map(error)) | Self::Inflight(InflightError::Map(error)) => {
                !is_out_of_resources(error)
            }
            Self::Memory(MemoryError::BeyondFile { .. })
            | Self::Inflight(
                InflightError::TooSmall { .. }
                | InflightError::OtherLayout { .. }
                | InflightError::OtherRing(_),
            ) => true,
            _ => false,
        }
    }
}

/// What to answer.
#[derive(Debug)]
pub enum Reply {
    /// Nothing, unless the front end asked for an acknowledgement.
    None,
    /// These bytes as the body.
    Body(Vec<u8>),
    /// These bytes and a descriptor.
    BodyAndFd(Vec<u8>, OwnedFd),
}

/// The device that a session offers.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// What the guest may do.
    pub role: Role,
    /// Virtqueues.
    pub queues: u16,
    /// Descriptors in each at most.
    pub queue_size: u16,
}

/// See the module.
pub struct Session {
    shared: Arc<Shared>,
    worker: usize,
    offer: Offer,
    is_owned: bool,
    features: u64,
    protocol_features: u64,
    memory: MemoryTable,
    mem: Option<Arc<Mem>>,
    rings: Vec<RingSetup>,
    /// Where requests in flight are kept, once the front end has said so.
    inflight: Option<Arc<Region>>,
    /// Rings that had requests in flight then and have not run since.
    unrecovered: Vec<usize>,
    /// Size of the disk as the front end has read it, or was told to.
    known_capacity_bytes: Option<u64>,
    /// Rings that ran before this session was given away.
    paused: Vec<usize>,
}

impl Session {
    /// A session that has negotiated nothing yet, with its rings run by `worker`.
    #[must_use]
    pub fn new(shared: Arc<Shared>, worker: usize, offer: Offer) -> Self {
        let rings = (0..offer.queues).map(|_| RingSetup::default()).collect();
        Self {
            shared,
            worker,
            offer,
            is_owned: false,
            features: 0,
            protocol_features: 0,
            memory: MemoryTable::default(),
            mem: None,
            rings,
            inflight: None,
            unrecovered: Vec::new(),
            known_capacity_bytes: None,
            paused: Vec::new(),
        }
    }

    /// Whether the front end has got through the first part of its handshake, SET_OWNER.
    #[must_use]
    pub fn is_owned(&self) -> bool {
        self.is_owned
    }

    /// Whether the front end may ask for acknowledgements.
    #[must_use]
    pub fn acknowledges(&self) -> bool {
        self.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Carries out one message.
    ///
    /// # Errors
    /// See [`SessionError`]; a ring that the message was about is then stopped.
    pub fn apply(&mut self, message: Message) -> Result<Reply, SessionError> {
        match message {
            Message::GetFeatures => Ok(Reply::number(offered_features(self.offer.role))),
            Message::SetFeatures(bits) => self.set_features(bits),
            Message::GetProtocolFeatures => Ok(Reply::number(offered_protocol_features().bits())),
            Message::SetProtocolFeatures(bits) => self.set_protocol_features(bits),
            Message::SetOwner => {
                self.is_owned = true;
                Ok(Reply::None)
            }
            Message::SetVringErr => Ok(Reply::None),
            Message::ResetOwner => self.reset(),
            Message::GetQueueNum => Ok(Reply::number(u64::from(self.offer.queues))),
            Message::GetMaxMemSlots => Ok(Reply::number(MAX_MEM_SLOTS as u64)),
            Message::SetMemTable(regions) => {
                let table = MemoryTable::new(regions)?;
                self.change_memory(|memory| {
                    *memory = table;
                    Ok(())
                })
            }
            Message::AddMemRegion(region, fd) => self.change_memory(|memory| memory.add(&region, fd)),
            Message::RemoveMemRegion(region) => self.change_memory(|memory| memory.remove(&region)),
            Message::SetVringNum(state) => self.set_ring_size(state),
            Message::SetVringAddr(addresses) => self.set_ring_addresses(addresses),
            Message::SetVringBase(state) => self.set_ring_base(state),
            Message::GetVringBase(state) => self.get_ring_base(state),
            Message::SetVringKick(ring) => self.set_ring_kick(ring),
            Message::SetVringCall(ring) => self.set_ring_call(ring),
            Message::SetVringEnable(state) => self.enable_ring(state),
            Message::SetBackendReqFd(fd) => {
                let is_set = self.shared.channels.set(self.worker, Some(fd));
                is_set.then_some(Reply::None).ok_or(SessionError::NotASocket)
            }
            Message::GetConfig(config) => Ok(self.get_config(config.offset, config.size, config.flags)),
            Message::SetConfig => Err(SessionError::ConfigReadOnly),
            Message::GetInflightFd(wanted) => self.get_inflight_fd(wanted),
            Message::SetInflightFd(region, fd) => self.set_inflight_fd(region, fd),
        }
    }

    /// Ends the session: stops all rings. With `abandon` nothing more is published to a front end that will ask again
    /// for what was in flight; one that leaves this to an in-flight region finds there what was not done.
    pub fn end(mut self, abandon: bool) {
        let abandon = abandon && self.inflight.is_none();
        // The only error is that the worker has ended, and its rings with it.
        let _ = self.stop_rings(abandon);
        let _ = self.shared.channels.set(self.worker, None);
    }

    fn set_features(&mut self, bits: u64) -> Result<Reply, SessionError> {
        let unknown = bits & !offered_features(self.offer.role);
        if unknown != 0 {
            return Err(SessionError::NotOffered(unknown));
        }
        self.features = bits;
        // Without protocol features there is no SET_VRING_ENABLE: rings are enabled from the start.
        if bits & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        Ok(Reply::None)
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<Reply, SessionError> {
        let unknown = bits & !offered_protocol_features().bits();
        if unknown != 0 {
            return Err(SessionError::NotOffered(unknown));
        }
        self.protocol_features = bits;
        Ok(Reply::None)
    }

    /// RESET_OWNER, which the specification has reduced to "disable all rings".
    fn reset(&mut self) -> Result<Reply, SessionError> {
        self.stop_rings(false)?;
        self.rings.iter_mut().for_each(|ring| ring.enabled = false);
        Ok(Reply::None)
    }

    /// Changes the memory table while no ring runs, and runs again those that still can.
    fn change_memory(
        &mut self,
        change: impl FnOnce(&mut MemoryTable) -> Result<(), MemoryError>,
    ) -> Result<Reply, SessionError> {
        let ran = self.stop_rings(false)?;
        let changed = change(&mut self.memory).and_then(|()| self.memory.mem());
        if let Ok(mem) = &changed {
            self.mem.clone_from(mem);
        }
        let restarted: Vec<_> = ran.into_iter().map(|index| self.start_ring_if_ready(index)).collect();
        changed?;
        restarted.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(Reply::None)
    }

    /// An empty answer says that the space has no such part.
    fn get_config(&mut self, offset: u32, len: u32, flags: u32) -> Reply {
        self.known_capacity_bytes = Some(self.shared.disk.image().capacity_bytes());
        let space: [u8; CONFIG_SPACE_BYTES] = config_space(&self.shared.disk, self.offer.queues);
        let Some(part) = config_part(&space, offset, len) else {
            log::debug!("event=bad-get-config offset_bytes={offset} len_bytes={len}");
            return Reply::Body(Vec::new());
        };
        let head = [offset, len, flags];
        Reply::Body(head.iter().flat_map(|word| word.to_le_bytes()).chain(part.iter().copied()).collect())
    }

    /// A front end that comes back does not ask for the size again, although the disk may have grown meanwhile.
    fn tell_new_capacity(&mut self) {
        let capacity = Some(self.shared.disk.image().capacity_bytes());
        if self.known_capacity_bytes != capacity {
            self.known_capacity_bytes = capacity;
            self.shared.channels.tell_config_change(self.worker);
        }
    }

    fn mailbox(&self) -> &Mailbox {
        self.shared.mailbox(self.worker)
    }
}

impl Reply {
    fn number(value: u64) -> Self {
        Self::Body(value.to_le_bytes().to_vec())
    }
}
