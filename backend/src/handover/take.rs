//! The process that takes over. Nothing outside it changes until it says that all is taken.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::link::{Link, LinkError};
use super::{Given, GivenGuest, GivenSession, ListenerState, Offer, OfferedGuest, PROTOCOL, Ready, Taken};
use crate::args::{Config, GuestConfig};
use crate::control::ControlCommand;
use crate::crash::{self, Point};
use crate::error::StartError;
use crate::guest::{Front, Guest};
use crate::image::{CacheMode, Image, ImageOptions};
use crate::limits::{HANDOVER_PREPARE_SECONDS, MAX_CONTROL_LINE_BYTES};
use crate::session::Session;
use crate::shared::Shared;
use crate::socket::Listener;
use crate::state::State;

/// A running process that is being replaced.
#[derive(Debug)]
pub struct Takeover {
    stream: UnixStream,
    offer: Offer,
    /// Those that came with the offer and are not used yet.
    fds: VecDeque<OwnedFd>,
}

impl Takeover {
    /// Asks the process that listens at `control` to be replaced.
    ///
    /// # Errors
    /// [`StartError::NothingToReplace`] when none listens, [`StartError::Replace`] says why it does not want to.
    pub fn begin(control: &Path) -> Result<Self, StartError> {
        let stream = UnixStream::connect(control)
            .map_err(|error| StartError::NothingToReplace { control: control.into(), error })?;
        ask(&stream).map_err(refused)?;
        let (offer, fds) = Link(&stream).receive(patience()).map_err(failed)?;
        crash::here(Point::Offered);
        Ok(Self { stream, offer, fds: fds.into() })
    }

    /// Checks that nothing is asked for that a running guest could not be told.
    ///
    /// # Errors
    /// [`StartError::Replace`] names it.
    pub fn check(&self, config: &Config) -> Result<(), StartError> {
        let (told, asked) = (&self.offer.guests, &config.guests);
        let here = |name: &String| asked.iter().any(|guest| guest.name == *name);
        let there = |name: &String| told.iter().any(|guest| guest.name == *name);
        if let Some(guest) = told.iter().find(|guest| !here(&guest.name)) {
            return Err(refused(format!("guest {} is served and has no --guest", guest.name)));
        }
        if let Some(guest) = asked.iter().find(|guest| !there(&guest.name)) {
            return Err(refused(format!(
                "guest {} is not served yet; adding it takes a restart",
                guest.name
            )));
        }
        for (told, asked) in told.iter().zip(asked) {
            check_guest(told, asked)?;
        }
        let state_file = config.state.display().to_string();
        if self.offer.state_file != state_file {
            return Err(refused(format!("the state file is {}, not {state_file}", self.offer.state_file)));
        }
        if config.record.is_some() {
            return Err(refused("--record begins with the disk, not in its middle".into()));
        }
        Ok(())
    }

    /// The image with its locks.
    ///
    /// # Errors
    /// When the path leads to another one.
    pub fn image(&mut self, options: &ImageOptions) -> Result<Image, StartError> {
        let reader = self.next_fd()?.into();
        let writer = if self.offer.is_writable { Some(self.next_fd()?.into()) } else { None };
        let cache = if self.offer.is_direct { CacheMode::Direct } else { CacheMode::Page };
        if self.offer.is_writable != options.writable {
            return Err(refused("some guest may write in only one of both".into()));
        }
        // Direct IO that was refused has become the page cache.
        if self.offer.is_direct && options.cache == CacheMode::Page {
            return Err(refused("--cache cannot change while guests use the image".into()));
        }
        Image::adopted(&options.path, reader, writer, cache, self.offer.capacity_bytes).map_err(refused)
    }

    /// Where the supervisor of the running process listens, if it has one.
    #[must_use]
    pub fn supervisor(&self) -> Option<String> {
        self.offer.supervisor.clone()
    }

    /// Checks that the decisions in the state file are those of the running process. Its version has been looked at.
    ///
    /// # Errors
    /// [`StartError::Replace`] if they are not.
    pub fn check_state(&self, state: &State) -> Result<(), StartError> {
        if self.offer.state == *state {
            return Ok(());
        }
        Err(refused(format!("{} does not hold what the running backend goes by", self.offer.state_file)))
    }

    /// The control socket at `path`.
    ///
    /// # Errors
    /// When it is none.
    pub fn control(&mut self, path: &Path) -> Result<Listener, StartError> {
        self.next_listener(path, self.offer.control)
    }

    /// The socket at `path` on which the guest is listened for.
    ///
    /// # Errors
    /// When there is none.
    pub fn listener(&mut self, guest: usize, path: &Path) -> Result<Listener, StartError> {
        let state = self.offer.guests[guest].listener;
        self.next_listener(path, state.ok_or_else(|| refused(format!("no socket for {}", path.display())))?)
    }

