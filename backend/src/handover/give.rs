//! The process that gives everything away. Until it is told that all is taken it can go on as before.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use thiserror::Error;

use super::link::{Link, LinkError};
use super::{Given, GivenGuest, ListenerState, Offer, OfferedGuest, PROTOCOL, Ready, Taken};
use crate::guest::Guest;
use crate::image::CacheMode;
use crate::interrupt::Interrupt;
use crate::limits::{HANDOVER_PAUSE_MS, HANDOVER_PREPARE_SECONDS};
use crate::operator::Operator;
use crate::session::SessionError;
use crate::shared::Shared;
use crate::socket::{Endpoint, Listener};

/// Why the new process does not take over.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum GiveError {
    #[error("this backend speaks version {PROTOCOL} of the hand-over, the new one version {0}")]
    OtherProtocol(u32),
    #[error("the new process has another user")]
    OtherUser,
    #[error("a backend with --record cannot be replaced")]
    Recorded,
    #[error("guests that were writing before a kill are not back yet")]
    Recovering,
    #[error("it stops")]
    Stopping,
    #[error("the front end of guest {0} is amid a message that does not end")]
    NotParked(String),
    #[error("requests in flight do not end")]
    NotIdle,
    #[error("guest {guest}: {error}")]
    Session { guest: String, error: SessionError },
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Gives a running process away.
#[derive(Debug)]
pub struct Giver<'a> {
    /// Knows everything that guests share.
    pub shared: &'a Shared,
    /// Carries out no command meanwhile.
    pub operator: &'a Operator,
    /// Has everybody park.
    pub interrupt: &'a Interrupt,
    /// All guests.
    pub guests: &'a [Guest],
    /// Where they connect, as the status says it.
    pub endpoints: Vec<String>,
    /// The control socket.
    pub control: &'a Listener,
    /// Whether every write is logged.
    pub is_recorded: bool,
    /// Where a supervisor listens (`NOTIFY_SOCKET`), if there is one.
    pub supervisor: Option<String>,
}

impl Giver<'_> {
    /// Whether a process that speaks version `protocol` may take over.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, stream: &UnixStream, protocol: u32) -> Result<(), GiveError> {
        if protocol != PROTOCOL {
            return Err(GiveError::OtherProtocol(protocol));
        }
        let user = socket_peercred(stream).map_err(std::io::Error::from)?.uid;
        if !user.is_root() && user != rustix::process::geteuid() {
            return Err(GiveError::OtherUser);
        }
        if self.is_recorded {
            return Err(GiveError::Recorded);
        }
        if self.shared.recovery.is_holding() {
            return Err(GiveError::Recovering);
        }
        Ok(())
    }

    /// Gives everything to the process at the other end of `stream`, and ends this one.
    ///
    /// # Errors
    /// Why this process goes on.
    pub fn give(&self, stream: &UnixStream) -> Result<(), GiveError> {
        let link = Link(stream);
        // No command of an operator is carried out from here to the end of this process.
        let _command = self.operator.begin_command();
        if self.interrupt.is_stopping() {
            return Err(GiveError::Stopping);
        }
        let (offer, fds) = self.offer();
        let deadline = Instant::now() + Duration::from_secs(HANDOVER_PREPARE_SECONDS);
        link.send(&offer, &fds, deadline)?;
        link.receive::<Ready>(deadline)?;

        let began = Instant::now();
        let crossed = self.cross(&link, began + Duration::from_millis(HANDOVER_PAUSE_MS));
        if let Err(error) = crossed {
            self.shared.open_rings();
            self.interrupt.resume();
            return Err(error);
        }
        self.tell_supervisor(stream);
        log::info!("event=handed-over pause_us={}", began.elapsed().as_micros());
        std::process::exit(0);
    }

    /// The pause of the guests.
    fn cross(&self, link: &Link<'_>, deadline: Instant) -> Result<(), GiveError> {
        if let Some(thread) = self.interrupt.pause(deadline)? {
            let guest = self.guests.iter().find(|guest| guest.worker == thread);
            return Err(GiveError::NotParked(guest.map_or_else(String::new, |guest| guest.name.clone())));
        }
        if !self.shared.close_rings(deadline) {
            return Err(GiveError::NotIdle);
        }
        let (given, fds) = self.collect()?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        link.send(&given, &fds, deadline)?;
        let taken = link.receive::<Taken>(deadline).or_else(|_| {
            // Either it has said so by now, or it never can.
            link.cut();
            link.receive::<Taken>(deadline)
        });
        taken.map(|_| ()).map_err(GiveError::Link)
    }

    /// What the parked threads have. The last one has none: it hears operators.
    fn collect(&self) -> Result<(Given, Vec<OwnedFd>), GiveError> {
        let (mut guests, mut fds) = (Vec::new(), Vec::new());
        for (guest, (_, gift)) in self.guests.iter().zip(self.interrupt.collect()) {
            let name = || guest.name.clone();
            let given = gift.map_err(|error| GiveError::Session { guest: name(), error })?;
            let count = given.as_ref().map_or(0, |given| given.fds.len());
            let (session, own) = given.map(|given| (given.state, given.fds)).unzip();
            guests.push(GivenGuest { session, fds: count });
            fds.extend(own.into_iter().flatten());
        }
        Ok((Given { is_poisoned: self.shared.disk.is_poisoned(), guests }, fds))
    }

    fn offer(&self) -> (Offer, Vec<BorrowedFd<'_>>) {
        let image = self.shared.disk.image();
        let guest = |(guest, endpoint): (&Guest, &String)| OfferedGuest {
            name: guest.name.clone(),
            access: guest.offer.role,
            endpoint: endpoint.clone(),
            listener: listener(guest).map(Listener::state),
        };
        let offer = Offer {
            version: env!("CARGO_PKG_VERSION").into(),
            capacity_bytes: image.capacity_bytes(),
            is_writable: image.writer.is_some(),
            is_direct: image.cache == CacheMode::Direct,
            state_file: self.operator.state_file().path().display().to_string(),
            state: self.operator.state(),
            control: self.control.state(),
            guests: self.guests.iter().zip(&self.endpoints).map(guest).collect(),
            supervisor: self.supervisor.clone(),
        };
        let image = [Some(&image.reader), image.writer.as_ref()].into_iter().flatten().map(AsFd::as_fd);
        let sockets = std::iter::once(self.control).chain(self.guests.iter().filter_map(listener));
        (offer, image.chain(sockets.map(AsFd::as_fd)).collect())
    }

    /// systemd takes the end of the process that it watches for the end of the service, unless it is told of another
    /// (`sd_notify(3)`).
    fn tell_supervisor(&self, stream: &UnixStream) {
        let (Some(socket), Ok(peer)) = (&self.supervisor, socket_peercred(stream)) else {
            return;
        };
        let message = format!("MAINPID={}", peer.pid.as_raw_nonzero());
        let told = UnixDatagram::unbound().and_then(|from| from.send_to(message.as_bytes(), socket));
        if let Err(error) = told {
            log::warn!("event=supervisor-not-told error=\"{error}\"");
        }
    }
}

impl ListenerState {
    /// Whether the socket's file goes away with the process, and which it is.
    #[must_use]
    pub fn of_inode(inode: Option<u64>) -> Self {
        Self { inode }
    }
}

fn listener(guest: &Guest) -> Option<&Listener> {
    match &guest.endpoint {
        Endpoint::Listen(listener) => Some(listener),
        Endpoint::Connect(_) => None,
    }
}
