//! vhost-user messages: bytes and descriptors in, a checked [`Message`] out. Pure.
//!
//! The payload structures are those of the `vhost` crate. Its server side is not used: it drops
//! fragmented messages and surplus descriptors and hides the acknowledged features.

use std::os::fd::OwnedFd;

use thiserror::Error;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserInflight, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

use crate::limits::MAX_MESSAGE_BYTES;

/// Bytes of a message header: request u32, flags u32, body size u32.
pub const HEADER_BYTES: usize = 12;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0x3;
const FLAG_REPLY: u32 = 0x4;
const FLAG_NEED_REPLY: u32 = 0x8;

/// In the payload of SET_VRING_KICK, CALL and ERR: the ring index, and "there is no descriptor".
const VRING_INDEX_MASK: u64 = 0xff;
const VRING_NO_FD: u64 = 0x100;

/// Why a message was not understood. The connection is closed.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MessageError {
    #[error("message flags {0:#x}")]
    BadFlags(u32),
    #[error("message body of {0} bytes, at most {MAX_MESSAGE_BYTES} are taken")]
    TooLong(u32),
    #[error("request {0} is not one this backend serves")]
    UnknownRequest(u32),
    #[error("request {request} with a body of {bytes} bytes")]
    BadLength { request: u32, bytes: usize },
    #[error("request {request} with {fds} descriptors")]
    BadDescriptors { request: u32, fds: usize },
    #[error("request {request} with bits set that have no meaning")]
    BadBits { request: u32 },
}

/// The first 12 bytes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Request code.
    pub request: u32,
    /// Whether the front end waits for an answer to a request that has none.
    pub need_reply: bool,
    /// Bytes of the body.
    pub body_bytes: usize,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// When the version or the flags are wrong, or the body is too long.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, MessageError> {
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = bytes;
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let size = u32::from_le_bytes([s0, s1, s2, s3]);
        if flags & VERSION_MASK != VERSION || flags & !(VERSION_MASK | FLAG_NEED_REPLY) != 0 {
            return Err(MessageError::BadFlags(flags));
        }
        let body_bytes = usize::try_from(size).unwrap_or(usize::MAX);
        if body_bytes > MAX_MESSAGE_BYTES {
            return Err(MessageError::TooLong(size));
        }
        let request = u32::from_le_bytes([r0, r1, r2, r3]);
        Ok(Self { request, need_reply: flags & FLAG_NEED_REPLY != 0, body_bytes })
    }
}

/// A request of the front end.
#[allow(missing_docs)]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    GetMaxMemSlots,
    SetMemTable(Vec<(VhostUserMemoryRegion, OwnedFd)>),
    AddMemRegion(VhostUserMemoryRegion, OwnedFd),
    RemoveMemRegion(VhostUserMemoryRegion),
    SetVringNum(VhostUserVringState),
    SetVringAddr(VhostUserVringAddr),
    SetVringBase(VhostUserVringState),
    GetVringBase(VhostUserVringState),
    SetVringKick(VringFd),
    SetVringCall(VringFd),
    SetVringErr,
    SetVringEnable(VhostUserVringState),
    GetConfig(VhostUserConfig),
    SetConfig,
    SetBackendReqFd(OwnedFd),
    GetInflightFd(Inflight),
    SetInflightFd(Inflight, OwnedFd),
}

/// An in-flight region as a message describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inflight {
    /// Bytes of the region.
    pub size_bytes: u64,
    /// Where it begins in its file.
    pub offset_bytes: u64,
    /// Rings that it is for.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// Bytes of the message's body: with the padding that QEMU sends, or as the specification lists the fields.
    body_bytes: usize,
}

impl Inflight {
    /// Bytes of the fields.
    const FIELDS_BYTES: usize = 20;

    /// The answer to a wish for this region: it begins with its file and has `size_bytes` bytes, 0 if there is none.
    #[must_use]
    pub fn answer(&self, size_bytes: u64) -> Vec<u8> {
        let [size, offset] = [size_bytes, 0].map(u64::to_le_bytes);
        let [queues, queue_size] = [self.queues, self.queue_size].map(u16::to_le_bytes);
        let mut body = [size.as_slice(), &offset, &queues, &queue_size].concat();
        body.resize(self.body_bytes, 0);
        body
    }
}

/// A ring and a descriptor for it, if there is one.
#[derive(Debug)]
pub struct VringFd {
    /// Queue index.
    pub index: u32,
    /// The descriptor.
    pub fd: Option<OwnedFd>,
}

