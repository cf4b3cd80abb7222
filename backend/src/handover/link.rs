//! Messages between the two processes: JSON, and any number of descriptors.
//!
//! A message is `body bytes u32, descriptors u32`, then one byte for every [`FDS_AT_ONCE`] descriptors with these on it,
//! then the body.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::limits::{MAX_HANDOVER_BYTES, MAX_HANDOVER_FDS};

/// What the kernel passes at once at most (`SCM_MAX_FD` of Linux).
const FDS_AT_ONCE: usize = 253;

/// Why the other process is not understood.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum LinkError {
    #[error("the other process has gone")]
    Closed,
    #[error("the other process says nothing for too long")]
    Silent,
    #[error("a message of {bytes} bytes and {fds} descriptors is too long")]
    TooLong { bytes: usize, fds: usize },
    #[error("no descriptor is left in this process")]
    NoDescriptors,
    #[error("a message that is not understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Io(io::Error),
}

/// A connection to the other process.
#[derive(Debug)]
pub struct Link<'a>(pub &'a UnixStream);

impl Link<'_> {
    /// Sends one message.
    ///
    /// # Errors
    /// See [`LinkError`]; [`LinkError::Silent`] if the other process does not read until `deadline`.
    pub fn send(
        &self,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), LinkError> {
        self.wait_at_most_until(deadline)?;
        let body = serde_json::to_vec(message)?;
        let too_long = LinkError::TooLong { bytes: body.len(), fds: fds.len() };
        let [Ok(bytes), Ok(count)] = [body.len(), fds.len()].map(u32::try_from) else {
            return Err(too_long);
        };
        if body.len() > MAX_HANDOVER_BYTES || fds.len() > MAX_HANDOVER_FDS {
            return Err(too_long);
        }
        let header = [bytes.to_le_bytes(), count.to_le_bytes()].concat();
        if fds.is_empty() {
            // At once, so that a short message has come wholly or not at all: `Taken` decides who goes on.
            return self.write(&[header, body].concat());
        }
        self.write(&header)?;
        for fds in fds.chunks(FDS_AT_ONCE) {
            self.send_fds(fds)?;
        }
        self.write(&body)
    }

    /// The next message and its descriptors.
    ///
    /// # Errors
    /// See [`LinkError`]; [`LinkError::Silent`] at `deadline`.
    pub fn receive<T: DeserializeOwned>(&self, deadline: Instant) -> Result<(T, Vec<OwnedFd>), LinkError> {
        let mut header = [0; 8];
        self.read(&mut header, deadline)?;
        let number = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize
        };
        let (bytes, count) = (number(0), number(4));
        if bytes > MAX_HANDOVER_BYTES || count > MAX_HANDOVER_FDS {
            return Err(LinkError::TooLong { bytes, fds: count });
        }
        let mut fds = Vec::with_capacity(count);
        while fds.len() < count {
            self.receive_fds(&mut fds, deadline)?;
        }
        let mut body = vec![0; bytes];
        self.read(&mut body, deadline)?;
        Ok((serde_json::from_slice(&body)?, fds))
    }

    /// Lets nothing more pass in either direction. What has come before can still be received.
    pub fn cut(&self) {
        if let Err(error) = self.0.shutdown(Shutdown::Both) {
            log::debug!("event=shutdown-failed error=\"{error}\"");
        }
    }

    fn send_fds(&self, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = control.push(SendAncillaryMessage::ScmRights(fds));
        debug_assert!(fits, "there is room for as many as go at once");
        let slices = [IoSlice::new(b"+")];
        let sent = retry_on_intr(|| sendmsg(self.0, &slices, &mut control, SendFlags::NOSIGNAL));
        sent.map(|_| ()).map_err(|error| failed(error.into()))
    }

    fn receive_fds(&self, fds: &mut Vec<OwnedFd>, deadline: Instant) -> Result<(), LinkError> {
        self.wait_at_most_until(deadline)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let into = &mut [IoSliceMut::new(&mut byte)];
        // A socket with a timeout is interrupted even when the process is only stopped and goes on.
        let received = retry_on_intr(|| recvmsg(self.0, into, &mut control, RecvFlags::CMSG_CLOEXEC));
        let received = received.map_err(|error| failed(error.into()))?;
        let before = fds.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        match () {
            () if received.bytes == 0 => Err(LinkError::Closed),
            () if received.flags.contains(ReturnFlags::CTRUNC) => Err(LinkError::NoDescriptors),
            () if fds.len() == before => Err(LinkError::Io(io::ErrorKind::InvalidData.into())),
            () => Ok(()),
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<(), LinkError> {
        let mut stream = self.0;
        stream.write_all(bytes).map_err(failed)
    }

    fn read(&self, mut bytes: &mut [u8], deadline: Instant) -> Result<(), LinkError> {
        let mut stream = self.0;
        while !bytes.is_empty() {
            self.wait_at_most_until(deadline)?;
            match stream.read(bytes) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn wait_at_most_until(&self, deadline: Instant) -> Result<(), LinkError> {
        let left = deadline.saturating_duration_since(Instant::now());
        // No time at all would mean for ever.
        let left = left.max(Duration::from_millis(1));
        self.0
            .set_read_timeout(Some(left))
            .and_then(|()| self.0.set_write_timeout(Some(left)))
            .map_err(failed)
    }
}

fn failed(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => LinkError::Silent,
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => LinkError::Closed,
        _ => LinkError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::thread;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn messages_come_whole_with_their_descriptors() {
        let (one, other) = UnixStream::pair().unwrap();
        for count in [0, 1, 253, 254, 600] {
            let fds: Vec<OwnedFd> = (0..count).map(|n| eventfd(n, EventfdFlags::CLOEXEC).unwrap()).collect();
            let text = "x".repeat(300_000);
            thread::scope(|scope| {
                let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                let (one, text) = (&one, &text);
                scope.spawn(move || Link(one).send(text, &borrowed, soon()).unwrap());
                let (received, fds) = Link(&other).receive::<String>(soon()).unwrap();
                assert!(received == *text);
                for (n, fd) in fds.iter().enumerate().skip(1) {
                    let mut value = [0; 8];
                    rustix::io::read(fd, &mut value).unwrap();
                    assert_eq!(u64::from_ne_bytes(value), n as u64);
                }
                assert_eq!(fds.len(), count as usize);
            });
        }
    }

    /// As when the process is stopped for a moment and goes on.
    #[test]
    fn signals_interrupt_no_message() {
        use std::os::unix::thread::JoinHandleExt;
        signal_hook::flag::register(libc::SIGUSR1, std::sync::Arc::default()).unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        let receiver = thread::spawn(move || Link(&other).receive::<String>(soon()).map(|(text, _)| text));
        (&one).write_all(b"\x03\0\0\0\x01\0\0\0").unwrap();
        for _ in 0..1000 {
            // SAFETY: the thread is not joined yet, so the number is still its own.
            unsafe { libc::pthread_kill(receiver.as_pthread_t(), libc::SIGUSR1) };
            thread::sleep(Duration::from_micros(10));
        }
        let _ = Link(&one).send_fds(&[one.as_fd()]);
        let _ = (&one).write_all(b"\"a\""); // it may have gone
        assert_eq!(receiver.join().unwrap().unwrap(), "a");
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let receive = |bytes: &[u8]| {
            let (one, other) = UnixStream::pair().unwrap();
            (&one).write_all(bytes).unwrap();
            drop(one);
            Link(&other).receive::<String>(soon()).unwrap_err()
        };
        assert!(matches!(receive(b""), LinkError::Closed));
        assert!(matches!(receive(b"\x04\0\0\0\0\0\0\0\"a"), LinkError::Closed));
        assert!(matches!(receive(b"\x02\0\0\0\0\0\0\0[]"), LinkError::Json(_)));
        assert!(matches!(receive(b"\xff\xff\xff\xff\0\0\0\0"), LinkError::TooLong { .. }));
        assert!(matches!(receive(b"\x02\0\0\0\x01\0\0\0+\"\""), LinkError::Io(_)));
        let (_one, other) = UnixStream::pair().unwrap();
        assert!(matches!(Link(&other).receive::<String>(Instant::now()), Err(LinkError::Silent)));
    }

    #[test]
    fn nothing_comes_after_a_cut_but_what_had_come() {
        let (one, other) = UnixStream::pair().unwrap();
        Link(&one).send(&"before", &[], soon()).unwrap();
        Link(&other).cut();
        assert!(matches!(Link(&one).send(&"after", &[], soon()), Err(LinkError::Closed)));
        assert_eq!(Link(&other).receive::<String>(soon()).unwrap().0, "before");
        assert!(matches!(Link(&other).receive::<String>(soon()), Err(LinkError::Closed)));
    }
}