    /// Has all guests pause, and takes them: their rings are known to be such as can run, but none runs yet. From here on the
    /// other process is gone.
    ///
    /// # Errors
    /// [`StartError::Replace`]; the other process goes on.
    pub fn cross(self, shared: &Arc<Shared>, guests: &[Guest]) -> Result<Vec<Option<Front>>, StartError> {
        let link = Link(&self.stream);
        crash::here(Point::Prepared);
        link.send(&Ready {}, &[], patience()).map_err(failed)?;
        let (given, fds) = link.receive::<Given>(patience()).map_err(failed)?;
        crash::here(Point::Given);
        let fronts = restore(given, fds.into(), shared, guests)?;
        crash::here(Point::Restored);
        link.send(&Taken {}, &[], patience()).map_err(failed)?;
        crash::here(Point::Taken);
        Ok(fronts)
    }

    fn next_fd(&mut self) -> Result<OwnedFd, StartError> {
        self.fds.pop_front().ok_or_else(|| refused("a descriptor is missing".into()))
    }

    fn next_listener(&mut self, path: &Path, state: ListenerState) -> Result<Listener, StartError> {
        let listener = Listener::borrowed(UnixListener::from(self.next_fd()?), path, state);
        listener.map_err(|error| refused(format!("socket {}: {error}", path.display())))
    }
}

fn check_guest(told: &OfferedGuest, asked: &GuestConfig) -> Result<(), StartError> {
    let name = &told.name;
    if *name != asked.name {
        return Err(refused(format!("guest {name} comes where --guest {} is", asked.name)));
    }
    if told.access != asked.role {
        let (told, asked) = (told.access.name(), asked.role.name());
        return Err(refused(format!(
            "guest {name} was told access={told}, not {asked}; see ctl fence and takeover"
        )));
    }
    let endpoint = asked.endpoint.to_string();
    if told.endpoint != endpoint {
        return Err(refused(format!("guest {name} has {}, not {endpoint}", told.endpoint)));
    }
    Ok(())
}

fn restore(
    given: Given,
    mut fds: VecDeque<OwnedFd>,
    shared: &Arc<Shared>,
    guests: &[Guest],
) -> Result<Vec<Option<Front>>, StartError> {
    shared.disk.set_poisoned(given.is_poisoned);
    if given.guests.len() != guests.len() || given.guests.iter().map(|g| g.fds).sum::<usize>() != fds.len() {
        return Err(refused("guests or descriptors are missing".into()));
    }
    let (mut fronts, mut spoiled) = (Vec::new(), Vec::new());
    for (GivenGuest { session, fds: count }, guest) in given.guests.into_iter().zip(guests) {
        let own: Vec<OwnedFd> = fds.drain(..count).collect();
        let restored = session.map(|state| {
            Session::restore(shared, guest.worker, guest.offer, GivenSession { state, fds: own })
        });
        fronts.push(match restored.transpose() {
            Ok(front) => front.map(|(stream, session)| Front { stream, session }),
            Err(error) if error.is_the_front_ends() => {
                spoiled.push(format!("guest={} event=connection-dropped error=\"{error}\"", guest.name));
                None
            }
            Err(error) => return Err(refused(format!("guest {}: {error}", guest.name))),
        });
    }
    // Those who may come again need not keep the others with the old process. But if there are no others, the fault may well
    // be this process's.
    if !spoiled.is_empty() && fronts.iter().all(Option::is_none) {
        return Err(refused(spoiled.join("; ")));
    }
    spoiled.iter().for_each(|line| log::warn!("{line}"));
    Ok(fronts)
}

/// Sends the command and reads the answer, but not a byte of what follows it.
fn ask(mut stream: &UnixStream) -> Result<(), String> {
    let told = |error: io::Error| format!("no answer: {error}");
    let command = ControlCommand::Replace { protocol: PROTOCOL };
    stream.set_read_timeout(Some(Duration::from_secs(HANDOVER_PREPARE_SECONDS))).map_err(told)?;
    let line = serde_json::to_string(&command).map_err(|error| error.to_string())?;
    writeln!(stream, "{line}").map_err(told)?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') && (answer.len() as u64) < MAX_CONTROL_LINE_BYTES {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(told)?;
        answer.extend(byte);
    }
    let answer: Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
    match (answer["ok"] == Value::Bool(true), answer["error"].as_str()) {
        (true, _) => Ok(()),
        (false, Some(error)) => Err(error.to_owned()),
        (false, None) => Err("its answer is not understood".into()),
    }
}

fn patience() -> Instant {
    Instant::now() + Duration::from_secs(HANDOVER_PREPARE_SECONDS)
}

fn refused(why: String) -> StartError {
    StartError::Replace(why)
}

fn failed(error: LinkError) -> StartError {
    refused(error.to_string())
}
