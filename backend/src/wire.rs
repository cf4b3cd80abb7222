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

use crate::interrupt::Interrupt;
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
    #[error("the process pauses")]
    Pausing,
    #[error("the front end stops amid a message while the process is replaced")]
    Stalled,
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
    interrupt: &'a Interrupt,
    /// Since when a stop or a pause is put off for the front end.
    put_off_since: Cell<Option<Instant>>,
}

impl<'a> Wire<'a> {
    /// Takes over `stream`; `interrupt` ends its waits.
    ///
    /// # Errors
    /// When the stream cannot be switched to non-blocking.
    pub fn new(stream: UnixStream, interrupt: &'a Interrupt) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, interrupt, put_off_since: Cell::new(None) })
    }

    /// Waits for the next message. Unless it may stop at once, the connection is given
    /// [`HANDSHAKE_GRACE_MS`] more when the process stops. It pauses only between two messages; a front end that stops
    /// amid one then has as long.
    ///
    /// # Errors
    /// See [`WireError`]; the connection is then of no more use.
    pub fn receive(&self, may_stop: bool) -> Result<Frame, WireError> {
        if self.interrupt.is_stopping() {
            self.put_off(may_stop)?;
        } else {
            self.put_off_since.set(None);
        }
        let mut fds = Vec::new();
        let mut header = [0; HEADER_BYTES];
        self.wait_for_message(may_stop)?;
        self.fill(&mut header, &mut fds, WireError::Closed, may_stop)?;
        let header = Header::decode(header)?;
        let mut body = vec![0; header.body_bytes];
        self.fill(&mut body, &mut fds, WireError::Truncated, may_stop)?;
        Ok(Frame { header, body, fds })
    }

    /// The connection, to hand it to another process.
    #[must_use]
    pub fn stream(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
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

    /// Waits where nothing of a message has come: the only place at which the process may pause.
    fn wait_for_message(&self, may_stop: bool) -> Result<(), WireError> {
        loop {
            if self.interrupt.is_pausing() {
                return Err(WireError::Pausing);
            }
            if is_readable(self.stream.as_fd()) {
                return Ok(());
            }
            if self.interrupt.is_stopping() {
                let left = self.put_off(may_stop)?;
                sleep_until_readable(self.stream.as_fd(), left);
            } else {
                wait_readable(self.stream.as_fd(), self.interrupt)?;
            }
        }
    }

    /// Waits for the stream, or for what the interrupt tells.
    fn wait(&self, events: PollFlags, may_stop: bool) -> Result<(), WireError> {
        let event = self.interrupt.event();
        let mut polled = [PollFd::new(&self.stream, events), PollFd::from_borrowed_fd(event, PollFlags::IN)];
        match poll(&mut polled, None) {
            Err(Errno::INTR) => return Ok(()),
            other => other.map_err(io::Error::from)?,
        };
        let [stream, is_interrupted] = polled.map(|p| !p.revents().is_empty());
        if !is_interrupted {
            return Ok(());
        }
        let left = self.put_off(may_stop)?;
        if !stream {
            sleep_until_ready(self.stream.as_fd(), events, left);
        }
        Ok(())
    }

    /// How long the connection may still go on although the process stops or pauses.
    fn put_off(&self, may_stop: bool) -> Result<Duration, WireError> {
        let since = self.put_off_since.get().unwrap_or_else(Instant::now);
        self.put_off_since.set(Some(since));
        let is_stopping = self.interrupt.is_stopping();
        match Duration::from_millis(HANDSHAKE_GRACE_MS).checked_sub(since.elapsed()) {
            Some(left) if !(is_stopping && may_stop) => Ok(left),
            _ if is_stopping => Err(WireError::Stopping),
            _ => Err(WireError::Stalled),
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
    sleep_until_ready(fd, PollFlags::IN, longest)
}

fn sleep_until_ready(fd: BorrowedFd<'_>, events: PollFlags, longest: Duration) -> bool {
    let timeout = Timespec::try_from(longest).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    poll(&mut [PollFd::from_borrowed_fd(fd, events)], Some(&timeout)).is_ok_and(|count| count > 0)
}

/// Waits until `fd` is readable; false when the process stops or pauses.
///
/// # Errors
/// When the kernel refuses to wait.
pub fn wait_readable(fd: BorrowedFd<'_>, interrupt: &Interrupt) -> io::Result<bool> {
    let event = interrupt.event();
    let mut polled =
        [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::from_borrowed_fd(event, PollFlags::IN)];
    while let Err(error) = poll(&mut polled, None) {
        if error != Errno::INTR {
            return Err(error.into());
        }
    }
    Ok(polled[1].revents().is_empty())
}
