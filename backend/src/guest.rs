//! The front ends of one guest, one after the other, for ever.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use log::Level;

use crate::interrupt::Interrupt;
use crate::log_limit::LogLimit;
use crate::message::{Message, encode_reply};
use crate::session::{Offer, Reply, Session};
use crate::shared::Shared;
use crate::socket::Endpoint;
use crate::wire::{Frame, Wire, WireError, sleep_until_readable, wait_readable};

/// Between two tries: short while the front end is expected, longer when it stays away or says nothing.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_LONGEST: Duration = Duration::from_millis(100);

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

/// A connection and what it has come to.
pub struct Front {
    /// The connection.
    pub stream: UnixStream,
    /// What it has negotiated.
    pub session: Session,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The front end is gone, or was sent away, after this many messages.
    Disconnected { messages: u64 },
    /// The process stops.
    Stopping,
}

impl Guest {
    /// Serves one front end after the other until the process stops; the first one may come from the process whose
    /// place this one has taken.
    pub fn serve(&self, shared: &Arc<Shared>, interrupt: &Interrupt, mut taken: Option<Front>) {
        let mut log = LogLimit::default();
        let mut pause = PAUSE_FIRST;
        // Only now is there no other process that would go on with its rings.
        if let Some(front) = &mut taken
            && let Err(error) = front.session.resume()
        {
            log.log(
                Level::Warn,
                format_args!("guest={} event=connection-dropped error=\"{error}\"", self.name),
            );
            taken.take().into_iter().for_each(|front| front.session.end(false));
        }
        while let Some(front) =
            taken.take().or_else(|| self.next_front(&mut pause, shared, interrupt, &mut log))
        {
            shared.stats(self.worker).set_connected(true);
            let end = self.serve_connection(front, interrupt, &mut log);
            shared.stats(self.worker).set_connected(false);
            match end {
                Ok(End::Stopping) => {}
                Ok(End::Disconnected { messages }) => {
                    log.log(Level::Info, format_args!("guest={} event=disconnected", self.name));
                    if messages > 0 {
                        pause = PAUSE_FIRST;
                    }
                }
                Err(error) => {
                    log.log(
                        Level::Warn,
                        format_args!("guest={} event=disconnected error=\"{error}\"", self.name),
                    );
                }
            }
        }
    }

    fn next_front(
        &self,
        pause: &mut Duration,
        shared: &Arc<Shared>,
        interrupt: &Interrupt,
        log: &mut LogLimit,
    ) -> Option<Front> {
        let stream = self.next_stream(pause, interrupt, log)?;
        log.log(Level::Info, format_args!("guest={} event=connected", self.name));
        Some(Front { stream, session: Session::new(Arc::clone(shared), self.worker, self.offer) })
    }

    /// The next front end; `None` when the process stops and none is left waiting.
    fn next_stream(
        &self,
        pause: &mut Duration,
        interrupt: &Interrupt,
        log: &mut LogLimit,
    ) -> Option<UnixStream> {
        // Who connects by himself comes as fast as he can pay for it; a queue of dead connections must not hold him up.
        if *pause > PAUSE_FIRST && matches!(self.endpoint, Endpoint::Connect(_)) {
            sleep_until_readable(interrupt.event(), *pause);
        }
        loop {
            interrupt.park(self.worker, || Ok(None));
            let stopping = interrupt.is_stopping();
            if stopping && (matches!(self.endpoint, Endpoint::Connect(_)) || self.endpoint.outlives_process())
            {
                return None;
            }
            match self.endpoint.next_stream() {
                Ok(Some(stream)) => {
                    *pause = (*pause * 2).min(PAUSE_LONGEST);
                    return Some(stream);
                }
                _ if stopping => return None,
                Ok(None) => {}
                // Out of descriptors or the like: it passes.
                Err(error) => {
                    let guest = &self.name;
                    log.log(Level::Warn, format_args!("guest={guest} event=no-connection error=\"{error}\""));
                    sleep_until_readable(interrupt.event(), PAUSE_LONGEST);
                }
            }
            match &self.endpoint {
                Endpoint::Listen(listener) => {
                    if let Err(error) = wait_readable(listener.as_fd(), interrupt) {
                        log::error!("guest={} event=wait-failed error=\"{error}\"", self.name);
                    }
                }
                Endpoint::Connect(_) => {
                    sleep_until_readable(interrupt.event(), *pause);
                    *pause = (*pause * 2).min(PAUSE_LONGEST);
                }
            }
        }
    }

    fn serve_connection(&self, front: Front, interrupt: &Interrupt, log: &mut LogLimit) -> io::Result<End> {
        let Front { stream, mut session } = front;
        let wire = Wire::new(stream, interrupt)?;
        let mut messages = 0;
        let end = loop {
            match self.serve_message(&wire, &mut session, log) {
                Ok(()) => messages += 1,
                Err(WireError::Closed) => break End::Disconnected { messages },
                Err(WireError::Stopping) => break End::Stopping,
                Err(WireError::Pausing) => {
                    interrupt.park(self.worker, || session.give(wire.stream()).map(Some));
                    if let Err(error) = session.resume() {
                        log.log(
                            Level::Warn,
                            format_args!("guest={} event=connection-dropped error=\"{error}\"", self.name),
                        );
                        break End::Disconnected { messages };
                    }
                }
                Err(error) => {
                    log.log(
                        Level::Warn,
                        format_args!("guest={} event=connection-dropped error=\"{error}\"", self.name),
                    );
                    break End::Disconnected { messages };
                }
            }
        };
        // A front end that is still there gets the answers to all requests that were taken.
        session.end(end != End::Stopping);
        Ok(end)
    }

    fn serve_message(
        &self,
        wire: &Wire<'_>,
        session: &mut Session,
        log: &mut LogLimit,
    ) -> Result<(), WireError> {
        let Frame { header, body, fds } = wire.receive(session.is_owned())?;
        let message = Message::decode(header.request, &body, fds)?;
        log::debug!("guest={} event=message request={} body_bytes={}", self.name, header.request, body.len());
        let wants_ack = header.need_reply && session.acknowledges() && !message.has_own_reply();
        let answer = match session.apply(message) {
            Ok(Reply::Body(body)) => body,
            Ok(Reply::BodyAndFd(body, fd)) => {
                return wire.send(&encode_reply(header.request, &body), Some(fd.as_fd()));
            }
            Ok(Reply::None) if wants_ack => 0u64.to_le_bytes().to_vec(),
            Ok(Reply::None) => return Ok(()),
            Err(error) if wants_ack => {
                let (guest, request) = (&self.name, header.request);
                log.log(
                    Level::Warn,
                    format_args!("guest={guest} event=refused request={request} error=\"{error}\""),
                );
                1u64.to_le_bytes().to_vec()
            }
            Err(error) => return Err(WireError::Refused { request: header.request, error }),
        };
        wire.send(&encode_reply(header.request, &answer), None)
    }
}
