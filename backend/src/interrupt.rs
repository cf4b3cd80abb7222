//! What ends the waits of the threads that hear front ends and operators: the process stops, or pauses while another one
//! takes its place.
//!
//! Invariants:
//! 1. The event is readable exactly while the process stops or pauses.
//! 2. A thread that has parked hears nobody until the pause is over: what it would hear is the next process's.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use crate::handover::GivenSession;
use crate::session::SessionError;

/// What a thread has to give to the next process: nothing, if no front end is connected.
pub type Gift = Result<Option<GivenSession>, SessionError>;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Running,
    /// Threads park.
    Pausing,
    /// Those that have parked say what they have.
    Giving,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// Threads.
    parked: BTreeSet<usize>,
    /// By thread.
    gifts: Vec<(usize, Gift)>,
}

/// See the module.
#[derive(Debug)]
pub struct Interrupt {
    event: OwnedFd,
    threads: usize,
    is_stopping: AtomicBool,
    is_pausing: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Interrupt {
    /// For this many threads that wait.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(threads: usize) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let [is_stopping, is_pausing] = [(); 2].map(|()| AtomicBool::new(false));
        let (state, changed) = (Mutex::new(State::default()), Condvar::new());
        Ok(Self { event, threads, is_stopping, is_pausing, state, changed })
    }

    /// Readable while threads should look here.
    #[must_use]
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Ends all waits for good.
    ///
    /// # Errors
    /// When the kernel refuses, which it should not.
    pub fn stop(&self) -> io::Result<()> {
        let _state = self.lock();
        self.is_stopping.store(true, Ordering::Release);
        self.raise()
    }

    /// Whether the process stops.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Whether threads are to park.
    #[must_use]
    pub fn is_pausing(&self) -> bool {
        self.is_pausing.load(Ordering::Acquire)
    }

    /// Parks `thread` until the pause is over; returns at once if there is none. If the next process wants to know what
    /// the thread has, `give` is called.
    pub fn park(&self, thread: usize, give: impl FnOnce() -> Gift) {
        let mut state = self.lock();
        if state.phase == Phase::Running {
            return;
        }
        state.parked.insert(thread);
        self.changed.notify_all();
        state = self.wait_while(state, Phase::Pausing);
        if state.phase == Phase::Giving {
            drop(state);
            let gift = give();
            state = self.lock();
            state.gifts.push((thread, gift));
            self.changed.notify_all();
            state = self.wait_while(state, Phase::Giving);
        }
        state.parked.remove(&thread);
        self.changed.notify_all();
    }

    /// Has all threads park; returns the first of those that have not until `deadline`.
    ///
    /// # Errors
    /// When the kernel refuses, which it should not.
    pub fn pause(&self, deadline: Instant) -> io::Result<Option<usize>> {
        let mut state = self.lock();
        state.phase = Phase::Pausing;
        self.is_pausing.store(true, Ordering::Release);
        self.raise()?;
        while let Some(missing) = (0..self.threads).find(|thread| !state.parked.contains(thread)) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Ok(Some(missing));
            };
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(None)
    }

    /// What the parked threads have, by thread.
    pub fn collect(&self) -> Vec<(usize, Gift)> {
        let mut state = self.lock();
        state.phase = Phase::Giving;
        self.changed.notify_all();
        while state.gifts.len() < self.threads {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut gifts = std::mem::take(&mut state.gifts);
        gifts.sort_by_key(|(thread, _)| *thread);
        gifts
    }

    /// Ends the pause; returns once no thread is parked.
    pub fn resume(&self) {
        let mut state = self.lock();
        state.phase = Phase::Running;
        self.is_pausing.store(false, Ordering::Release);
        if !self.is_stopping() {
            // Nothing to read means that nothing was raised.
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
        self.changed.notify_all();
        while !state.parked.is_empty() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn raise(&self) -> io::Result<()> {
        // Nobody but `resume` reads it: it stays readable for every thread.
        rustix::io::write(&self.event, &1u64.to_ne_bytes())?;
        Ok(())
    }

    fn wait_while<'a>(&self, mut state: MutexGuard<'a, State>, phase: Phase) -> MutexGuard<'a, State> {
        while state.phase == phase {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::wire::{is_readable, sleep_until_readable};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn threads_park_give_and_go_on() {
        let interrupt = Interrupt::new(3).unwrap();
        let (rounds, given) = (50, AtomicUsize::new(0));
        thread::scope(|scope| {
            for number in 0..3 {
                let (interrupt, given) = (&interrupt, &given);
                scope.spawn(move || {
                    while !interrupt.is_stopping() {
                        sleep_until_readable(interrupt.event(), LONG);
                        interrupt.park(number, || {
                            given.fetch_add(1, Ordering::AcqRel);
                            Ok(None)
                        });
                    }
                });
            }
            for round in 0..rounds {
                assert_eq!(interrupt.pause(Instant::now() + LONG).unwrap(), None);
                if round % 2 == 0 {
                    let threads: Vec<usize> = interrupt.collect().iter().map(|(thread, _)| *thread).collect();
                    assert_eq!(threads, [0, 1, 2]);
                }
                interrupt.resume();
                assert!(!is_readable(interrupt.event()));
            }
            interrupt.stop().unwrap();
        });
        assert_eq!(given.into_inner(), 3 * rounds / 2);
    }

    #[test]
    fn thread_that_does_not_park_ends_the_pause() {
        let interrupt = Interrupt::new(1).unwrap();
        assert_eq!(interrupt.pause(Instant::now()).unwrap(), Some(0));
        interrupt.resume();
        interrupt.park(0, || panic!("there is no pause"));
        interrupt.stop().unwrap();
        interrupt.resume();
        assert!(is_readable(interrupt.event()), "a stop is for good");
    }
}
