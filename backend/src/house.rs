//! The threads that hear front ends and operators: all of them made before the first one hears anybody, and ended when the
//! process stops.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::error::StartError;
use crate::guest::{Front, Guest};
use crate::interrupt::Interrupt;
use crate::limits::{STOP_DEADLINE_SECONDS, STOP_PATIENCE_MS};
use crate::operator::Operator;
use crate::server::{last_sync, system};
use crate::shared::Shared;
use crate::socket::Listener;

/// Who is heard, and by whom.
#[derive(Debug, Clone, Copy)]
pub struct House<'a> {
    /// Knows everything that guests share.
    pub shared: &'a Arc<Shared>,
    /// Carries out commands.
    pub operator: &'a Operator,
    /// Ends all waits.
    pub interrupt: &'a Interrupt,
    /// All guests.
    pub guests: &'a [Guest],
    /// Hears operators.
    pub control: &'a Control<'a>,
}

/// Threads that wait for [`Threads::begin`]; if it does not come, they end.
pub struct Threads {
    guests: Vec<Sender<Option<Front>>>,
    others: Vec<Sender<()>>,
    ended: Receiver<usize>,
}

/// Tells which guests' threads have ended.
#[derive(Debug)]
pub struct Ended(Receiver<usize>);

impl<'a> House<'a> {
    /// Makes all threads.
    ///
    /// # Errors
    /// When the system has no more of them.
    pub fn start_threads<'s>(
        self,
        scope: &'s Scope<'s, 'a>,
        listener: Option<&'a Listener>,
    ) -> Result<Threads, StartError>
    where
        'a: 's,
    {
        let (tell_ended, ended) = mpsc::channel();
        let mut threads = Threads { guests: Vec::new(), others: Vec::new(), ended };
        for guest in self.guests {
            let (begin, begins) = mpsc::channel();
            let tell_ended = tell_ended.clone();
            threads.guests.push(begin);
            spawn(scope, format!("guest-{}", guest.name), move || {
                if let Ok(front) = begins.recv() {
                    guest.serve(self.shared, self.interrupt, front);
                }
                // Nobody waits where the process has not begun.
                let _ = tell_ended.send(guest.worker);
            })?;
        }
        let mut other = |name: &str, run: Box<dyn FnOnce() + Send + 's>| {
            let (begin, begins) = mpsc::channel();
            threads.others.push(begin);
            spawn(scope, name.into(), move || {
                if begins.recv().is_ok() {
                    run()
                }
            })
        };
        other("recovery", Box::new(move || self.shared.run_recovery()))?;
        if let Some(listener) = listener {
            let thread = self.guests.len();
            other("control", Box::new(move || self.control.serve(listener, self.interrupt, thread, scope)))?;
        }
        Ok(threads)
    }

    /// Ends all waits, and returns once the guests' requests are answered. A front end that cannot be got rid of holds up nobody:
    /// the process then ends here.
    pub fn stop(self, listener: Option<&Listener>, ended: &Ended) {
        let deadline = start_stop_deadline();
        // A replacement comes to its end first: either this process goes on, or it is gone.
        let _command = self.operator.begin_command();
        self.shared.recovery.stop();
        self.guests.iter().for_each(|guest| guest.endpoint.close());
        listener.into_iter().for_each(Listener::close);
        if let Err(error) = self.interrupt.stop() {
            log::error!("event=stop-failed error=\"{error}\"");
            std::process::exit(1);
        }
        self.control.connections.close();
        let mut left: BTreeSet<usize> = self.guests.iter().map(|guest| guest.worker).collect();
        if ended.wait(&mut left) || !self.shared.close_rings(deadline) || ended.wait(&mut left) {
            return;
        }
        for guest in self.guests.iter().filter(|guest| left.contains(&guest.worker)) {
            log::error!(
                "guest={} event=front-end-stuck what it has handed over cannot be closed; its requests are answered",
                guest.name
            );
        }
        let code = last_sync(self.shared, self.operator).map_or_else(
            |error| {
                log::error!("event=stop-failed error=\"{error}\"");
                1
            },
            |()| 0,
        );
        std::process::exit(code);
    }
}

impl Threads {
    /// Lets them hear whoever there is; each guest's first front end may be connected already.
    #[must_use]
    pub fn begin(self, fronts: Vec<Option<Front>>) -> Ended {
        for (begin, front) in self.guests.into_iter().zip(fronts) {
            // A thread waits for nothing else.
            let _ = begin.send(front);
        }
        self.others.into_iter().for_each(|begin| begin.send(()).unwrap_or(()));
        Ended(self.ended)
    }
}

impl Ended {
    /// Waits for the guests `left`, not for long; true if they have ended.
    fn wait(&self, left: &mut BTreeSet<usize>) -> bool {
        let deadline = Instant::now() + Duration::from_millis(STOP_PATIENCE_MS);
        while !left.is_empty() {
            let time = deadline.saturating_duration_since(Instant::now());
            match self.0.recv_timeout(time) {
                Ok(guest) => left.remove(&guest),
                Err(_) => return false,
            };
        }
        true
    }
}

fn spawn<'s>(
    scope: &'s Scope<'s, '_>,
    name: String,
    run: impl FnOnce() + Send + 's,
) -> Result<(), StartError> {
    let thread = thread::Builder::new().name(name).spawn_scoped(scope, run);
    thread.map(|_| ()).map_err(system("cannot start a thread"))
}

/// A disk that hangs must not keep the process for ever.
fn start_stop_deadline() -> Instant {
    let longest = Duration::from_secs(STOP_DEADLINE_SECONDS);
    let deadline = thread::Builder::new().spawn(move || {
        thread::sleep(longest);
        log::error!("event=stop-timed-out seconds={STOP_DEADLINE_SECONDS} requests are still in flight");
        std::process::exit(1);
    });
    if let Err(error) = deadline {
        log::warn!("event=no-stop-deadline error=\"{error}\" the stop may take longer");
    }
    Instant::now() + longest
}
