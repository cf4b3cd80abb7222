//! Files below a folder that others may have put things into: no symbolic link in it is followed.

use receipt_store::{Error, ReceiptPath, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

/// The folder that was named; it may itself be a link.
pub fn open_folder(folder: &Path) -> Result<OwnedFd> {
    std::fs::create_dir_all(folder).map_err(|error| super::file_error(folder, error))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty()).map_err(|errno| super::file_error(folder, errno.into()))
}

/// The folder `name` in `folder`, made if need be; no link.
pub fn make_folder(folder: &OwnedFd, name: &str) -> std::result::Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    enter(folder, name)
}

/// The folder `name` in `folder`; no link.
pub fn enter(folder: &OwnedFd, name: &str) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

/// The folder that holds the file of `path`, if it is not `folder` itself, and the file's name.
fn walk<'p>(
    folder: &OwnedFd,
    path: &'p ReceiptPath,
    step: impl Fn(&OwnedFd, &str) -> std::result::Result<OwnedFd, Errno>,
) -> Result<(Option<OwnedFd>, &'p str)> {
    let (folders, name) = path.as_str().rsplit_once('/').unwrap_or(("", path.as_str()));
    let mut inner: Option<OwnedFd> = None;
    for part in folders.split('/').filter(|part| !part.is_empty()) {
        let at = inner.as_ref().unwrap_or(folder);
        inner = Some(step(at, part).map_err(|errno| failed(path, errno))?);
    }
    Ok((inner, name))
}

fn failed(path: &ReceiptPath, errno: Errno) -> Error {
    Error::File { name: path.to_string(), source: errno.into() }
}

/// What is there and is no file is an error; nothing there is none.
fn check_is_file(at: &OwnedFd, name: &str) -> std::result::Result<(), Errno> {
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => Ok(()),
        Ok(_) => Err(Errno::EXIST), // a link, a pipe, a folder
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Writes `data` to the file of `path` below `folder`, making the folders between. What is there and is no file, or is reached through a
/// link, is an error.
pub fn write(folder: &OwnedFd, path: &ReceiptPath, data: &[u8]) -> Result<()> {
    let (inner, name) = walk(folder, path, make_folder)?;
    let at = inner.as_ref().unwrap_or(folder);
    let done =
        check_is_file(at, name).map_err(std::io::Error::from).and_then(|()| write_whole(at, name, data));
    done.map_err(|source| Error::File { name: path.to_string(), source })
}

/// Gives `name` to a file with `data`, in place of what file was there: whoever opens it sees all of it, or what was there before.
pub fn write_whole(at: &OwnedFd, name: impl rustix::path::Arg, data: &[u8]) -> std::io::Result<()> {
    let part = format!(".receipt-{}.part", std::process::id());
    match rustix::fs::unlinkat(at, &part, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {} // of a process that was killed
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(at, &part, flags, Mode::from_raw_mode(0o666))?);
    let done = file.write_all(data).and_then(|()| Ok(rustix::fs::renameat(at, &part, at, name)?));
    if done.is_err() {
        let _ = rustix::fs::unlinkat(at, &part, AtFlags::empty()); // the first error is the one to tell
    }
    done
}

#[cfg(feature = "archive")]
/// Gives the file `from` in `root` the name of `path` below `folder`, in place of what file was there.
pub fn place(root: &OwnedFd, from: &str, folder: &OwnedFd, path: &ReceiptPath) -> Result<()> {
    let (inner, name) = walk(folder, path, make_folder)?;
    let at = inner.as_ref().unwrap_or(folder);
    check_is_file(at, name)
        .and_then(|()| rustix::fs::renameat(root, from, at, name))
        .map_err(|errno| failed(path, errno))
}

/// Reads the regular file of `path` below `folder`, at most `limit_bytes` of it; nothing that is reached through a link.
pub fn read(folder: &OwnedFd, path: &ReceiptPath, limit_bytes: u64) -> Result<Vec<u8>> {
    let (inner, name) = walk(folder, path, enter)?;
    let at = inner.as_ref().unwrap_or(folder);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(at, name, flags, Mode::empty());
    let file = File::from(file.map_err(|errno| failed(path, errno))?);
    let io = |source| Error::File { name: path.to_string(), source };
    if !file.metadata().map_err(io)?.is_file() {
        return Err(failed(path, Errno::EXIST));
    }
    let mut data = Vec::new();
    file.take(limit_bytes).read_to_end(&mut data).map_err(io)?;
    Ok(data)
}
