//! The socket of one front end: whole messages in, answers out.
//!
//! A message may arrive in any number of fragments, and several at once; descriptors belong to the
//! message whose bytes they came with. Every wait also ends when the process stops.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};
use thiserror::Error;

use crate::limits::MAX_MESSAGE_FDS;
use crate::message::{HEADER_BYTES, Header, MessageError};
use crate::session::SessionError;

/// A message as it came.
#[derive(Debug)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its body, as long as the header says.
    pub body: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Why no further message comes.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum WireError {
    #[error("the front end closed the connection")]
    Closed,
    #[error("the front end closed the connection inside a message")]
    Truncated,
    #[error("the process stops")]
    Stopping,
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("request {request}: {error}")]
    Refused { request: u32, error: SessionError },
    #[error("socket: {0}")]
    Io(#[from] io::Error),
}

/// One connection.
#[derive(Debug)]
pub struct Wire<'a> {
    stream: UnixStream,
    stop: BorrowedFd<'a>,
}

impl<'a> Wire<'a> {
    /// Takes over `stream`; `stop` is readable once the process is to stop.
    ///
    /// # Errors
    /// When the stream cannot be switched to non-blocking.
    pub fn new(stream: UnixStream, stop: BorrowedFd<'a>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, stop })
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// See [`WireError`]; the connection is then of no more use.
    pub fn receive(&self) -> Result<Frame, WireError> {
        let mut fds = Vec::new();
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header, &mut fds, WireError::Closed)?;
        let header = Header::decode(header)?;
        let mut body = vec![0; header.body_bytes];
        self.fill(&mut body, &mut fds, WireError::Truncated)?;
        Ok(Frame { header, body, fds })
    }

    /// Sends an answer.
    ///
    /// # Errors
    /// When the front end is gone or the process stops meanwhile.
    pub fn send(&self, mut bytes: &[u8]) -> Result<(), WireError> {
        while !bytes.is_empty() {
            match send(&self.stream, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    /// Fills `bytes` from the socket; `closed` is the error when it ends before the first of them.
    fn fill(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>, closed: WireError) -> Result<(), WireError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.receive_some(&mut bytes[filled..], fds) {
                Ok(0) if filled == 0 => return Err(closed),
                Ok(0) => return Err(WireError::Truncated),
                Ok(count) => filled += count,
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(WireError::Closed),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    fn receive_some(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
        // Room for as many descriptors as the kernel ever passes at once, so that none is cut off.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MESSAGE_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&self.stream, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            // This process has no descriptor left: the message would be taken for another one.
            return Err(Errno::MFILE);
        }
        Ok(received.bytes)
    }

    fn wait(&self, events: PollFlags) -> Result<(), WireError> {
        let mut polled =
            [PollFd::new(&self.stream, events), PollFd::from_borrowed_fd(self.stop, PollFlags::IN)];
        match poll(&mut polled, None) {
            Err(Errno::INTR) => return Ok(()),
            other => other.map_err(io::Error::from)?,
        };
        if polled[1].revents().is_empty() { Ok(()) } else { Err(WireError::Stopping) }
    }
}

impl AsFd for Wire<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
