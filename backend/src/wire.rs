//! The socket of one front end: whole messages in, answers out.
//!
//! A message may arrive in any number of fragments, and several at once; descriptors belong to the
//! message whose bytes they came with. Every wait also ends when the process stops.

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;

use crate::limits::{HANDSHAKE_GRACE_MS, MAX_MESSAGE_FDS};
use crate::message::{HEADER_BYTES, Header, MessageError};
use crate::session::SessionError;

/// Descriptors that the kernel passes at once at most (`SCM_MAX_FD` of Linux).
const SCM_MAX_FD: usize = 253;

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
    #[error("a message with more than {MAX_MESSAGE_FDS} descriptors")]
    TooManyDescriptors,
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
    /// Since when a stop is put off for a handshake.
    put_off_since: Cell<Option<Instant>>,
}

impl<'a> Wire<'a> {
    /// Takes over `stream`; `stop` is readable once the process is to stop.
    ///
    /// # Errors
    /// When the stream cannot be switched to non-blocking.
    pub fn new(stream: UnixStream, stop: BorrowedFd<'a>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, stop, put_off_since: Cell::new(None) })
    }

    /// Waits for the next message. Unless it may stop at once, the connection is given
    /// [`HANDSHAKE_GRACE_MS`] more when the process stops.
    ///
    /// # Errors
    /// See [`WireError`]; the connection is then of no more use.
    pub fn receive(&self, may_stop: bool) -> Result<Frame, WireError> {
        if is_readable(self.stop) {
            self.put_off_stop(may_stop)?;
        }
        let mut fds = Vec::new();
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header, &mut fds, WireError::Closed, may_stop)?;
        let header = Header::decode(header)?;
        let mut body = vec![0; header.body_bytes];
        self.fill(&mut body, &mut fds, WireError::Truncated, may_stop)?;
        Ok(Frame { header, body, fds })
    }

    /// Sends an answer, and a descriptor with it.
    ///
    /// # Errors
    /// When the front end is gone or the process stops meanwhile.
    pub fn send(&self, mut bytes: &[u8], mut fd: Option<BorrowedFd<'_>>) -> Result<(), WireError> {
        while !bytes.is_empty() {
            match self.send_some(bytes, fd) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    fd = None;
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, true)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    fn send_some(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
        let fds = fd.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::NOBUFS);
        }
        sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    }

    /// Fills `bytes` from the socket; `closed` is the error when it ends before the first of them.
    fn fill(
        &self,
        bytes: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        closed: WireError,
        may_stop: bool,
    ) -> Result<(), WireError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.receive_some(&mut bytes[filled..], fds) {
                Ok(0) if filled == 0 => return Err(closed),
                Ok(0) => return Err(WireError::Truncated),
                Ok(_) if fds.len() > MAX_MESSAGE_FDS => return Err(WireError::TooManyDescriptors),
                Ok(count) => filled += count,
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, may_stop)?,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(WireError::Closed),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    fn receive_some(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
        // Room for as many descriptors as the kernel ever passes at once, so that none is cut off.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
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

    fn wait(&self, events: PollFlags, may_stop: bool) -> Result<(), WireError> {
        let mut polled =
            [PollFd::new(&self.stream, events), PollFd::from_borrowed_fd(self.stop, PollFlags::IN)];
        match poll(&mut polled, None) {
            Err(Errno::INTR) => return Ok(()),
            other => other.map_err(io::Error::from)?,
        };
        let [stream, stop] = polled.map(|p| !p.revents().is_empty());
        if !stop {
            return Ok(());
        }
        let left = self.put_off_stop(may_stop)?;
        if !stream {
            sleep_until_readable(self.stream.as_fd(), left);
        }
        Ok(())
    }

    /// How long the connection may still go on although the process stops.
    fn put_off_stop(&self, may_stop: bool) -> Result<Duration, WireError> {
        let since = self.put_off_since.get().unwrap_or_else(Instant::now);
        self.put_off_since.set(Some(since));
        match Duration::from_millis(HANDSHAKE_GRACE_MS).checked_sub(since.elapsed()) {
            Some(left) if !may_stop => Ok(left),
            _ => Err(WireError::Stopping),
        }
    }
}

/// Whether `fd` is readable now.
#[must_use]
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    sleep_until_readable(fd, Duration::ZERO)
}

/// Whether `fd` became readable within `longest`.
pub fn sleep_until_readable(fd: BorrowedFd<'_>, longest: Duration) -> bool {
    let timeout = Timespec::try_from(longest).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)).is_ok_and(|count| count > 0)
}

/// Waits until `fd` is readable; false when the process stops.
///
/// # Errors
/// When the kernel refuses to wait.
pub fn wait_readable(fd: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> io::Result<bool> {
    let mut polled =
        [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
    while let Err(error) = poll(&mut polled, None) {
        if error != Errno::INTR {
            return Err(error.into());
        }
    }
    Ok(polled[1].revents().is_empty())
}
