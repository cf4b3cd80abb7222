//! The rings of a session: described, started, stopped, and what was in flight in them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{self, Receiver};

use vhost::vhost_user::message::{VhostUserVringAddr, VhostUserVringState};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::{Reply, Session, SessionError};
use crate::inflight::{InflightError, Recovered, Region, Tracker};
use crate::message::{Inflight, VringFd};
use crate::vring::Vring;
use crate::worker::Mail;

/// A ring as the front end has described it.
#[derive(Default)]
pub(super) struct RingSetup {
    pub(super) size: u16,
    pub(super) addresses: Option<VhostUserVringAddr>,
    pub(super) next_avail: u16,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    pub(super) enabled: bool,
    pub(super) running: bool,
}

impl Session {
    pub(super) fn set_ring_size(&mut self, state: VhostUserVringState) -> Result<Reply, SessionError> {
        let VhostUserVringState { index, num } = state;
        let most = self.offer.queue_size;
        let size = u16::try_from(num).ok().filter(|size| size.is_power_of_two() && *size <= most);
        let size = size.ok_or(SessionError::BadRingSize(num, most))?;
        self.stopped_ring(index)?.size = size;
        self.start_ring_if_ready(self.ring_index(index)?)?;
        Ok(Reply::None)
    }

    pub(super) fn set_ring_addresses(
        &mut self,
        addresses: VhostUserVringAddr,
    ) -> Result<Reply, SessionError> {
        let VhostUserVringAddr { index, flags, .. } = addresses;
        if flags != 0 {
            return Err(SessionError::BadRingAddress);
        }
        let at = self.ring_index(index)?;
        self.stop_ring(at)?;
        let before = self.rings[at].addresses.replace(addresses);
        if self.rings[at].size != 0
            && let Err(error) = self.build_queue(at)
        {
            self.rings[at].addresses = before;
            return Err(error);
        }
        self.start_ring_if_ready(at)?;
        Ok(Reply::None)
    }

    pub(super) fn set_ring_base(&mut self, state: VhostUserVringState) -> Result<Reply, SessionError> {
        let VhostUserVringState { index, num } = state;
        let next_avail = u16::try_from(num).map_err(|_| SessionError::BadRingBase(num))?;
        self.stopped_ring(index)?.next_avail = next_avail;
        self.start_ring_if_ready(self.ring_index(index)?)?;
        Ok(Reply::None)
    }

    pub(super) fn get_ring_base(&mut self, state: VhostUserVringState) -> Result<Reply, SessionError> {
        let index = state.index;
        let ring = self.stopped_ring(index)?;
        ring.kick = None;
        let words = [index, u32::from(ring.next_avail)];
        Ok(Reply::Body(words.iter().flat_map(|word| word.to_le_bytes()).collect()))
    }

    pub(super) fn set_ring_kick(&mut self, VringFd { index, fd }: VringFd) -> Result<Reply, SessionError> {
        let fd = fd.ok_or(SessionError::NoKick(index))?;
        check_eventfd(&fd)?;
        self.stopped_ring(index)?.kick = Some(fd);
        self.start_ring_if_ready(self.ring_index(index)?)?;
        Ok(Reply::None)
    }

    pub(super) fn set_ring_call(&mut self, VringFd { index, fd }: VringFd) -> Result<Reply, SessionError> {
        if let Some(call) = &fd {
            check_eventfd(call)?;
            set_nonblocking(call).map_err(SessionError::Descriptor)?;
        }
        let at = self.ring_index(index)?;
        if self.rings[at].running {
            let (reply, answer) = mpsc::channel();
            self.mailbox().send(Mail::SetCall { index: at, call: fd, reply });
            answer.recv().map_err(|_| SessionError::NoWorker)?;
        } else {
            self.rings[at].call = fd;
        }
        Ok(Reply::None)
    }

    pub(super) fn enable_ring(&mut self, state: VhostUserVringState) -> Result<Reply, SessionError> {
        let VhostUserVringState { index, num } = state;
        let at = self.ring_index(index)?;
        match num {
            0 => {
                self.stop_ring(at)?;
                self.rings[at].enabled = false;
            }
            1 => {
                self.rings[at].enabled = true;
                self.start_ring_if_ready(at)?;
            }
            _ => return Err(SessionError::BadEnable(num)),
        }
        Ok(Reply::None)
    }

