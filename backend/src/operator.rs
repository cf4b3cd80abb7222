//! What an operator may change while guests run: who may write and where, and whether a poisoned image may be written again.
//!
//! Invariants:
//! 1. Unless several writers are allowed, at most one guest may write at any moment.
//! 2. Taking a right away takes effect at once, is kept, and is answered only when the writes accepted before have
//!    ended and a sync is done; it holds also when that sync fails. Giving one takes effect only after the state
//!    file has it.

use std::io;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::error::StartError;
use crate::image::ResizeError;
use crate::order::ByteRange;
use crate::role::{Role, Standing};
use crate::seals::{SealError, Seals};
use crate::shared::Shared;
use crate::state::{State, StateFile};
use crate::worker::Mail;

/// Why a command was not carried out.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum OperatorError {
    #[error("no guest is named {0}")]
    NoSuchGuest(String),
    #[error(
        "guest {0} has access=ro for its whole life: its driver was told so and cannot be told otherwise"
    )]
    ReadOnlyGuest(String),
    #[error("guest {name} may not write next to {writer}; fence that first, or use takeover")]
    AnotherWriter { name: String, writer: String },
    #[error("{0}")]
    Resize(ResizeError),
    #[error("{0}")]
    Seal(SealError),
    #[error("this backend seals nothing: start it with --seal")]
    SealsNothing,
    #[error("the image cannot be synced: {0}; writes stay refused")]
    Sync(io::Error),
    #[error(
        "the state file {path} cannot be written: {error}; nothing has changed but that writes are refused"
    )]
    Save { path: String, error: io::Error },
}

/// A guest as the command line has it.
#[derive(Debug, Clone)]
pub struct Configured {
    /// Its name.
    pub name: String,
    /// Its access.
    pub access: Role,
}

/// See the module.
#[derive(Debug)]
pub struct Operator {
    shared: Arc<Shared>,
    guests: Vec<Configured>,
    multi_writer: bool,
    may_seal: bool,
    file: StateFile,
    /// Held through a whole command: there is one at a time.
    command: Mutex<()>,
    /// Held for a moment: the thread that syncs must never wait for a command that waits for it.
    now: Mutex<State>,
}

/// Standing of every guest in a state.
#[must_use]
pub fn standings(guests: &[Configured], state: &State) -> Vec<Standing> {
    guests.iter().map(|guest| standing(guest, state)).collect()
}

/// A read-only guest has no other standing than that.
fn standing(guest: &Configured, state: &State) -> Standing {
    let plain = Standing { access: guest.access, fenced: false };
    if guest.access == Role::ReadOnly {
        return plain;
    }
    state.guests.get(&guest.name).copied().filter(|s| s.access != Role::ReadOnly).unwrap_or(plain)
}

/// Checks that the state file and the command line together leave one writer at most.
///
/// # Errors
/// When they leave several and several are not allowed.
pub fn check_writers(
    guests: &[Configured],
    state: &State,
    file: &StateFile,
    multi_writer: bool,
) -> Result<(), StartError> {
    let standings = standings(guests, state);
    let mut writers =
        guests.iter().zip(&standings).filter(|(_, s)| s.access.may_write()).map(|(g, _)| &g.name);
    match (writers.next(), writers.next()) {
        (Some(first), Some(second)) if !multi_writer => Err(StartError::Usage(format!(
            "guests {first} and {second} would both write, by {} and the command line; give one access=standby",
            file.path().display()
        ))),
        _ => Ok(()),
    }
}

