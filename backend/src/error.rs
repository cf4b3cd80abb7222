//! Errors of the start: each one line that says what is wrong and, where it helps, what to do.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why the backend does not start, or did not end well. Exit status 2, or 1 for [`StartError::LastSync`].
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum StartError {
    #[error("{0}")]
    Usage(String),
    #[error("image {path}: no such file; --create SIZE makes one")]
    NoImage { path: PathBuf },
    #[error("image {path}: {kind} is neither a regular file nor a block device")]
    NotAnImage { path: PathBuf, kind: &'static str },
    #[error("image {path}: it is empty; --create SIZE makes a new one where no file exists")]
    EmptyImage { path: PathBuf },
    #[error("image {path}: its {bytes} bytes are not a multiple of {unit}")]
    OddSize { path: PathBuf, bytes: u64, unit: u64 },
    #[error("image {path}: {doing}: {error}")]
    Image { path: PathBuf, doing: &'static str, error: io::Error },
    #[error("{what} {path}: no such file or directory: make the folder {folder} first")]
    NoFolder { what: &'static str, path: PathBuf, folder: PathBuf },
    #[error("log of --record {path}: {error}")]
    Record { path: PathBuf, error: io::Error },
    #[error("image {path} is in use by {holder}; stop that first")]
    Locked { path: PathBuf, holder: String },
    #[error("socket {path}: another process listens on it; stop that first")]
    SocketLive { path: PathBuf },
    #[error("socket {path}: a file that is no socket is in the way; remove it or give another path")]
    SocketNotASocket { path: PathBuf },
    #[error("socket {path}: {error}")]
    Socket { path: PathBuf, error: io::Error },
    #[error("io_uring is not available ({0}); use --io-engine sync")]
    NoIoUring(io::Error),
    #[error(
        "state file {path} is not understood: {why}; it says who may write, so repair it or remove it knowingly"
    )]
    BadState { path: PathBuf, why: String },
    #[error("the running backend is not replaced and goes on: {0}")]
    Replace(String),
    #[error("--replace: no backend to replace at control socket {control}: {error}; start without --replace")]
    NothingToReplace { control: PathBuf, error: io::Error },
    #[error("the image could not be synced at the end: {0}")]
    LastSync(io::Error),
    #[error("{doing}: {error}")]
    System { doing: &'static str, error: io::Error },
}
