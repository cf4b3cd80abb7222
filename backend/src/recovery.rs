//! After a kill: nobody's requests run before the guests that were writing have come back.
//!
//! A killed process may leave a write half done. Its guest asks for it again, but until then nobody may see what is on
//! the disk. So a note says which guests have rings running that may write, and the next process holds all new requests
//! until each of them has its started writes under way again, or [`MAX_RECOVERY_WAIT_SECONDS`] are over.
//!
//! Invariants:
//! 1. A guest is in the note before a ring of it that may write runs, and until after its last one has stopped. A guest
//!    that is waited for stays in the note, so that a kill meanwhile changes nothing.
//! 2. The note outlives the process, not the host: guests do not outlive that either. It needs no sync.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::limits::MAX_RECOVERY_WAIT_SECONDS;

/// Changes whenever the host starts.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which guests an unclean end leaves behind.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    boot_id: String,
    writing: BTreeSet<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Recovery {
    names: Vec<String>,
    note: PathBuf,
    boot_id: String,
    began: Instant,
    is_holding: AtomicBool,
    /// Whether the note is this process's to write.
    has_note: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Guests that are waited for, by index.
    awaited: BTreeSet<usize>,
    /// Guests with running rings.
    running: BTreeSet<usize>,
    report: Report,
}

/// What the status says of the last recovery.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Report {
    /// Guests that were writing when an earlier process was killed.
    pub guests: Vec<String>,
    /// Of these, the ones that did not come back in time.
    pub missed: Vec<String>,
    /// Of these, the ones that are waited for at the moment.
    pub awaited: Vec<String>,
    /// How long everybody waited for them.
    pub wait_ms: u64,
}

impl Recovery {
    /// Reads what an earlier process has left in the note beside the state file, for guests with these names.
    #[must_use]
    pub fn load(state_file: &Path, names: Vec<String>) -> Self {
        let note = note_path(state_file);
        let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let left = read_note(&note).filter(|left| left.boot_id == boot_id).map(|left| left.writing);
        let is_left = |name: &String| left.as_ref().is_some_and(|left| left.contains(name));
        let awaited: BTreeSet<usize> = (0..names.len()).filter(|&guest| is_left(&names[guest])).collect();
        let guests = named(&names, &awaited);
        if !awaited.is_empty() {
            log::warn!("event=unclean-end waiting_for={}", guests.join(","));
        }
        let is_holding = AtomicBool::new(!awaited.is_empty());
        let report = Report { guests, ..Report::default() };
        let state = Mutex::new(State { awaited, report, ..State::default() });
        let (began, changed) = (Instant::now(), Condvar::new());
        let has_note = AtomicBool::new(true);
        Self { names, note, boot_id, began, is_holding, has_note, state, changed }
    }

    /// For a process that takes the place of another, which keeps the note until [`Recovery::take_note`].
    #[must_use]
    pub fn of_takeover(state_file: &Path, names: Vec<String>) -> Self {
        let note = note_path(state_file);
        let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let [is_holding, has_note] = [(); 2].map(|()| AtomicBool::new(false));
        let (began, state, changed) = (Instant::now(), Mutex::new(State::default()), Condvar::new());
        Self { names, note, boot_id, began, is_holding, has_note, state, changed }
    }

    /// Writes the note from now on; the process that did is gone.
    pub fn take_note(&self) {
        let state = self.lock();
        self.has_note.store(true, Ordering::Release);
        self.write_note(&state);
    }

    /// Whether new requests must wait.
    pub fn is_holding(&self) -> bool {
        self.is_holding.load(Ordering::Acquire)
    }

    /// Notes that the guest is about to run a ring that may write.
    pub fn note_running(&self, guest: usize) {
        let mut state = self.lock();
        if state.running.insert(guest) {
            self.write_note(&state);
        }
    }

    /// Notes that no ring of the guest runs and none of its requests is in flight.
    pub fn note_idle(&self, guest: usize) {
        let mut state = self.lock();
        if state.running.remove(&guest) {
            self.write_note(&state);
        }
    }

    /// Notes that the started writes of the guest are under way again.
    pub fn note_back(&self, guest: usize) {
        if self.is_holding() && self.lock().awaited.remove(&guest) {
            log::info!("guest={} event=back", self.names[guest]);
            self.changed.notify_all();
        }
    }