    /// A region without bytes says that there is none.
    pub(super) fn get_inflight_fd(&self, wanted: Inflight) -> Result<Reply, SessionError> {
        let Inflight { queues, queue_size, .. } = wanted;
        let fits =
            (1..=self.offer.queues).contains(&queues) && (1..=self.offer.queue_size).contains(&queue_size);
        if !fits {
            return Err(InflightError::BadShape { queues, queue_size }.into());
        }
        match Region::create(queues, queue_size) {
            Ok((fd, size_bytes)) => Ok(Reply::BodyAndFd(wanted.answer(size_bytes), fd)),
            Err(error) => {
                log::warn!("event=no-inflight-region error=\"{error}\" the guest does not survive a kill");
                Ok(Reply::Body(wanted.answer(0)))
            }
        }
    }

    /// Keeps what is in flight in this region from now on. Rings that ran run on with it.
    pub(super) fn set_inflight_fd(&mut self, region: Inflight, fd: OwnedFd) -> Result<Reply, SessionError> {
        let Inflight { size_bytes, offset_bytes, queues, queue_size, .. } = region;
        if queues > self.offer.queues || queue_size > self.offer.queue_size {
            return Err(InflightError::BadShape { queues, queue_size }.into());
        }
        let region = Region::map(fd, offset_bytes, size_bytes, queues, queue_size)?;
        let ran = self.stop_rings(false)?;
        self.unrecovered = region.marked_queues();
        self.inflight = Some(region);
        ran.into_iter().try_for_each(|index| self.start_ring_if_ready(index))?;
        Ok(Reply::None)
    }

    fn ring_index(&self, index: u32) -> Result<usize, SessionError> {
        let count = self.rings.len();
        usize::try_from(index).ok().filter(|at| *at < count).ok_or(SessionError::NoSuchRing(index, count))
    }

    /// The ring at `index`, stopped so that it can be changed.
    fn stopped_ring(&mut self, index: u32) -> Result<&mut RingSetup, SessionError> {
        let at = self.ring_index(index)?;
        self.stop_ring(at)?;
        Ok(&mut self.rings[at])
    }

    pub(super) fn start_ring_if_ready(&mut self, at: usize) -> Result<(), SessionError> {
        let ring = &self.rings[at];
        if ring.running || !ring.enabled || ring.kick.is_none() || ring.addresses.is_none() || ring.size == 0
        {
            return Ok(());
        }
        let Some(mem) = self.mem.clone() else {
            return Err(SessionError::NoMemory);
        };
        let mut queue = self.build_queue(at)?;
        let (tracker, recovered) = self.recover_ring(at, &mut queue)?;
        let ring = &mut self.rings[at];
        let Some(kick) = ring.kick.take() else {
            return Ok(());
        };
        if tracker.is_some() && self.offer.role.looks_writable() {
            self.shared.recovery.note_running(self.worker);
        }
        let vring = Box::new(Vring::new(queue, mem, kick, ring.call.take(), self.features, tracker));
        let (reply, answer) = mpsc::channel();
        self.mailbox().send(Mail::Start { index: at, vring, features: self.features, recovered, reply });
        if let Err((error, vring)) = answer.recv().map_err(|_| SessionError::NoWorker)? {
            let (_, kick, call) = vring.into_parts();
            (self.rings[at].kick, self.rings[at].call) = (Some(kick), call);
            return Err(SessionError::Start { index: at, error });
        }
        self.rings[at].running = true;
        self.tell_new_capacity();
        self.unrecovered.retain(|&ring| ring != at);
        if self.unrecovered.is_empty() {
            self.shared.recovery.note_back(self.worker);
        }
        Ok(())
    }

    /// What was in flight in a ring that is about to run. What was taken is what the used index shows and what is in flight.
    fn recover_ring(
        &self,
        at: usize,
        queue: &mut Queue,
    ) -> Result<(Option<Tracker>, Recovered), SessionError> {
        let Some(region) = &self.inflight else {
            return Ok((None, Recovered::default()));
        };
        let used_index = queue.next_used();
        let (tracker, recovered) = region.recover(at, queue.size(), used_index)?;
        let in_flight = u16::try_from(recovered.count()).map_err(|_| SessionError::BadRingAddress)?;
        queue.set_next_avail(used_index.wrapping_add(in_flight));
        Ok((Some(tracker), recovered))
    }

