//! The way back to a front end: it hands over a socket on which the backend may speak first (SET_BACKEND_REQ_FD).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::net::{SendFlags, send};

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG: request 2, version 1, no body.
const CONFIG_CHANGE: [u32; 3] = [2, 1, 0];

/// The channels of all guests, by index.
#[derive(Debug)]
pub struct Channels(Vec<Mutex<Option<OwnedFd>>>);

impl Channels {
    /// None yet.
    #[must_use]
    pub fn new(guests: usize) -> Self {
        Self((0..guests).map(|_| Mutex::new(None)).collect())
    }

    /// Replaces the channel of a guest; false if `fd` is no socket.
    #[must_use]
    pub fn set(&self, guest: usize, fd: Option<OwnedFd>) -> bool {
        if fd.as_ref().is_some_and(|fd| !is_socket(fd)) {
            return false;
        }
        let old = std::mem::replace(&mut *self.0[guest].lock().unwrap_or_else(PoisonError::into_inner), fd);
        // Not while others wait for the lock: a socket may be such that its close takes for ever.
        drop(old);
        true
    }

    /// Another descriptor of a guest's channel, if it has one.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn duplicate(&self, guest: usize) -> io::Result<Option<OwnedFd>> {
        let channel = self.0[guest].lock().unwrap_or_else(PoisonError::into_inner);
        channel.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// Has a guest's front end look at the configuration space again, if it can be told.
    pub fn tell_config_change(&self, guest: usize) {
        let channel = self.0[guest].lock().unwrap_or_else(PoisonError::into_inner);
        let Some(channel) = channel.as_ref() else { return };
        let bytes: Vec<u8> = CONFIG_CHANGE.iter().flat_map(|word| word.to_le_bytes()).collect();
        // A front end that reads nothing is not waited for.
        if let Err(error) = send(channel, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            log::debug!("event=config-change-not-told error=\"{error}\"");
        }
    }

    /// [`Channels::tell_config_change`] for everybody.
    pub fn tell_all_config_change(&self) {
        (0..self.0.len()).for_each(|guest| self.tell_config_change(guest));
    }
}

fn is_socket(fd: &OwnedFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
}