impl Message {
    /// Whether the request is answered by itself, so that an acknowledgement cannot be told from an answer.
    #[must_use]
    pub fn has_own_reply(&self) -> bool {
        matches!(
            self,
            Self::GetFeatures
                | Self::GetProtocolFeatures
                | Self::GetQueueNum
                | Self::GetMaxMemSlots
                | Self::GetVringBase(_)
                | Self::GetConfig(_)
                | Self::GetInflightFd(_)
        )
    }

    /// Reads the body of a message. Descriptors that are not part of it are closed.
    ///
    /// # Errors
    /// When the body or the descriptors are not those of the request.
    pub fn decode(request: u32, body: &[u8], fds: Vec<OwnedFd>) -> Result<Self, MessageError> {
        let code = FrontendReq::try_from(request).map_err(|_| MessageError::UnknownRequest(request))?;
        let parts = Parts { request, body, fds };
        match code {
            FrontendReq::GET_FEATURES => parts.empty(Self::GetFeatures),
            FrontendReq::SET_FEATURES => parts.plain(|v: VhostUserU64| Self::SetFeatures(v.value)),
            FrontendReq::SET_OWNER => parts.empty(Self::SetOwner),
            FrontendReq::RESET_OWNER => parts.empty(Self::ResetOwner),
            FrontendReq::GET_PROTOCOL_FEATURES => parts.empty(Self::GetProtocolFeatures),
            FrontendReq::SET_PROTOCOL_FEATURES => {
                parts.plain(|v: VhostUserU64| Self::SetProtocolFeatures(v.value))
            }
            FrontendReq::GET_QUEUE_NUM => parts.empty(Self::GetQueueNum),
            FrontendReq::GET_MAX_MEM_SLOTS => parts.empty(Self::GetMaxMemSlots),
            FrontendReq::SET_MEM_TABLE => parts.mem_table(),
            FrontendReq::ADD_MEM_REG => {
                let (region, fd) = parts.one_fd::<VhostUserSingleMemoryRegion>()?;
                Ok(Self::AddMemRegion(*region, fd))
            }
            FrontendReq::REM_MEM_REG => {
                let region: VhostUserSingleMemoryRegion = parts.body()?;
                // A front end may send the region's descriptor along; it is not needed.
                if parts.fds.len() > 1 { Err(parts.bad_fds()) } else { Ok(Self::RemoveMemRegion(*region)) }
            }
            FrontendReq::SET_VRING_NUM => parts.plain(Self::SetVringNum),
            FrontendReq::SET_VRING_ADDR => parts.plain(Self::SetVringAddr),
            FrontendReq::SET_VRING_BASE => parts.plain(Self::SetVringBase),
            FrontendReq::GET_VRING_BASE => parts.plain(Self::GetVringBase),
            FrontendReq::SET_VRING_KICK => parts.vring_fd(Self::SetVringKick),
            FrontendReq::SET_VRING_CALL => parts.vring_fd(Self::SetVringCall),
            FrontendReq::SET_VRING_ERR => parts.vring_fd(|_| Self::SetVringErr),
            FrontendReq::SET_VRING_ENABLE => parts.plain(Self::SetVringEnable),
            FrontendReq::GET_CONFIG => parts.get_config(),
            FrontendReq::SET_CONFIG => Ok(Self::SetConfig),
            FrontendReq::GET_INFLIGHT_FD => {
                parts.no_fds()?;
                parts.inflight().map(Self::GetInflightFd)
            }
            FrontendReq::SET_INFLIGHT_FD => parts.set_inflight_fd(),
            FrontendReq::SET_BACKEND_REQ_FD => parts.set_backend_req_fd(),
            _ => Err(MessageError::UnknownRequest(request)),
        }
    }
}

/// A message in the making.
struct Parts<'a> {
    request: u32,
    body: &'a [u8],
    fds: Vec<OwnedFd>,
}

