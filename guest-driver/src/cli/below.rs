//! Files below a folder that others may have put things into: no symbolic link in it is followed.

use receipt_store::{Error, ReceiptPath, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The folder that was named; it may itself be a link.
pub fn open_folder(folder: &Path) -> Result<OwnedFd> {
    std::fs::create_dir_all(folder).map_err(|error| super::file_error(folder, error))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty()).map_err(|errno| super::file_error(folder, errno.into()))
}

/// Writes `data` to the file of `path` below `folder`, making the folders between. What is there and is no file, or is reached through a
/// link, is an error.
pub fn write(folder: &OwnedFd, path: &ReceiptPath, data: &[u8]) -> Result<()> {
    let failed = |errno: Errno| Error::File { name: path.to_string(), source: errno.into() };
    let mut parts: Vec<&str> = path.as_str().split('/').collect();
    let Some(name) = parts.pop() else {
        return Err(Error::Usage("no path".to_owned()));
    };
    let mut inner: Option<OwnedFd> = None;
    for part in parts {
        let at = inner.as_ref().unwrap_or(folder);
        match rustix::fs::mkdirat(at, part, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        inner = Some(rustix::fs::openat(at, part, flags, Mode::empty()).map_err(failed)?);
    }
    let at = inner.as_ref().unwrap_or(folder);
    let is_other = match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile,
        Err(Errno::NOENT) => false,
        Err(errno) => return Err(failed(errno)),
    };
    if is_other {
        return Err(failed(Errno::EXIST)); // a link, a pipe, a folder
    }
    let flags = OFlags::WRONLY
        | OFlags::CREATE
        | OFlags::TRUNC
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let file = rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o666)).map_err(failed)?;
    File::from(file).write_all(data).map_err(|source| Error::File { name: path.to_string(), source })
}
