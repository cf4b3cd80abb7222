//! One front end's connection: what it has negotiated, its memory and its rings.
//!
//! Invariants:
//! 1. A ring runs (is with the worker) only while it has a size, addresses inside the memory table, a
//!    kick descriptor, and is enabled; nothing about it changes while it runs but its call descriptor.
//! 2. Memory is unmapped only after every ring that could use it has stopped.
//! 3. When a session ends, all its rings have stopped.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use thiserror::Error;
use vhost::vhost_user::message::{VhostUserVringAddr, VhostUserVringState};
use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::config_space::{
    CONFIG_SPACE_BYTES, config_part, config_space, offered_features, offered_protocol_features,
};
use crate::gate::Mailbox;
use crate::limits::MAX_MEM_SLOTS;
use crate::memory::{Mem, MemoryError, MemoryTable};
use crate::message::{Message, VringFd};
use crate::role::Role;
use crate::shared::Shared;
use crate::vring::Vring;
use crate::worker::Mail;

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
    #[error("descriptor cannot be used: {0}")]
    Descriptor(io::Error),
    #[error("the guest's worker has ended")]
    NoWorker,
}

/// What to answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing, unless the front end asked for an acknowledgement.
    None,
    /// These bytes as the body.
    Body(Vec<u8>),
}

