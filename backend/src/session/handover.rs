//! A session that goes from one process to another, with its connection, its memory and its rings.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserMemoryRegion, VhostUserVringAddr, VhostUserVringAddrFlags};

use super::rings::RingSetup;
use super::{Offer, Session, SessionError};
use crate::handover::{FdIndex, GivenSession, InflightState, RegionState, RingState, SessionState};
use crate::inflight::Region;
use crate::memory::MemoryTable;
use crate::shared::Shared;

/// Descriptors on their way to another process.
#[derive(Default)]
struct Leaving(Vec<OwnedFd>);

/// Descriptors that came from another process.
struct Arrived(VecDeque<Option<OwnedFd>>);

impl Leaving {
    fn add(&mut self, fd: BorrowedFd<'_>) -> io::Result<FdIndex> {
        self.0.push(fd.try_clone_to_owned()?);
        Ok(self.0.len() - 1)
    }

    fn add_any(&mut self, fd: Option<&OwnedFd>) -> io::Result<Option<FdIndex>> {
        fd.map(|fd| self.add(fd.as_fd())).transpose()
    }
}

impl Arrived {
    fn take(&mut self, index: FdIndex) -> Result<OwnedFd, SessionError> {
        self.0.get_mut(index).and_then(Option::take).ok_or(SessionError::BadHandover)
    }

    fn take_any(&mut self, index: Option<FdIndex>) -> Result<Option<OwnedFd>, SessionError> {
        index.map(|index| self.take(index)).transpose()
    }
}

impl Session {
    /// Stops all rings and says what another process needs to go on with this session, which talks over `stream`.
    ///
    /// # Errors
    /// When this process has no descriptors left.
    pub fn give(&mut self, stream: BorrowedFd<'_>) -> Result<GivenSession, SessionError> {
        self.paused = self.stop_rings(false)?;
        self.describe(stream).map_err(SessionError::Descriptor)
    }

    /// Runs the rings that [`Session::give`] has stopped, here or in the process that had the session.
    ///
    /// # Errors
    /// As for [`Session::apply`].
    pub fn resume(&mut self) -> Result<(), SessionError> {
        std::mem::take(&mut self.paused).into_iter().try_for_each(|ring| self.start_ring_if_ready(ring))
    }

    fn describe(&self, stream: BorrowedFd<'_>) -> io::Result<GivenSession> {
        let mut fds = Leaving::default();
        let stream = fds.add(stream)?;
        let region = |(region, fd): (VhostUserMemoryRegion, BorrowedFd<'_>)| {
            let VhostUserMemoryRegion { guest_phys_addr, memory_size, user_addr, mmap_offset } = region;
            io::Result::Ok(RegionState {
                fd: fds.add(fd)?,
                guest_addr: guest_phys_addr,
                user_addr,
                size_bytes: memory_size,
                offset_bytes: mmap_offset,
            })
        };
        let memory = self.memory.regions().map(region).collect::<io::Result<_>>()?;
        let inflight = self.inflight.as_ref().and_then(|region| Some((region, region.file()?)));
        let inflight = inflight.map(|(region, (fd, offset_bytes))| {
            let (queues, queue_size) = region.shape();
            io::Result::Ok(InflightState { fd: fds.add(fd)?, offset_bytes, queues, queue_size })
        });
        let ring = |(index, ring): (usize, &RingSetup)| {
            io::Result::Ok(RingState {
                size: ring.size,
                addresses: ring.addresses.map(|a| [a.descriptor, a.available, a.used]),
                next_avail: ring.next_avail,
                kick: fds.add_any(ring.kick.as_ref())?,
                call: fds.add_any(ring.call.as_ref())?,
                is_enabled: ring.enabled,
                ran: self.paused.contains(&index),
            })
        };
        let inflight = inflight.transpose()?;
        let rings = self.rings.iter().enumerate().map(ring).collect::<io::Result<_>>()?;
        let channel = self.shared.channels.duplicate(self.worker)?;
        let channel = fds.add_any(channel.as_ref())?;
        let state = SessionState {
            stream,
            channel,
            is_owned: self.is_owned,
            features: self.features,
            protocol_features: self.protocol_features,
            known_capacity_bytes: self.known_capacity_bytes,
            memory,
            inflight,
            rings,
        };
        Ok(GivenSession { state, fds: fds.0 })
    }

