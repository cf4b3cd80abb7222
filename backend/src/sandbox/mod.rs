//! What the process gives up after its start: whoever gets hold of it through a guest can do little with it.
//!
//! In two steps, because a restriction of paths binds only threads that come after it and a filter of system calls must
//! not be there before everything is opened, made and bound:
//!
//! 1. [`give_up_rights`], before any thread: no new privileges, no capabilities, no core dumps, and only the folders in
//!    which the process keeps changing files (Landlock);
//! 2. [`filter_calls`], when everything is made: the system calls that serving guests takes (seccomp).
//!
//! A kernel that cannot do one of them is told of in one line of the log and in `ctl status`, and does the rest.

mod calls;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use serde::Serialize;
use thiserror::Error;

/// The newest restrictions that are asked for; an older kernel gives those it has.
const LANDLOCK_ABI: ABI = ABI::V6;

/// What is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sandbox {
    /// Whether system calls are filtered.
    pub seccomp: bool,
    /// How far paths are restricted.
    pub landlock: Landlock,
}

/// How far the kernel restricts paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Landlock {
    /// As far as is known here.
    Full,
    /// As far as an older kernel can.
    Partial,
    /// Not at all.
    Off,
}

impl Landlock {
    /// As in `ctl status`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::Off => "off",
        }
    }
}

/// Why the kernel does not restrict paths.
#[derive(Debug, Error)]
#[allow(missing_docs)]
enum LandlockError {
    #[error("{path}: {error}", path = .path.display())]
    Folder { path: PathBuf, error: PathFdError },
    #[error(transparent)]
    Rules(#[from] RulesetError),
}

impl Sandbox {
    /// Nothing is in force.
    pub const OFF: Self = Self { seccomp: false, landlock: Landlock::Off };
}

/// The first step; `folders` are those in which files are made, renamed and removed from now on.
///
/// # Errors
/// When the kernel refuses what every Linux can do.
pub fn give_up_rights(folders: &[PathBuf]) -> io::Result<Sandbox> {
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    drop_capabilities()?;
    let landlock = restrict_paths(folders).unwrap_or_else(|error| {
        log::warn!("event=no-landlock error=\"{error}\" the process may open whatever its user may");
        Landlock::Off
    });
    for folder in folders {
        if let Err(error) = check_writable(folder) {
            log::warn!(
                "event=folder-not-writable folder={} error=\"{error}\" without capabilities; give it to the backend's user",
                folder.display()
            );
        }
    }
    Ok(Sandbox { landlock, ..Sandbox::OFF })
}

/// The second step, for all threads.
#[must_use]
pub fn filter_calls(sandbox: Sandbox) -> Sandbox {
    let filtered = calls::install();
    if let Err(error) = &filtered {
        log::warn!("event=no-seccomp error=\"{error}\" system calls are not filtered");
    }
    Sandbox { seccomp: filtered.is_ok(), ..sandbox }
}

/// The folder that a file is in.
#[must_use]
pub fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

fn drop_capabilities() -> io::Result<()> {
    for bit in 0..u64::BITS {
        // Needs a capability itself, and ends past the last one that the kernel knows.
        let _ = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit));
    }
    // A kernel without ambient capabilities has none to clear.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}

fn restrict_paths(folders: &[PathBuf]) -> Result<Landlock, LandlockError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
        .scope(Scope::from_all(LANDLOCK_ABI))?
        .create()?;
    for path in folders {
        let folder =
            PathFd::new(path).map_err(|error| LandlockError::Folder { path: path.clone(), error })?;
        rules = rules.add_rule(PathBeneath::new(folder, changes_of_files()))?;
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => {
            log::warn!("event=no-landlock the kernel has none: the process may open whatever its user may");
            Landlock::Off
        }
    })
}

/// The state file is replaced as a whole, and sockets are removed at the end.
fn changes_of_files() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::ReadDir
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
}

fn check_writable(folder: &Path) -> io::Result<()> {
    let folder = File::open(folder)?;
    Ok(rustix::fs::accessat(
        &folder,
        ".",
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
        rustix::fs::AtFlags::EACCESS,
    )?)
}

#[cfg(test)]
mod tests;
