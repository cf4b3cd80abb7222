//! What all guests share: the disk, the order of requests on it, and the workers' mailboxes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::disk::Disk;
use crate::order::{Access, Admission, ByteRange, Order, Ticket};
use crate::stats::GuestStats;
use crate::syncer::{Syncer, Waiter};
use crate::worker::Mail;

/// One per process.
#[derive(Debug)]
pub struct Shared {
    /// The disk.
    pub disk: Disk,
    /// The slow operations of the disk.
    pub syncer: Syncer,
    order: Mutex<Order<Waiter>>,
    mailboxes: Vec<Mailbox>,
    stats: Vec<GuestStats>,
}

/// Messages to one worker.
#[derive(Debug)]
pub struct Mailbox {
    queue: Mutex<VecDeque<Mail>>,
    /// Readable while messages may wait.
    pub wake: EventFd,
}

impl Shared {
    /// State for `workers` workers on `disk`.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(disk: Disk, workers: usize) -> io::Result<Self> {
        let mailboxes = (0..workers).map(|_| Mailbox::new()).collect::<io::Result<_>>()?;
        Ok(Self {
            disk,
            syncer: Syncer::default(),
            order: Mutex::new(Order::default()),
            mailboxes,
            stats: (0..workers).map(|_| GuestStats::default()).collect(),
        })
    }

    /// Admits a request; see [`Order::admit`].
    pub fn admit(&self, ranges: &[ByteRange], access: Access, waiter: Waiter) -> Admission {
        self.order.lock().unwrap_or_else(PoisonError::into_inner).admit(ranges, access, waiter)
    }

    /// Ends a granted request and tells the workers of those that may run now.
    pub fn release(&self, ticket: Ticket) {
        let mut granted = Vec::new();
        self.order.lock().unwrap_or_else(PoisonError::into_inner).release(ticket, &mut granted);
        for waiter in granted {
            self.mailbox(waiter.worker).send(Mail::Granted(waiter.token));
        }
    }

    /// Carries out slow operations until the syncer is stopped, and calls `poisoned` before any guest
    /// learns that a sync has failed. One thread calls this.
    pub fn run_syncer(&self, poisoned: impl Fn()) {
        self.syncer.run(&self.disk, &|waiter, result| {
            if self.disk.take_poison_news() {
                poisoned();
            }
            let mail = Mail::SlowDone { token: waiter.token, result };
            self.mailbox(waiter.worker).send(mail);
        });
    }

    /// The counters of a worker's guest, by index.
    #[must_use]
    pub fn stats(&self, worker: usize) -> &GuestStats {
        &self.stats[worker]
    }

    /// The mailbox of a worker, by index.
    #[must_use]
    pub fn mailbox(&self, worker: usize) -> &Mailbox {
        &self.mailboxes[worker]
    }
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { queue: Mutex::new(VecDeque::new()), wake })
    }

    /// Leaves a message and wakes the worker.
    pub fn send(&self, mail: Mail) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(mail);
        // The only failure is a full counter: then the worker is awake already.
        let _ = self.wake.write(1);
    }

    /// The oldest message.
    pub fn receive(&self) -> Option<Mail> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}
