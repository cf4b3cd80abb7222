//! The locks by which QEMU and the host daemon keep two writers from one image file.

use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;

/// Bytes of an image that QEMU and the host daemon lock to write it: "I read", "I write", "nobody else may write".
const LOCKED_BYTES: [i64; 3] = [100, 101, 201];

/// Takes the locks of a writer of an image file as QEMU does (OFD read locks on single bytes), so that a store is not written
/// while a virtual machine or the host daemon has it. False when another has it.
pub(crate) fn lock_like_qemu(file: &File) -> std::result::Result<bool, Errno> {
    const READ_LOCK: i16 = 0;
    const WRITE_LOCK: i16 = 1;
    const UNLOCKED: i16 = 2;
    for byte in LOCKED_BYTES.into_iter().skip(1) {
        let mut lock = byte_lock(WRITE_LOCK, byte);
        // SAFETY: the descriptor is open and `lock` is a valid `struct flock` that the call fills in.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
            return Err(last_errno());
        }
        if lock.l_type != UNLOCKED {
            return Ok(false);
        }
    }
    for byte in LOCKED_BYTES {
        let lock = byte_lock(READ_LOCK, byte);
        // SAFETY: as above; the call only reads `lock`.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } != 0 {
            return Err(last_errno());
        }
    }
    Ok(true)
}

fn byte_lock(kind: i16, byte: i64) -> libc::flock {
    libc::flock { l_type: kind, l_whence: 0, l_start: byte, l_len: 1, l_pid: 0 }
}

pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
