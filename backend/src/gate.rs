//! Where the workers meet: the one order, and the mailboxes in which they tell each other what may run.
//!
//! Invariant: a parked request is granted exactly once, by mail to the worker that owns it, and only after every
//! conflicting request admitted before it was released. A worker never waits for another inside the gate: the lock is
//! held for the table alone.

use std::collections::VecDeque;
use std::io;
use std::sync::PoisonError;
#[cfg(not(shuttle))]
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(shuttle))]
use std::sync::{Mutex, MutexGuard};

#[cfg(shuttle)]
use shuttle::sync::atomic::{AtomicBool, Ordering};
#[cfg(shuttle)]
use shuttle::sync::{Mutex, MutexGuard};
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

/// The table while it is held; see [`Gate::enter`].
#[derive(Debug)]
pub struct Entrance<'a> {
    order: MutexGuard<'a, Order<Waiter>>,
    is_open: bool,
}

/// Messages to one worker.
#[derive(Debug)]
pub struct Mailbox {
    queue: Mutex<VecDeque<Mail>>,
    /// Whether there may be messages, so that nobody takes the lock to find none.
    has_mail: AtomicBool,
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

    /// Opens the table to admit a batch under one lock. What is not dropped soon makes everybody wait.
    pub fn enter(&self) -> Entrance<'_> {
        Entrance { order: self.lock(), is_open: self.is_open }
    }

    /// Ends granted requests under one lock, leaving `tickets` empty. Requests of `worker` itself that may run now are
    /// added to `granted`; the workers of others are told.
    pub fn release(&self, worker: usize, tickets: &mut Vec<Ticket>, granted: &mut Vec<Waiter>) {
        if tickets.is_empty() {
            return;
        }
        let mut order = self.lock();
        tickets.drain(..).for_each(|ticket| order.release(ticket, granted));
        drop(order);
        granted.retain(|waiter| {
            let is_own = waiter.worker == worker;
            if !is_own {
                self.mailbox(waiter.worker).send(Mail::Granted(waiter.token));
            }
            is_own
        });
    }

    fn lock(&self) -> MutexGuard<'_, Order<Waiter>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mailbox of a worker, by index.
    #[must_use]
    pub fn mailbox(&self, worker: usize) -> &Mailbox {
        &self.mailboxes[worker]
    }
}

impl Entrance<'_> {
    /// Admits a request; see [`Order::admit`].
    pub fn admit(&mut self, ranges: &[ByteRange], access: Access, waiter: Waiter) -> Admission {
        self.order.admit(if self.is_open { &[] } else { ranges }, access, waiter)
    }
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { queue: Mutex::new(VecDeque::new()), has_mail: AtomicBool::new(false), wake })
    }

    /// Leaves a message and wakes the worker.
    pub fn send(&self, mail: Mail) {
        let mut queue = self.lock();
        queue.push_back(mail);
        self.has_mail.store(true, Ordering::Release);
        drop(queue);
        self.wake_up();
    }

    /// Has the worker look around.
    pub fn wake_up(&self) {
        // The only failure is a full counter: then the worker is awake already.
        let _ = self.wake.write(1);
    }

    /// The oldest message.
    pub fn receive(&self) -> Option<Mail> {
        if !self.has_mail() {
            return None;
        }
        let mut queue = self.lock();
        let mail = queue.pop_front();
        self.has_mail.store(!queue.is_empty(), Ordering::Release);
        mail
    }

    /// Whether [`Mailbox::receive`] has something.
    #[must_use]
    pub fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Mail>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, shuttle))]
#[path = "gate_tests.rs"]
mod tests;
