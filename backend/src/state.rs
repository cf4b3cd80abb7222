//! What an operator has decided, on disk: who may write, who is fenced, whether the image is poisoned, what is sealed.
//!
//! Invariant: the file holds a decision before it takes effect for the better (a guest may write again)
//! and before the operator is told that it is done. It is replaced as a whole: a crash leaves the old
//! or the new one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::StartError;
use crate::role::Standing;
use crate::seals::Seals;

/// Version of the file's format.
const VERSION: u32 = 1;

/// The version of a file with sealed ranges: a backend that knows nothing of them must not serve the image.
const VERSION_WITH_SEALS: u32 = 2;

/// The decisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// Whether a sync has failed and nobody has cleared it since.
    pub poisoned: bool,
    /// Guests whose standing is not the one of the command line, by name.
    pub guests: BTreeMap<String, Standing>,
    /// What nobody writes.
    #[serde(default, skip_serializing_if = "Seals::is_empty")]
    pub seals: Seals,
}

impl Default for State {
    fn default() -> Self {
        Self { version: VERSION, poisoned: false, guests: BTreeMap::new(), seals: Seals::default() }
    }
}

/// The state file.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The state file at `path`, which need not exist.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The decisions, or the defaults where no file is.
    ///
    /// # Errors
    /// When the file cannot be read or understood: nobody may guess who the writer is.
    pub fn load(&self) -> Result<State, StartError> {
        let bad = |why: String| StartError::BadState { path: self.path.clone(), why };
        let text = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            other => other.map_err(|error| bad(error.to_string()))?,
        };
        let state: State = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        match state.version {
            VERSION | VERSION_WITH_SEALS => Ok(State { version: VERSION, ..state }),
            version => Err(bad(format!("version {version}"))),
        }
    }

    /// Replaces the file; durable when this returns.
    ///
    /// # Errors
    /// When the folder cannot be written; the old file is then still there.
    pub fn save(&self, state: &State) -> io::Result<()> {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let fresh = PathBuf::from(name);
        let mut file = File::create(&fresh)?;
        let version = if state.seals.is_empty() { VERSION } else { VERSION_WITH_SEALS };
        file.write_all(&serde_json::to_vec_pretty(&State { version, ..state.clone() })?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Role;

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(folder.path().join("s"));
        assert_eq!(file.load().unwrap(), State::default());
        let mut state = State { poisoned: true, ..State::default() };
        state.guests.insert("a".into(), Standing { access: Role::Standby, fenced: true });
        file.save(&state).unwrap();
        assert_eq!(file.load().unwrap(), state);
        assert!(fs::read_to_string(file.path()).unwrap().contains("\"version\": 1"));
        state.seals = serde_json::from_str("[[0,4096],[8192,12288]]").unwrap();
        file.save(&state).unwrap();
        assert_eq!(file.load().unwrap(), state);
        assert!(fs::read_to_string(file.path()).unwrap().contains("\"version\": 2"), "unknown to older ones");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_understood_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(folder.path().join("s"));
        for text in ["", "{", "{\"version\":3,\"poisoned\":false,\"guests\":{}}", "[]"] {
            fs::write(file.path(), text).unwrap();
            assert!(file.load().unwrap_err().to_string().contains("state file"), "{text}");
        }
    }
}