    /// The session that another process has given away, and its connection. Its rings run from [`Session::resume`] on; until then
    /// nothing is written to the guest's memory and files, since the other process may still go on with them.
    ///
    /// # Errors
    /// When this process cannot offer the same, or cannot map the guest's memory.
    pub fn restore(
        shared: &Arc<Shared>,
        worker: usize,
        offer: Offer,
        given: GivenSession,
    ) -> Result<(UnixStream, Self), SessionError> {
        let GivenSession { state, fds } = given;
        let mut fds = Arrived(fds.into_iter().map(Some).collect());
        let stream = UnixStream::from(fds.take(state.stream)?);
        let mut session = Self::new(Arc::clone(shared), worker, offer);
        match session.restore_all(state, &mut fds) {
            Ok(()) => Ok((stream, session)),
            Err(error) => {
                session.end(false);
                Err(error)
            }
        }
    }

    fn restore_all(&mut self, state: SessionState, fds: &mut Arrived) -> Result<(), SessionError> {
        self.is_owned = state.is_owned;
        self.known_capacity_bytes = state.known_capacity_bytes;
        self.set_protocol_features(state.protocol_features)?;
        self.set_features(state.features)?;
        if !self.shared.channels.set(self.worker, fds.take_any(state.channel)?) {
            return Err(SessionError::NotASocket);
        }
        // What this process does not offer is looked at first: it is its operator's mistake, not the front end's.
        self.check_offer(&state.rings)?;
        let region = |region: RegionState| {
            let RegionState { fd, guest_addr, user_addr, size_bytes, offset_bytes } = region;
            Ok((VhostUserMemoryRegion::new(guest_addr, size_bytes, user_addr, offset_bytes), fds.take(fd)?))
        };
        let regions = state.memory.into_iter().map(region).collect::<Result<_, SessionError>>()?;
        self.memory = MemoryTable::new(regions)?;
        self.mem = self.memory.mem()?;
        if let Some(InflightState { fd, offset_bytes, queues, queue_size }) = state.inflight {
            let region = Region::map(fds.take(fd)?, offset_bytes, u64::MAX, queues, queue_size)?;
            self.unrecovered = region.marked_queues();
            self.inflight = Some(region);
        }
        let count = self.rings.len();
        for (index, ring) in state.rings.into_iter().take(count).enumerate() {
            self.restore_ring(index, &ring, fds)?;
        }
        self.paused.iter().try_for_each(|&ring| self.check_ring(ring))
    }

    fn check_offer(&self, rings: &[RingState]) -> Result<(), SessionError> {
        let (count, offered) = (self.rings.len(), u32::from(self.offer.queues));
        if let Some(beyond) = rings.iter().skip(count).position(RingState::is_used) {
            return Err(SessionError::NoSuchRing(offered + u32::try_from(beyond).unwrap_or(0), count));
        }
        match rings.iter().find(|ring| ring.size > self.offer.queue_size) {
            Some(ring) => Err(SessionError::BadRingSize(ring.size.into(), self.offer.queue_size)),
            None => Ok(()),
        }
    }

    fn restore_ring(
        &mut self,
        index: usize,
        state: &RingState,
        fds: &mut Arrived,
    ) -> Result<(), SessionError> {
        let number = u32::try_from(index).map_err(|_| SessionError::BadHandover)?;
        let addresses = |[descriptor, available, used]: [u64; 3]| {
            let flags = VhostUserVringAddrFlags::empty();
            VhostUserVringAddr::new(number, flags, descriptor, used, available, 0)
        };
        self.rings[index] = RingSetup {
            size: state.size,
            addresses: state.addresses.map(addresses),
            next_avail: state.next_avail,
            kick: fds.take_any(state.kick)?,
            call: fds.take_any(state.call)?,
            enabled: state.is_enabled,
            running: false,
        };
        self.paused.extend(state.ran.then_some(index));
        Ok(())
    }
}

impl RingState {
    /// Whether the front end has said anything of it.
    fn is_used(&self) -> bool {
        self.size != 0 || self.addresses.is_some() || self.kick.is_some() || self.call.is_some()
    }
}