/// A ring as the front end has described it.
#[derive(Default)]
struct RingSetup {
    size: u16,
    addresses: Option<VhostUserVringAddr>,
    next_avail: u16,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    enabled: bool,
    running: bool,
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
            Message::GetConfig(config) => Ok(self.get_config(config.offset, config.size, config.flags)),
            Message::SetConfig => Err(SessionError::ConfigReadOnly),
        }
    }

    /// Ends the session: stops all rings. With `abandon` nothing more is published to the front end.
    pub fn end(mut self, abandon: bool) {
        // The only error is that the worker has ended, and its rings with it.
        let _ = self.stop_rings(abandon);
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

    fn set_ring_size(&mut self, state: VhostUserVringState) -> Result<Reply, SessionError> {
        let VhostUserVringState { index, num } = state;
        let most = self.offer.queue_size;
        let size = u16::try_from(num).ok().filter(|size| size.is_power_of_two() && *size <= most);
        let size = size.ok_or(SessionError::BadRingSize(num, most))?;
        self.stopped_ring(index)?.size = size;
        self.start_ring_if_ready(self.ring_index(index)?)?;
        Ok(Reply::None)
    }

    fn set_ring_addresses(&mut self, addresses: VhostUserVringAddr) -> Result<Reply, SessionError> {
        let VhostUserVringAddr { index, flags, .. } = addresses;
        if flags != 0 {
            return Err(SessionError::BadRingAddress);
        }
        let at = self.ring_index(index)?;
        self.stop_ring(at)?;
        let before = self.rings[at].addresses.replace(addresses);
        if self.rings[at].size != 0
            && let Err(error) = self.build_queue(at)
        {
            self.rings[at].addresses = before;
            return Err(error);
        }
        self.start_ring_if_ready(at)?;
        Ok(Reply::None)
    }

    fn set_ring_base(&mut self, state: VhostUserVringState) -> Result<Reply, SessionError> {
        let VhostUserVringState { index, num } = state;
        let next_avail = u16::try_from(num).map_err(|_| SessionError::BadRingBase(num))?;
        self.stopped_ring(index)?.next_avail = next_avail;
        self.start_ring_if_ready(self.ring_index(index)?)?;
        Ok(Reply::None)
    }

    fn get_ring_base(&mut self, state: VhostUserVringState) -> Result<Reply, SessionError> {
        let index = state.index;
        let ring = self.stopped_ring(index)?;
        ring.kick = None;
        let words = [index, u32::from(ring.next_avail)];
        Ok(Reply::Body(words.iter().flat_map(|word| word.to_le_bytes()).collect()))
    }

    fn set_ring_kick(&mut self, VringFd { index, fd }: VringFd) -> Result<Reply, SessionError> {
        let fd = fd.ok_or(SessionError::NoKick(index))?;
        check_eventfd(&fd)?;
        self.stopped_ring(index)?.kick = Some(fd);
        self.start_ring_if_ready(self.ring_index(index)?)?;
        Ok(Reply::None)
    }

    fn set_ring_call(&mut self, VringFd { index, fd }: VringFd) -> Result<Reply, SessionError> {
        if let Some(call) = &fd {
            check_eventfd(call)?;
            set_nonblocking(call).map_err(SessionError::Descriptor)?;
        }
        let at = self.ring_index(index)?;
        if self.rings[at].running {
            let (reply, answer) = mpsc::channel();
            self.mailbox().send(Mail::SetCall { index: at, call: fd, reply });
            answer.recv().map_err(|_| SessionError::NoWorker)?;
        } else {
            self.rings[at].call = fd;
        }
        Ok(Reply::None)
    }

    fn enable_ring(&mut self, state: VhostUserVringState) -> Result<Reply, SessionError> {
        let VhostUserVringState { index, num } = state;
        let at = self.ring_index(index)?;
        match num {
            0 => {
                self.stop_ring(at)?;
                self.rings[at].enabled = false;
            }
            1 => {
                self.rings[at].enabled = true;
                self.start_ring_if_ready(at)?;
            }
            _ => return Err(SessionError::BadEnable(num)),
        }
        Ok(Reply::None)
    }

    /// An empty answer says that the space has no such part.
    fn get_config(&self, offset: u32, len: u32, flags: u32) -> Reply {
        let space: [u8; CONFIG_SPACE_BYTES] = config_space(&self.shared.disk, self.offer.queues);
        let Some(part) = config_part(&space, offset, len) else {
            log::debug!("event=bad-get-config offset_bytes={offset} len_bytes={len}");
            return Reply::Body(Vec::new());
        };
        let head = [offset, len, flags];
        Reply::Body(head.iter().flat_map(|word| word.to_le_bytes()).chain(part.iter().copied()).collect())
    }

    fn ring_index(&self, index: u32) -> Result<usize, SessionError> {
        let count = self.rings.len();
        usize::try_from(index).ok().filter(|at| *at < count).ok_or(SessionError::NoSuchRing(index, count))
    }

    /// The ring at `index`, stopped so that it can be changed.
    fn stopped_ring(&mut self, index: u32) -> Result<&mut RingSetup, SessionError> {
        let at = self.ring_index(index)?;
        self.stop_ring(at)?;
        Ok(&mut self.rings[at])
    }

    fn start_ring_if_ready(&mut self, at: usize) -> Result<(), SessionError> {
        let ring = &self.rings[at];
        if ring.running || !ring.enabled || ring.kick.is_none() || ring.addresses.is_none() || ring.size == 0
        {
            return Ok(());
        }
        let Some(mem) = self.mem.clone() else {
            return Err(SessionError::NoMemory);
        };
        let queue = self.build_queue(at)?;
        let ring = &mut self.rings[at];
        let Some(kick) = ring.kick.take() else {
            return Ok(());
        };
        let vring = Box::new(Vring::new(queue, mem, kick, ring.call.take(), self.features));
        let (reply, answer) = mpsc::channel();
        self.mailbox().send(Mail::Start { index: at, vring, features: self.features, reply });
        if let Err((error, vring)) = answer.recv().map_err(|_| SessionError::NoWorker)? {
            let (_, kick, call) = vring.into_parts();
            (self.rings[at].kick, self.rings[at].call) = (Some(kick), call);
            return Err(SessionError::Start { index: at, error });
        }
        self.rings[at].running = true;
        Ok(())
    }

    /// The queue as the front end has described it, checked against the memory.
    fn build_queue(&self, at: usize) -> Result<Queue, SessionError> {
        let ring = &self.rings[at];
        let mem = self.mem.as_ref().ok_or(SessionError::NoMemory)?;
        let addresses = ring.addresses.as_ref().ok_or(SessionError::BadRingAddress)?;
        let translate = |user_addr| self.memory.guest_address(user_addr).ok_or(SessionError::BadRingAddress);
        let [descriptors, available, used] =
            [addresses.descriptor, addresses.available, addresses.used].map(translate);
        let bad = |_| SessionError::BadRingAddress;
        let mut queue = Queue::new(self.offer.queue_size).map_err(bad)?;
        queue.try_set_size(ring.size).map_err(bad)?;
        let place: [GuestAddress; 3] = [descriptors?, available?, used?];
        queue.try_set_desc_table_address(place[0]).map_err(bad)?;
        queue.try_set_avail_ring_address(place[1]).map_err(bad)?;
        queue.try_set_used_ring_address(place[2]).map_err(bad)?;
        queue.set_ready(true);
        if !queue.is_valid(&**mem) {
            return Err(SessionError::BadRingAddress);
        }
        queue.set_event_idx(self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        queue.set_next_avail(ring.next_avail);
        let used_idx = queue.used_idx(&**mem, std::sync::atomic::Ordering::Acquire).map_err(bad)?;
        queue.set_next_used(used_idx.0);
        Ok(queue)
    }

    /// Stops the ring if it runs; returns once its last request has ended.
    fn stop_ring(&mut self, at: usize) -> Result<(), SessionError> {
        if !self.rings[at].running {
            return Ok(());
        }
        let answer = self.ask_to_stop(at, false);
        self.take_stopped(at, &answer)
    }

    /// Stops all rings at once and returns the indices of those that ran.
    fn stop_rings(&mut self, abandon: bool) -> Result<Vec<usize>, SessionError> {
        let ran: Vec<usize> = (0..self.rings.len()).filter(|&at| self.rings[at].running).collect();
        let answers: Vec<_> = ran.iter().map(|&at| self.ask_to_stop(at, abandon)).collect();
        for (&at, answer) in ran.iter().zip(&answers) {
            self.take_stopped(at, answer)?;
        }
        Ok(ran)
    }

    fn ask_to_stop(&self, at: usize, abandon: bool) -> Receiver<Box<Vring>> {
        let (reply, answer) = mpsc::channel();
        self.mailbox().send(Mail::Stop { index: at, abandon, reply });
        answer
    }

    fn take_stopped(&mut self, at: usize, answer: &Receiver<Box<Vring>>) -> Result<(), SessionError> {
        let vring = answer.recv().map_err(|_| SessionError::NoWorker)?;
        let (next_avail, kick, call) = vring.into_parts();
        let ring = &mut self.rings[at];
        (ring.running, ring.next_avail, ring.kick, ring.call) = (false, next_avail, Some(kick), call);
        Ok(())
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

/// Anything else might block the worker when it is watched or written to.
fn check_eventfd(fd: &OwnedFd) -> Result<(), SessionError> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let target = link.map_err(SessionError::Descriptor)?;
    if target.as_os_str() == "anon_inode:[eventfd]" { Ok(()) } else { Err(SessionError::NotAnEventfd) }
}

/// The descriptor is the front end's: a full counter must not block the worker.
fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
