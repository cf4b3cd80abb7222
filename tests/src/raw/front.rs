//! The conversation of a front end: each call sends one message and checks its answer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::config::Config;
use super::memory::{Memory, Region};
use super::ring::Ring;
use super::wire::{Message, Wire, code, flags};
use super::{feature, protocol};

/// A front end past its first messages.
#[derive(Debug)]
pub struct Front {
    wire: Wire,
    features: u64,
    protocol_features: u64,
}

impl Front {
    /// Runs the early handshake in QEMU's order: features, protocol features, owner.
    ///
    /// # Errors
    /// When the backend hangs up in between.
    pub fn greet(wire: Wire) -> io::Result<Self> {
        let mut front = Self { wire, features: 0, protocol_features: 0 };
        front.features = front.get(code::GET_FEATURES)?;
        assert_ne!(front.features & feature::PROTOCOL_FEATURES, 0, "no protocol features");
        front.protocol_features = front.get(code::GET_PROTOCOL_FEATURES)?;
        let known = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::CONFIGURE_MEM_SLOTS;
        let accepted = front.protocol_features & (known | protocol::INFLIGHT_SHMFD | protocol::BACKEND_REQ);
        front.wire.send(&Message::u64(code::SET_PROTOCOL_FEATURES, accepted), &[])?;
        front.wire.send(&Message::new(code::SET_OWNER, &[]), &[])?;
        Ok(front)
    }

    /// The socket below.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The socket below, without the front end.
    pub fn into_wire(self) -> Wire {
        self.wire
    }

    /// Features that the backend offers.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Protocol features that the backend offers.
    pub fn protocol_features(&self) -> u64 {
        self.protocol_features
    }

    /// Sends a request without a body and returns the number that answers it.
    ///
    /// # Errors
    /// When the backend hangs up.
    pub fn get(&self, request: u32) -> io::Result<u64> {
        Ok(self.ask(&Message::new(request, &[]), &[])?.value())
    }

    /// Sends a request and returns its reply.
    ///
    /// # Errors
    /// When the backend hangs up.
    pub fn ask(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<Message> {
        self.wire.send(message, fds)?;
        let (reply, _) = self.wire.receive()?;
        assert_eq!(reply.request, message.request, "the reply answers another request");
        assert_eq!(
            reply.flags & (flags::REPLY | 3),
            flags::REPLY | flags::VERSION,
            "flags {:#x}",
            reply.flags
        );
        Ok(reply)
    }

    /// Sends a request that asks for an acknowledgement; 0 means done, all else refused.
    ///
    /// # Errors
    /// When the backend hangs up.
    pub fn acknowledged(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<u64> {
        Ok(self.ask(&message.clone().need_reply(), fds)?.value())
    }

    /// Sends a request that must be done.
    #[track_caller]
    pub fn must(&self, message: &Message, fds: &[BorrowedFd<'_>]) {
        let acknowledged = self.acknowledged(message, fds);
        let request = message.request;
        assert_eq!(acknowledged.expect("an acknowledgement"), 0, "request {request} was refused");
    }

    /// Gives the backend a way to speak first; returns the front end's end of it.
    #[track_caller]
    pub fn open_channel(&self) -> Wire {
        let (own, other) = UnixStream::pair().unwrap();
        self.must(&Message::new(code::SET_BACKEND_REQ_FD, &[]), &[other.as_fd()]);
        Wire::over(own)
    }

    /// Reads `len` bytes of the configuration space.
    ///
    /// # Errors
    /// When the backend hangs up.
    pub fn config_bytes(&self, offset: u32, len: u32) -> io::Result<Vec<u8>> {
        let head = [offset, len, 0].map(u32::to_le_bytes).concat();
        let body = [head.clone(), vec![0; usize::try_from(len).unwrap()]].concat();
        let reply = self.ask(&Message::new(code::GET_CONFIG, &body), &[])?;
        if reply.body.is_empty() {
            return Ok(Vec::new());
        }
        assert_eq!(reply.body[..12], head, "the reply repeats offset, size and flags");
        Ok(reply.body[12..].to_vec())
    }

    /// Reads the whole configuration space.
    pub fn config(&self) -> Config {
        Config::parse(&self.config_bytes(0, Config::SIZE).unwrap())
    }

    /// Tells the memory in one table.
    pub fn set_mem_table(&self, memory: &Memory, regions: &[Region]) {
        let fds = vec![memory.fd(); regions.len()];
        self.must(&mem_table(regions), &fds);
    }

    /// Adds one region.
    pub fn add_mem_region(&self, memory: &Memory, region: &Region) {
        let body = [vec![0; 8], region.bytes()].concat();
        self.must(&Message::new(code::ADD_MEM_REG, &body), &[memory.fd()]);
    }

    /// Tells where a ring is.
    pub fn set_vring_addr(&self, queue: u32, ring: &Ring) {
        self.must(&vring_addr(queue, ring), &[]);
    }

    /// Gives a queue a descriptor (kick, call).
    pub fn set_vring_fd(&self, request: u32, queue: u64, fd: BorrowedFd<'_>) {
        self.must(&Message::u64(request, queue), &[fd]);
    }

    /// Stops a queue; returns the index of the next entry the backend would have taken.
    ///
    /// # Errors
    /// When the backend hangs up.
    pub fn get_vring_base(&self, queue: u32) -> io::Result<u32> {
        let reply = self.ask(&Message::vring(code::GET_VRING_BASE, queue, 0), &[])?;
        assert_eq!(reply.body[..4], queue.to_le_bytes(), "the reply names another queue");
        Ok(u32::from_le_bytes(reply.body[4..8].try_into().unwrap()))
    }
}

/// SET_MEM_TABLE for `regions`.
pub fn mem_table(regions: &[Region]) -> Message {
    let count = u32::try_from(regions.len()).unwrap();
    let mut body = [count, 0].map(u32::to_le_bytes).concat();
    body.extend(regions.iter().flat_map(Region::bytes));
    Message::new(code::SET_MEM_TABLE, &body)
}

fn vring_addr(queue: u32, ring: &Ring) -> Message {
    let head = [queue, 0].map(u32::to_le_bytes).concat();
    let places = [ring.desc_table(), ring.used_ring(), ring.avail_ring()];
    let places = places.map(|address| Memory::user_address(address).to_le_bytes()).concat();
    let log = 0_u64.to_le_bytes().to_vec();
    Message::new(code::SET_VRING_ADDR, &[head, places, log].concat())
}