impl Operator {
    /// An operator of running guests whose standings and seals are those of `state`; several of them may write, and ranges may be
    /// sealed, if so said.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        guests: Vec<Configured>,
        (multi_writer, may_seal): (bool, bool),
        file: StateFile,
        state: State,
    ) -> Self {
        Self { shared, guests, multi_writer, may_seal, file, command: Mutex::new(()), now: Mutex::new(state) }
    }

    /// Standing of the guest with this index.
    #[must_use]
    pub fn standing(&self, index: usize) -> Standing {
        standing(&self.guests[index], &self.lock())
    }

    /// What was decided.
    #[must_use]
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// Where decisions are kept.
    #[must_use]
    pub fn state_file(&self) -> &StateFile {
        &self.file
    }

    /// Refuses the guest's writes from now on.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub fn fence(&self, name: &str) -> Result<(), OperatorError> {
        let index = self.writable_guest(name)?;
        let _command = self.begin_command();
        self.take_rights(&[index]);
        let fresh = Standing { fenced: true, ..self.standing(index) };
        self.save(|state| {
            state.guests.insert(name.to_owned(), fresh);
        })?;
        self.sync()
    }

    /// Ends a fence.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub fn unfence(&self, name: &str) -> Result<(), OperatorError> {
        let index = self.writable_guest(name)?;
        let _command = self.begin_command();
        let fresh = Standing { fenced: false, ..self.standing(index) };
        if fresh.may_write() && !self.multi_writer {
            self.no_other_writer(index)?;
        }
        self.save(|state| {
            state.guests.insert(name.to_owned(), fresh);
        })?;
        self.give_rights(index, fresh);
        Ok(())
    }

    /// Makes the guest the one writer: every other one becomes a standby.
    ///
    /// # Errors
    /// See [`OperatorError`]. When the sync fails nobody may write.
    pub fn take_over(&self, name: &str) -> Result<(), OperatorError> {
        let index = self.writable_guest(name)?;
        let _command = self.begin_command();
        let others: Vec<usize> = (0..self.guests.len())
            .filter(|&at| at != index && self.standing(at).access.may_write())
            .collect();
        self.take_rights(&others);
        self.save(|state| {
            for &at in &others {
                let old = Standing { access: Role::Standby, fenced: false };
                state.guests.insert(self.guests[at].name.clone(), old);
            }
        })?;
        self.sync()?;
        let fresh = Standing { access: Role::ReadWrite, fenced: false };
        self.save(|state| {
            state.guests.insert(name.to_owned(), fresh);
        })?;
        self.give_rights(index, fresh);
        Ok(())
    }

    /// Lets a poisoned image be written again: the operator has looked at what is on it.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn clear_poison(&self) -> Result<(), OperatorError> {
        let _command = self.begin_command();
        let mut state = self.lock();
        self.save_in(&mut state, |state| state.poisoned = false)?;
        self.shared.disk.set_poisoned(false);
        Ok(())
    }

    /// Makes the disk larger and tells every guest.
    ///
    /// # Errors
    /// When it cannot be that large. The image may be longer then, the disk is not.
    pub fn resize(&self, bytes: u64) -> Result<(), OperatorError> {
        let _command = self.begin_command();
        let image = self.shared.disk.image();
        image.lengthen(bytes).map_err(OperatorError::Resize)?;
        // No guest writes there before a crash of the host could no longer make the file short again.
        self.sync()?;
        image.adopt(bytes);
        self.shared.channels.tell_all_config_change();
        Ok(())
    }

    /// Refuses writes, discards and write-zeroes to `ranges` from now on, of every guest, until they are unsealed.
    ///
    /// # Errors
    /// See [`OperatorError`]; then nothing more is sealed than before.
    pub fn seal(&self, ranges: &[ByteRange]) -> Result<(), OperatorError> {
        if !self.may_seal {
            return Err(OperatorError::SealsNothing);
        }
        let _command = self.begin_command();
        let before = self.seals();
        let fresh = before.with(ranges, self.capacity_bytes()).map_err(OperatorError::Seal)?;
        if fresh == before {
            return Ok(());
        }
        // Refused first, and what was accepted before is over and durable: only then is it kept, so no write that a killed
        // process leaves half done is refused by the next one.
        self.set_seals(&fresh);
        let kept = self.sync().and_then(|()| self.save(|state| state.seals = fresh));
        if kept.is_err() {
            self.set_seals(&before);
        }
        kept
    }

    /// Lets `ranges` be written again.
    ///
    /// # Errors
    /// See [`OperatorError`]; then nothing has changed.
    pub fn unseal(&self, ranges: &[ByteRange]) -> Result<(), OperatorError> {
        let _command = self.begin_command();
        let fresh = self.seals().without(ranges, self.capacity_bytes()).map_err(OperatorError::Seal)?;
        self.save(|state| state.seals = fresh.clone())?;
        self.set_seals(&fresh);
        Ok(())
    }

    /// What is sealed.
    #[must_use]
    pub fn seals(&self) -> Seals {
        self.lock().seals.clone()
    }

    /// Whether ranges may be sealed.
    #[must_use]
    pub fn may_seal(&self) -> bool {
        self.may_seal
    }

    fn capacity_bytes(&self) -> u64 {
        self.shared.disk.image().capacity_bytes()
    }

    /// Tells all workers; returns when the writes to these ranges that they had accepted before have ended.
    fn set_seals(&self, seals: &Seals) {
        let seals = Arc::new(seals.clone());
        let tell = |index| {
            let (reply, answer) = mpsc::channel();
            self.shared.mailbox(index).send(Mail::SetSeals { seals: Arc::clone(&seals), reply });
            answer
        };
        let answers: Vec<_> = (0..self.guests.len()).map(tell).collect();
        for answer in answers {
            // A worker that is gone has no writes left.
            let _ = answer.recv();
        }
    }

    /// Keeps on disk that the image is poisoned, if it is: returns once that is so, whichever thread is first.
    pub fn keep_poison(&self) {
        let mut state = self.lock();
        if state.poisoned || !self.shared.disk.is_poisoned() {
            return;
        }
        if let Err(error) = self.save_in(&mut state, |state| state.poisoned = true) {
            log::error!("event=poison-not-saved error=\"{error}\" it holds until this process ends");
            state.poisoned = true;
        }
    }

    fn writable_guest(&self, name: &str) -> Result<usize, OperatorError> {
        let index = self.guests.iter().position(|guest| guest.name == name);
        let index = index.ok_or_else(|| OperatorError::NoSuchGuest(name.to_owned()))?;
        if self.guests[index].access == Role::ReadOnly {
            return Err(OperatorError::ReadOnlyGuest(name.to_owned()));
        }
        Ok(index)
    }

    fn no_other_writer(&self, index: usize) -> Result<(), OperatorError> {
        let other = (0..self.guests.len()).find(|&at| at != index && self.standing(at).may_write());
        other.map_or(Ok(()), |at| {
            let (name, writer) = (self.guests[index].name.clone(), self.guests[at].name.clone());
            Err(OperatorError::AnotherWriter { name, writer })
        })
    }

    /// Refuses these guests' writes and waits for those accepted before.
    fn take_rights(&self, indices: &[usize]) {
        let answers: Vec<_> = indices.iter().map(|&index| self.set_may_write(index, false)).collect();
        for answer in answers {
            // A worker that is gone has no writes left.
            let _ = answer.recv();
        }
    }

    /// Makes durable what was accepted.
    fn sync(&self) -> Result<(), OperatorError> {
        let synced = self.shared.disk.sync();
        self.keep_poison();
        synced.map_err(OperatorError::Sync)
    }

    fn give_rights(&self, index: usize, fresh: Standing) {
        let _ = self.set_may_write(index, fresh.may_write()).recv();
    }

    fn set_may_write(&self, index: usize, may_write: bool) -> mpsc::Receiver<()> {
        let (reply, answer) = mpsc::channel();
        self.shared.mailbox(index).send(Mail::SetMayWrite { may_write, reply });
        answer
    }

    /// Changes the state on disk first, then here.
    fn save(&self, change: impl FnOnce(&mut State)) -> Result<(), OperatorError> {
        self.save_in(&mut self.lock(), change)
    }

    fn save_in(&self, state: &mut State, change: impl FnOnce(&mut State)) -> Result<(), OperatorError> {
        let mut fresh = state.clone();
        change(&mut fresh);
        self.file
            .save(&fresh)
            .map_err(|error| OperatorError::Save { path: self.file.path().display().to_string(), error })?;
        *state = fresh;
        Ok(())
    }

    /// Waits for the command that is being carried out, and holds up all others.
    pub fn begin_command(&self) -> MutexGuard<'_, ()> {
        self.command.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
