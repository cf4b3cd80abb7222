//! The operators' connections of the moment, so that a stop need not wait for what they have to say.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use crate::limits::MAX_CONTROL_CONNECTIONS;

/// See the module.
#[derive(Debug, Default)]
pub struct Connections(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    open: Slab<Arc<UnixStream>>,
}

impl Connections {
    /// Adds one, under a number; `None` if there are as many as there may be, or nobody is heard any more.
    pub fn add(&self, stream: UnixStream) -> Option<(usize, Arc<UnixStream>)> {
        let mut state = self.lock();
        if state.is_closed || state.open.len() >= MAX_CONTROL_CONNECTIONS {
            return None;
        }
        let stream = Arc::new(stream);
        Some((state.open.insert(Arc::clone(&stream)), stream))
    }

    /// Forgets the one under this number.
    pub fn remove(&self, number: usize) {
        self.lock().open.try_remove(number);
    }

    /// Hears nothing more of any of them. What they have asked for is still answered.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        for (_, stream) in &state.open {
            if let Err(error) = stream.shutdown(Shutdown::Read) {
                log::debug!("event=shutdown-failed error=\"{error}\"");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