    /// Waits until everybody is back, then calls `resume`. Returns at once when nobody is awaited.
    pub fn wait(&self, resume: impl Fn()) {
        let longest = Duration::from_secs(MAX_RECOVERY_WAIT_SECONDS);
        let mut state = self.lock();
        while !state.awaited.is_empty() && self.is_holding() {
            let Some(left) = longest.checked_sub(self.began.elapsed()) else {
                break;
            };
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        if !self.is_holding.swap(false, Ordering::AcqRel) {
            return;
        }
        let missed = std::mem::take(&mut state.awaited);
        state.report.missed = named(&self.names, &missed);
        state.report.wait_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.write_note(&state);
        let Report { missed, wait_ms, .. } = &state.report;
        log::info!("event=recovered wait_ms={wait_ms} missed={}", missed.join(","));
        drop(state);
        resume();
    }

    /// Ends [`Recovery::wait`] early, because the process stops. Guests that are not back stay in the note.
    pub fn stop(&self) {
        let _state = self.lock();
        self.is_holding.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// For the status.
    #[must_use]
    pub fn report(&self) -> Report {
        let state = self.lock();
        let awaited = named(&self.names, &state.awaited);
        Report { awaited, ..state.report.clone() }
    }

    fn write_note(&self, state: &State) {
        if !self.has_note.load(Ordering::Acquire) {
            return;
        }
        let writing = state.awaited.union(&state.running).map(|&guest| self.names[guest].clone()).collect();
        let note = Note { boot_id: self.boot_id.clone(), writing };
        if let Err(error) = replace_note(&self.note, &note) {
            let path = self.note.display();
            log::warn!("event=note-not-written path={path} error=\"{error}\" after a kill nobody will wait");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where it is kept which guests are writing, beside the state file.
#[must_use]
pub fn note_path(state_file: &Path) -> PathBuf {
    let mut note = state_file.as_os_str().to_owned();
    note.push(".running");
    note.into()
}

fn named(names: &[String], guests: &BTreeSet<usize>) -> Vec<String> {
    guests.iter().map(|&guest| names[guest].clone()).collect()
}

/// A note that is not understood says nothing: the worst is a wait less.
fn read_note(path: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// As a whole or not at all. A note of nobody is none.
fn replace_note(path: &Path, note: &Note) -> io::Result<()> {
    if note.writing.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    fs::write(&fresh, serde_json::to_vec(note)?)?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovery(folder: &tempfile::TempDir) -> Recovery {
        Recovery::load(&folder.path().join("state"), ["a", "b", "c"].map(String::from).to_vec())
    }

    #[test]
    fn guests_that_were_writing_are_awaited_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let killed = recovery(&folder);
        assert!(!killed.is_holding());
        (0..3).for_each(|guest| killed.note_running(guest));
        killed.note_idle(1);

        let killed_too = recovery(&folder);
        assert!(killed_too.is_holding());
        assert_eq!(killed_too.report().awaited, ["a", "c"]);
        // It has seen one of them when it is killed, and forgets neither.
        killed_too.note_running(0);
        killed_too.note_back(0);

        let last = recovery(&folder);
        assert_eq!(last.report().awaited, ["a", "c"]);
        std::thread::scope(|scope| {
            scope.spawn(|| [2, 0].iter().for_each(|&guest| last.note_back(guest)));
            last.wait(|| ());
        });
        assert!(!last.is_holding());
        assert!(last.report().missed.is_empty());
        assert!(!recovery(&folder).is_holding());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn stopped_wait_keeps_who_is_away() {
        let folder = tempfile::tempdir().unwrap();
        recovery(&folder).note_running(1);
        let stopped = recovery(&folder);
        stopped.stop();
        stopped.wait(|| panic!("nothing is resumed in a process that stops"));
        assert_eq!(recovery(&folder).report().awaited, ["b"]);
    }

    #[test]
    fn note_of_another_boot_or_none_at_all_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        recovery(&folder).note_running(1);
        let path = folder.path().join("state.running");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("boot_id\":\"", "boot_id\":\"x", 1)).unwrap();
        assert!(!recovery(&folder).is_holding());
        fs::write(&path, "{").unwrap();
        assert!(!recovery(&folder).is_holding());
    }
}