    /// Whether the ring could run, as far as can be told without changing anything.
    pub(super) fn check_ring(&self, at: usize) -> Result<(), SessionError> {
        let queue = self.build_queue(at)?;
        if let Some(region) = &self.inflight {
            region.check(at, queue.size(), queue.next_used())?;
        }
        Ok(())
    }

    /// The queue as the front end has described it, checked against the memory.
    fn build_queue(&self, at: usize) -> Result<Queue, SessionError> {
        let ring = &self.rings[at];
        let mem = self.mem.as_ref().ok_or(SessionError::NoMemory)?;
        let addresses = ring.addresses.as_ref().ok_or(SessionError::BadRingAddress)?;
        let translate = |user_addr| self.memory.guest_address(user_addr).ok_or(SessionError::BadRingAddress);
        let [descriptors, available, used] =
            [addresses.descriptor, addresses.available, addresses.used].map(translate);
        let bad = |_| SessionError::BadRingAddress;
        let mut queue = Queue::new(self.offer.queue_size).map_err(bad)?;
        queue.try_set_size(ring.size).map_err(bad)?;
        let place: [GuestAddress; 3] = [descriptors?, available?, used?];
        queue.try_set_desc_table_address(place[0]).map_err(bad)?;
        queue.try_set_avail_ring_address(place[1]).map_err(bad)?;
        queue.try_set_used_ring_address(place[2]).map_err(bad)?;
        queue.set_ready(true);
        if !queue.is_valid(&**mem) {
            return Err(SessionError::BadRingAddress);
        }
        queue.set_event_idx(self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        queue.set_next_avail(ring.next_avail);
        let used_idx = queue.used_idx(&**mem, std::sync::atomic::Ordering::Acquire).map_err(bad)?;
        queue.set_next_used(used_idx.0);
        Ok(queue)
    }

    /// Stops the ring if it runs; returns once its last request has ended.
    fn stop_ring(&mut self, at: usize) -> Result<(), SessionError> {
        if !self.rings[at].running {
            return Ok(());
        }
        let answer = self.ask_to_stop(at, false);
        self.take_stopped(at, &answer)
    }

    /// Stops all rings at once and returns the indices of those that ran.
    pub(super) fn stop_rings(&mut self, abandon: bool) -> Result<Vec<usize>, SessionError> {
        let ran: Vec<usize> = (0..self.rings.len()).filter(|&at| self.rings[at].running).collect();
        let answers: Vec<_> = ran.iter().map(|&at| self.ask_to_stop(at, abandon)).collect();
        for (&at, answer) in ran.iter().zip(&answers) {
            self.take_stopped(at, answer)?;
        }
        Ok(ran)
    }

    fn ask_to_stop(&self, at: usize, abandon: bool) -> Receiver<Box<Vring>> {
        let (reply, answer) = mpsc::channel();
        self.mailbox().send(Mail::Stop { index: at, abandon, reply });
        answer
    }

    fn take_stopped(&mut self, at: usize, answer: &Receiver<Box<Vring>>) -> Result<(), SessionError> {
        let vring = answer.recv().map_err(|_| SessionError::NoWorker)?;
        let (next_avail, kick, call) = vring.into_parts();
        let ring = &mut self.rings[at];
        (ring.running, ring.next_avail, ring.kick, ring.call) = (false, next_avail, Some(kick), call);
        if self.rings.iter().all(|ring| !ring.running) {
            self.shared.recovery.note_idle(self.worker);
        }
        Ok(())
    }
}

/// Anything else might block the worker when it is watched or written to.
fn check_eventfd(fd: &OwnedFd) -> Result<(), SessionError> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let target = link.map_err(SessionError::Descriptor)?;
    if target.as_os_str() == "anon_inode:[eventfd]" { Ok(()) } else { Err(SessionError::NotAnEventfd) }
}

/// The descriptor is the front end's: a full counter must not block the worker.
fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
