//! Locks of the image as QEMU's file-posix takes them: OFD read locks on single bytes.
//!
//! Byte `100 + i` says "I use permission i", byte `200 + i` says "I do not share permission i";
//! permission 0 is consistent read, 1 is write. Whoever wants a permission looks whether another
//! holds the byte of the other hundred. The locks sit on the descriptor that does the IO: they are
//! free only once the last write of a killed process has landed. Beside a writer's descriptor there is another for guests
//! that only read; it holds a byte of our own, so that a late read of a killed process cannot land in memory that its guest
//! has used again since.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::StartError;
use crate::limits::LOCK_WAIT_SECONDS;

const USES_READ: i64 = 100;
const USES_WRITE: i64 = 101;
const UNSHARES_READ: i64 = 200;
const UNSHARES_WRITE: i64 = 201;

/// Byte that the reading descriptor of a backend with a writer holds. QEMU knows nothing of it.
const READS_BESIDE_WRITER: i64 = 301;

// F_RDLCK and the like, in the type that the structure's field has.
const READ_LOCK: i16 = 0;
const WRITE_LOCK: i16 = 1;
const UNLOCK: i16 = 2;
const _: () = assert!(
    libc::F_RDLCK == READ_LOCK as i32 && libc::F_WRLCK == WRITE_LOCK as i32 && libc::F_UNLCK == UNLOCK as i32
);

/// A wait that is not worth a line in the log.
const SILENT_LOCK_WAIT: Duration = Duration::from_millis(300);

/// Between two tries to get the lock: not the same for two processes, so that they do not keep meeting.
#[must_use]
pub fn retry_interval() -> Duration {
    Duration::from_millis(u64::from(40 + std::process::id() % 23))
}

/// Takes the locks of a reader, or of the one writer when `write`; waits up to
/// [`LOCK_WAIT_SECONDS`] for another holder.
///
/// # Errors
/// [`StartError::Locked`] names the holder; a file system without locks is an error too.
pub fn lock_image(file: &File, path: &Path, write: bool) -> Result<(), StartError> {
    wait_for(file, path, || try_lock(file, write))
}

/// Takes the lock of the reading descriptor of a backend that has locked the image as its writer.
///
/// # Errors
/// As for [`lock_image`].
pub fn lock_reader(file: &File, path: &Path) -> Result<(), StartError> {
    wait_for(file, path, || {
        Ok(!is_locked_by_another(file, READS_BESIDE_WRITER)?
            && set_lock(file, READ_LOCK, READS_BESIDE_WRITER)?)
    })
}

fn wait_for(file: &File, path: &Path, lock: impl Fn() -> io::Result<bool>) -> Result<(), StartError> {
    let began = Instant::now();
    let deadline = began + Duration::from_secs(LOCK_WAIT_SECONDS);
    let failed = |error| StartError::Image { path: path.into(), doing: "cannot lock it", error };
    if lock().map_err(failed)? {
        return Ok(());
    }
    let mut was_told = false;
    while Instant::now() < deadline {
        std::thread::sleep(retry_interval());
        if lock().map_err(failed)? {
            return Ok(());
        }
        // The kernel takes a moment to let go of the descriptors of a process that has ended.
        if !was_told && began.elapsed() > SILENT_LOCK_WAIT {
            was_told = true;
            log::info!("event=wait-for-lock image={} holder=\"{}\"", path.display(), holder(file));
        }
    }
    Err(StartError::Locked { path: path.into(), holder: holder(file) })
}

/// One try. Nothing is taken while anybody objects, so that waiting disturbs nobody; after taking, the look
/// is repeated, because another may have taken at the same time: then both give way.
fn try_lock(file: &File, write: bool) -> io::Result<bool> {
    let taken: &[i64] =
        if write { &[USES_READ, USES_WRITE, UNSHARES_WRITE] } else { &[USES_READ, UNSHARES_WRITE] };
    let objections: &[i64] =
        if write { &[USES_WRITE, UNSHARES_READ, UNSHARES_WRITE] } else { &[USES_WRITE, UNSHARES_READ] };
    let is_free = || -> io::Result<bool> {
        let held = objections.iter().map(|&byte| is_locked_by_another(file, byte));
        held.into_iter().try_fold(true, |free, held| Ok(free && !held?))
    };
    if !is_free()? {
        return Ok(false);
    }
    let mut got_all = true;
    for &byte in taken {
        got_all &= set_lock(file, READ_LOCK, byte)?;
    }
    if got_all && is_free()? {
        return Ok(true);
    }
    for &byte in taken {
        set_lock(file, UNLOCK, byte)?;
    }
    Ok(false)
}

fn flock(kind: i16, byte: i64) -> libc::flock {
    libc::flock { l_type: kind, l_whence: 0, l_start: byte, l_len: 1, l_pid: 0 }
}

/// False when another holder's exclusive lock is in the way.
fn set_lock(file: &File, kind: i16, byte: i64) -> io::Result<bool> {
    let lock = flock(kind, byte);
    // SAFETY: the descriptor is open and `lock` is a valid `struct flock` that the call only reads.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

fn is_locked_by_another(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = flock(WRITE_LOCK, byte);
    // SAFETY: the descriptor is open and `lock` is a valid `struct flock` that the call fills in.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type != UNLOCK)
}

/// Who else has a lock on the image, as far as /proc shows it.
#[must_use]
pub fn holder(file: &File) -> String {
    find_holder(file).unwrap_or_else(|| "another process".into())
}

fn find_holder(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let own_pid = std::process::id().to_string();
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().to_string_lossy().into_owned();
        let is_other = pid != own_pid && pid.bytes().all(|b| b.is_ascii_digit());
        if !is_other || !holds_lock(&process.path(), metadata.st_dev(), metadata.st_ino()) {
            return None;
        }
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(format!("process {pid} ({})", name.trim()))
    })
}

fn holds_lock(process: &Path, device: u64, inode: u64) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    descriptors.flatten().any(|descriptor| {
        let same_file =
            fs::metadata(descriptor.path()).is_ok_and(|m| (m.st_dev(), m.st_ino()) == (device, inode));
        let info = process.join("fdinfo").join(descriptor.file_name());
        same_file && fs::read_to_string(info).is_ok_and(|text| text.contains("OFDLCK"))
    })
}
