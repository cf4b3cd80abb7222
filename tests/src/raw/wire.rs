//! vhost-user messages on a socket, whole, in parts, or wrong.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::wait::SAFETY_NET;

/// Request codes.
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod code {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// Bits of a header's flags.
pub mod flags {
    /// The only version there is.
    pub const VERSION: u32 = 1;
    /// This message answers another.
    pub const REPLY: u32 = 1 << 2;
    /// The sender wants an acknowledgement.
    pub const NEED_REPLY: u32 = 1 << 3;
}

/// Bytes of a message header: request, flags, body size.
pub const HEADER_SIZE: usize = 12;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Request code.
    pub request: u32,
    /// Version and flags.
    pub flags: u32,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Message {
    /// A request of version 1 without flags.
    pub fn new(request: u32, body: &[u8]) -> Self {
        Self { request, flags: flags::VERSION, body: body.to_vec() }
    }

    /// A request whose body is one number.
    pub fn u64(request: u32, value: u64) -> Self {
        Self::new(request, &value.to_le_bytes())
    }

    /// A request about a queue: its index and a number.
    pub fn vring(request: u32, queue: u32, value: u32) -> Self {
        Self::new(request, &[queue.to_le_bytes(), value.to_le_bytes()].concat())
    }

    /// Asks for an acknowledgement.
    pub fn need_reply(mut self) -> Self {
        self.flags |= flags::NEED_REPLY;
        self
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let size = u32::try_from(self.body.len()).unwrap();
        let header = [self.request, self.flags, size].map(u32::to_le_bytes).concat();
        [header, self.body.clone()].concat()
    }

    /// The body as one number.
    pub fn value(&self) -> u64 {
        u64::from_le_bytes(self.body.as_slice().try_into().expect("a body of 8 bytes"))
    }
}

/// The front end's end of the socket.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    is_dripping: bool,
}

impl Wire {
    /// Connects to a backend that listens.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        UnixStream::connect(socket).map(Self::over)
    }

    /// Talks over a socket that is connected already.
    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(SAFETY_NET)).unwrap();
        stream.set_write_timeout(Some(SAFETY_NET)).unwrap();
        Self { stream, is_dripping: false }
    }

    /// From now on sends every message byte by byte; descriptors go with the first. Legal on a stream.
    pub fn dripping(mut self) -> Self {
        self.is_dripping = true;
        self
    }

    /// The socket itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends any bytes in one `sendmsg`, with any descriptors.
    ///
    /// # Errors
    /// As `sendmsg(2)`: the other side may have hung up.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "room for the descriptors");
        }
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        assert_eq!(sent, bytes.len(), "messages are smaller than the socket's buffer");
        Ok(())
    }

    /// Sends a message with descriptors.
    ///
    /// # Errors
    /// As `sendmsg(2)`.
    pub fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = message.bytes();
        if !self.is_dripping {
            return self.send_bytes(&bytes, fds);
        }
        self.send_bytes(&bytes[..1], fds)?;
        bytes[1..].chunks(1).try_for_each(|byte| self.send_bytes(byte, &[]))
    }

    /// Receives one message and the descriptors that came with it.
    ///
    /// # Errors
    /// `UnexpectedEof` when the backend hung up, `WouldBlock` when it says nothing.
    pub fn receive(&self) -> io::Result<(Message, Vec<OwnedFd>)> {
        let mut fds = Vec::new();
        let header = self.receive_exactly(HEADER_SIZE, &mut fds)?;
        let [request, flags, size] =
            [0, 4, 8].map(|at| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()));
        let body = self.receive_exactly(usize::try_from(size).unwrap(), &mut fds)?;
        Ok((Message { request, flags, body }, fds))
    }

    /// True once the backend has hung up; false when it says something instead.
    ///
    /// # Panics
    /// When it does neither.
    #[track_caller]
    pub fn hung_up(&self) -> bool {
        match self.receive() {
            Ok(_) => false,
            Err(error) => match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => true,
                _ => panic!("the backend neither answers nor hangs up: {error}"),
            },
        }
    }

    fn receive_exactly(&self, len: usize, fds: &mut Vec<OwnedFd>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            let count = self.receive_some(&mut bytes[filled..], fds)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += count;
        }
        Ok(bytes)
    }

    fn receive_some(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(bytes)];
        // A signal, such as that which lets a stopped test go on, is not the end of the conversation.
        let receive = || recvmsg(&self.stream, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = retry_on_intr(receive)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        Ok(received.bytes)
    }
}
