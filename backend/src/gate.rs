//! Where the workers meet: the one order, and the mailboxes in which they tell each other what may run.
//!
//! Invariant: a parked request is granted exactly once, by mail to the worker that owns it, and only after every
//! conflicting request admitted before it was released. A worker never waits for another inside the gate: the lock is
//! held for the table alone.

use std::collections::VecDeque;
use std::io;
#[cfg(not(shuttle))]
use std::sync::Mutex;
use std::sync::PoisonError;

#[cfg(shuttle)]
use shuttle::sync::Mutex;
use vmm_sys_util::eventfd::EventFd;

use crate::order::{Access, Admission, ByteRange, Order, Ticket};
use crate::syncer::Waiter;
use crate::worker::Mail;

/// One per process.
#[derive(Debug)]
pub struct Gate {
    order: Mutex<Order<Waiter>>,
    mailboxes: Vec<Mailbox>,
    /// Whether requests are let through without an order: to show what tests find then.
    is_open: bool,
}

/// Messages to one worker.
#[derive(Debug)]
pub struct Mailbox {
    queue: Mutex<VecDeque<Mail>>,
    /// Readable while messages may wait.
    pub wake: EventFd,
}

impl Gate {
    /// A gate for `workers` workers; if `is_open`, one without any order.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(workers: usize, is_open: bool) -> io::Result<Self> {
        let mailboxes = (0..workers).map(|_| Mailbox::new()).collect::<io::Result<_>>()?;
        Ok(Self { order: Mutex::new(Order::default()), mailboxes, is_open })
    }

    /// Admits a request; see [`Order::admit`].
    pub fn admit(&self, ranges: &[ByteRange], access: Access, waiter: Waiter) -> Admission {
        let ranges = if self.is_open { &[] } else { ranges };
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

#[cfg(all(test, shuttle))]
#[path = "gate_tests.rs"]
mod tests;