impl Parts<'_> {
    fn bad_length(&self) -> MessageError {
        MessageError::BadLength { request: self.request, bytes: self.body.len() }
    }

    fn bad_fds(&self) -> MessageError {
        MessageError::BadDescriptors { request: self.request, fds: self.fds.len() }
    }

    fn no_fds(&self) -> Result<(), MessageError> {
        if self.fds.is_empty() { Ok(()) } else { Err(self.bad_fds()) }
    }

    fn empty(&self, message: Message) -> Result<Message, MessageError> {
        self.no_fds()?;
        if self.body.is_empty() { Ok(message) } else { Err(self.bad_length()) }
    }

    fn body<T: ByteValued + Default>(&self) -> Result<T, MessageError> {
        read(self.body).ok_or_else(|| self.bad_length())
    }

    fn plain<T: ByteValued + Default>(
        &self,
        make: impl FnOnce(T) -> Message,
    ) -> Result<Message, MessageError> {
        self.no_fds()?;
        self.body().map(make)
    }

    fn one_fd<T: ByteValued + Default>(mut self) -> Result<(T, OwnedFd), MessageError> {
        let body = self.body()?;
        if self.fds.len() != 1 {
            return Err(self.bad_fds());
        }
        let fd = self.fds.pop().ok_or_else(|| self.bad_fds())?;
        Ok((body, fd))
    }

    fn inflight(&self) -> Result<Inflight, MessageError> {
        let body_bytes = self.body.len();
        if !(Inflight::FIELDS_BYTES..=size_of::<VhostUserInflight>()).contains(&body_bytes) {
            return Err(self.bad_length());
        }
        let mut padded = [0; size_of::<VhostUserInflight>()];
        padded[..body_bytes].copy_from_slice(self.body);
        let region: VhostUserInflight = read(&padded).ok_or_else(|| self.bad_length())?;
        Ok(Inflight {
            size_bytes: region.mmap_size,
            offset_bytes: region.mmap_offset,
            queues: region.num_queues,
            queue_size: region.queue_size,
            body_bytes,
        })
    }

    fn set_inflight_fd(mut self) -> Result<Message, MessageError> {
        let region = self.inflight()?;
        match self.fds.pop() {
            Some(fd) if self.fds.is_empty() => Ok(Message::SetInflightFd(region, fd)),
            fd => {
                self.fds.extend(fd);
                Err(self.bad_fds())
            }
        }
    }

    fn set_backend_req_fd(mut self) -> Result<Message, MessageError> {
        if !self.body.is_empty() {
            return Err(self.bad_length());
        }
        if self.fds.len() != 1 {
            return Err(self.bad_fds());
        }
        self.fds.pop().map(Message::SetBackendReqFd).ok_or_else(|| self.bad_fds())
    }

    fn vring_fd(mut self, make: impl FnOnce(VringFd) -> Message) -> Result<Message, MessageError> {
        let VhostUserU64 { value } = self.body()?;
        if value & !(VRING_INDEX_MASK | VRING_NO_FD) != 0 {
            return Err(MessageError::BadBits { request: self.request });
        }
        let wanted = usize::from(value & VRING_NO_FD == 0);
        if self.fds.len() != wanted {
            return Err(self.bad_fds());
        }
        let index = u32::from((value & VRING_INDEX_MASK).to_le_bytes()[0]);
        Ok(make(VringFd { index, fd: self.fds.pop() }))
    }

    fn mem_table(self) -> Result<Message, MessageError> {
        let (head, rest) =
            self.body.split_at_checked(size_of::<VhostUserMemory>()).ok_or_else(|| self.bad_length())?;
        let table: VhostUserMemory = read(head).ok_or_else(|| self.bad_length())?;
        let count = usize::try_from(table.num_regions).unwrap_or(usize::MAX);
        let region_bytes = size_of::<VhostUserMemoryRegion>();
        if count == 0 || count.checked_mul(region_bytes) != Some(rest.len()) {
            return Err(self.bad_length());
        }
        if self.fds.len() != count {
            return Err(self.bad_fds());
        }
        let regions = rest.chunks_exact(region_bytes).map_while(read::<VhostUserMemoryRegion>);
        Ok(Message::SetMemTable(regions.zip(self.fds).collect()))
    }

    /// The body is the part of the space that is asked for; only its place and size matter.
    fn get_config(self) -> Result<Message, MessageError> {
        self.no_fds()?;
        let head = self.body.get(..size_of::<VhostUserConfig>()).ok_or_else(|| self.bad_length())?;
        read(head).map(Message::GetConfig).ok_or_else(|| self.bad_length())
    }
}

fn read<T: ByteValued + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    let target = value.as_mut_slice();
    if bytes.len() != target.len() {
        return None;
    }
    target.copy_from_slice(bytes);
    Some(value)
}

/// The bytes of an answer to `request`.
#[must_use]
pub fn encode_reply(request: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    for word in [request, VERSION | FLAG_REPLY, size] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
