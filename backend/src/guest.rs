//! The front ends of one guest, one after the other, for ever.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::message::{Message, encode_reply};
use crate::session::{Offer, Reply, Session};
use crate::shared::Shared;
use crate::socket::Endpoint;
use crate::wire::{Frame, Wire, WireError};

/// Between two tries to connect: short while the front end is expected, longer when it stays away.
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_LONGEST: Duration = Duration::from_millis(100);

/// One guest as the host serves it.
#[derive(Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Where its front end is found.
    pub endpoint: Endpoint,
    /// The device it is offered.
    pub offer: Offer,
    /// Index of its worker.
    pub worker: usize,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The front end is gone, or was sent away.
    Disconnected,
    /// The process stops.
    Stopping,
}

impl Guest {
    /// Serves one front end after the other until `stop` is readable.
    pub fn serve(&self, shared: &Arc<Shared>, stop: BorrowedFd<'_>) {
        while let Some(stream) = self.next_stream(stop) {
            log::info!("guest={} event=connected", self.name);
            shared.stats(self.worker).set_connected(true);
            let end = self.serve_connection(stream, shared, stop);
            shared.stats(self.worker).set_connected(false);
            match end {
                Ok(End::Stopping) => return,
                Ok(End::Disconnected) => log::info!("guest={} event=disconnected", self.name),
                Err(error) => log::warn!("guest={} event=disconnected error=\"{error}\"", self.name),
            }
        }
    }

    /// The next front end; `None` when the process stops.
    fn next_stream(&self, stop: BorrowedFd<'_>) -> Option<UnixStream> {
        let mut pause = RETRY_FIRST;
        loop {
            let waited = match &self.endpoint {
                Endpoint::Listen(listener) => wait_readable(listener.as_fd(), stop),
                Endpoint::Connect(_) => Ok(true),
            };
            let stream = waited.and_then(|_| self.endpoint.next_stream());
            match stream {
                _ if is_readable(stop) => return None,
                Ok(Some(stream)) => return Some(stream),
                Ok(None) => {}
                // Out of descriptors or the like: it passes.
                Err(error) => log::warn!("guest={} event=no-connection error=\"{error}\"", self.name),
            }
            sleep_unless_stopped(pause, stop);
            pause = (pause * 2).min(RETRY_LONGEST);
        }
    }

    fn serve_connection(
        &self,
        stream: UnixStream,
        shared: &Arc<Shared>,
        stop: BorrowedFd<'_>,
    ) -> io::Result<End> {
        let wire = Wire::new(stream, stop)?;
        let mut session = Session::new(Arc::clone(shared), self.worker, self.offer);
        let end = loop {
            match self.serve_message(&wire, &mut session) {
                Ok(()) => {}
                Err(WireError::Closed) => break End::Disconnected,
                Err(WireError::Stopping) => break End::Stopping,
                Err(error) => {
                    log::warn!("guest={} event=connection-dropped error=\"{error}\"", self.name);
                    break End::Disconnected;
                }
            }
        };
        // A front end that is still there gets the answers to all requests that were taken.
        session.end(end == End::Disconnected);
        Ok(end)
    }

    fn serve_message(&self, wire: &Wire<'_>, session: &mut Session) -> Result<(), WireError> {
        let Frame { header, body, fds } = wire.receive()?;
        let message = Message::decode(header.request, &body, fds)?;
        log::debug!("guest={} event=message request={} body_bytes={}", self.name, header.request, body.len());
        let wants_ack = header.need_reply && session.acknowledges();
        let answer = match session.apply(message) {
            Ok(Reply::Body(body)) => body,
            Ok(Reply::None) if wants_ack => 0u64.to_le_bytes().to_vec(),
            Ok(Reply::None) => return Ok(()),
            Err(error) if wants_ack => {
                log::warn!("guest={} event=refused request={} error=\"{error}\"", self.name, header.request);
                1u64.to_le_bytes().to_vec()
            }
            Err(error) => {
                return Err(WireError::Refused { request: header.request, error });
            }
        };
        wire.send(&encode_reply(header.request, &answer))
    }
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

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    sleep_unless_stopped(Duration::ZERO, fd)
}

/// Whether `stop` became readable within `pause`.
fn sleep_unless_stopped(pause: Duration, stop: BorrowedFd<'_>) -> bool {
    let timeout = Timespec::try_from(pause).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    poll(&mut [PollFd::from_borrowed_fd(stop, PollFlags::IN)], Some(&timeout)).is_ok_and(|count| count > 0)
}
