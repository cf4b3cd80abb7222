//! Files and sockets of the command line: each has a place of its own. Two at one place would destroy one another, the image first.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::args::{Config, EndpointConfig};
use crate::error::StartError;
use crate::recovery::note_path;
use crate::sandbox::folder_of;

/// What two names of one file have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Place {
    /// A file that is there: device and inode.
    File(u64, u64),
    /// One that is not there yet.
    Name(PathBuf),
}

impl Place {
    fn of(path: &Path) -> Self {
        if let Ok(metadata) = fs::metadata(path) {
            return Self::File(metadata.st_dev(), metadata.st_ino());
        }
        let folder = fs::canonicalize(folder_of(path)).unwrap_or_else(|_| folder_of(path));
        Self::Name(path.file_name().map_or(folder.clone(), |name| folder.join(name)))
    }
}

/// Checks that no two files or sockets of `config` are one; the image is there already.
///
/// # Errors
/// One line that names both.
pub fn check_apart(config: &Config) -> Result<(), StartError> {
    let note = note_path(&config.state);
    let mut all: Vec<(String, &Path)> = vec![
        ("the image".into(), &config.image.path),
        ("the state file".into(), &config.state),
        ("the note of running guests".into(), &note),
    ];
    all.extend(config.record.as_deref().map(|path| ("the log of --record".into(), path)));
    all.extend(config.control.as_deref().map(|path| ("the control socket".into(), path)));
    all.extend(config.guests.iter().filter_map(|guest| match &guest.endpoint {
        EndpointConfig::Listen(path) | EndpointConfig::Connect(path) => {
            Some((format!("the socket of guest {}", guest.name), path.as_path()))
        }
        EndpointConfig::ListenFd(_) => None,
    }));
    let mut taken = HashMap::new();
    for (what, path) in &all {
        if let Some(other) = taken.insert(Place::of(path), what) {
            let path = path.display();
            return Err(StartError::Usage(format!("{path}: it cannot be both {other} and {what}")));
        }
    }
    Ok(())
}

/// Checks that the folder in which `what` is to be made is there.
///
/// # Errors
/// One line that names it.
pub fn check_folder(what: &'static str, path: &Path) -> Result<(), StartError> {
    let folder = folder_of(path);
    match fs::metadata(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(StartError::NoFolder { what, path: path.into(), folder })
        }
        _ => Ok(()), // whatever else is wrong with it, using it says
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_has_one_place_under_all_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| Place::of(&folder.path().join(name));
        fs::write(folder.path().join("a"), "").unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        fs::hard_link(folder.path().join("a"), folder.path().join("linked")).unwrap();
        std::os::unix::fs::symlink("a", folder.path().join("pointing")).unwrap();
        for same in ["./a", "below/../a", "linked", "pointing"] {
            assert_eq!(at(same), at("a"), "{same}");
        }
        assert_eq!(at("below/../none"), at("none"));
        for (one, other) in [("a", "none"), ("none", "below/none"), ("none", "none2")] {
            assert_ne!(at(one), at(other), "{one} {other}");
        }
    }
}
