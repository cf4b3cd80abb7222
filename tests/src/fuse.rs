//! A file system of one file, served over `/dev/fuse` by the test itself; no package is needed, but root is. The mount is seen by the thread that
//! makes it and by what that starts, so nothing is left of it however the test ends.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

/// The largest read or write of one message.
const MAX_IO_BYTES: u32 = 1 << 20;

/// `linux/fuse.h`.
pub(crate) mod code {
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const BATCH_FORGET: u32 = 42;
}

/// Gives the calling thread and what it starts a mount table of their own.
///
/// # Panics
/// Without root.
pub(crate) fn own_mounts() {
    thread_local!(static HAS_OWN: Cell<bool> = const { Cell::new(false) });
    if HAS_OWN.replace(true) {
        return;
    }
    // SAFETY: a system call without pointers; it changes this thread's view of the file system alone.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(result, 0, "this test mounts and so needs root: {}", io::Error::last_os_error());
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
}

/// The mount of one file; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Mount(PathBuf);

/// The kernel's questions.
#[derive(Debug)]
pub(crate) struct Channel(File);

/// A request of the kernel.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) code: u32,
    pub(crate) unique: u64,
    pub(crate) body: Vec<u8>,
}

impl Mount {
    /// Mounts a file at `path`, which must not exist yet. The thread that calls it gets its own mounts.
    pub(crate) fn at(path: &Path) -> (Self, Channel) {
        own_mounts();
        File::create_new(path).unwrap();
        let channel = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=100644,user_id=0,group_id=0", channel.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        mount("receiptdisk-test", path, "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
        (Self(path.to_owned()), Channel(channel))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = unmount(self.0.as_path(), UnmountFlags::DETACH);
    }
}

impl Channel {
    /// A buffer that holds every message.
    pub(crate) fn buffer() -> Vec<u8> {
        vec![0; MAX_IO_BYTES as usize + 4096]
    }

    /// The next message; `None` once the file system is gone. Nothing else may wait for it meanwhile.
    pub(crate) fn next(&self, buffer: &mut [u8]) -> Option<Message> {
        loop {
            match (&self.0).read(buffer) {
                Ok(len) => return Some(Message::decode(&buffer[..len])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Answers a message with a body or an errno.
    pub(crate) fn answer(&self, message: &Message, answer: Result<Vec<u8>, i32>) {
        const NO_ANSWER: [u32; 3] = [code::FORGET, code::INTERRUPT, code::BATCH_FORGET];
        if NO_ANSWER.contains(&message.code) {
            return;
        }
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-errno, Vec::new()),
        };
        let len = u32::try_from(16 + body.len()).unwrap();
        let header = [&len.to_le_bytes()[..], &error.to_le_bytes(), &message.unique.to_le_bytes()].concat();
        // The kernel may have given the request up: its caller was killed.
        let _ = (&self.0).write(&[header, body].concat());
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Message {
    /// After the header of 40 bytes comes the body.
    fn decode(bytes: &[u8]) -> Self {
        let (code, unique) = (number(bytes, 4, 4), number(bytes, 8, 8));
        Self { code: u32::try_from(code).unwrap(), unique, body: bytes[40..].to_vec() }
    }

    /// Offset and length of a read or write; a sync touches all.
    pub(crate) fn range(&self) -> Range<u64> {
        if self.code == code::FSYNC {
            return 0..u64::MAX;
        }
        let (offset, len) = (number(&self.body, 8, 8), number(&self.body, 16, 4));
        offset..offset + len
    }

    /// The bytes of a write.
    pub(crate) fn data(&self) -> &[u8] {
        &self.body[40..]
    }

    /// The answer to what is no read, write or sync, for a file of `size_bytes`.
    pub(crate) fn answer_for(&self, size_bytes: u64) -> Result<Vec<u8>, i32> {
        match self.code {
            code::INIT => Ok(init_answer()),
            code::GETATTR => Ok([vec![0; 16], attributes(size_bytes)].concat()),
            code::OPEN => Ok(vec![0; 16]),
            code::RELEASE | code::FLUSH => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        }
    }
}

/// The answer to a write of so many bytes.
pub(crate) fn written(len: usize) -> Vec<u8> {
    [u32::try_from(len).unwrap().to_le_bytes(), [0; 4]].concat()
}

/// `struct fuse_attr` of a regular file.
fn attributes(size_bytes: u64) -> Vec<u8> {
    let wide = [1, size_bytes, size_bytes / 512, 0, 0, 0].map(u64::to_le_bytes).concat();
    let narrow = [0, 0, 0, libc::S_IFREG | 0o644, 1, 0, 0, 0, 4096, 0].map(u32::to_le_bytes).concat();
    [wide, narrow].concat()
}

/// `struct fuse_init_out` of version 7.31: large requests, and direct IO that waits without a thread.
fn init_answer() -> Vec<u8> {
    const ASYNC_READ: u32 = 1;
    const BIG_WRITES: u32 = 1 << 5;
    const ASYNC_DIO: u32 = 1 << 15;
    const MAX_PAGES: u32 = 1 << 22;
    let flags = ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES;
    let mut answer =
        [7, 31, MAX_IO_BYTES, flags, 64 | 64 << 16, MAX_IO_BYTES, 1].map(u32::to_le_bytes).concat();
    answer.extend((MAX_IO_BYTES / 4096).to_le_bytes());
    answer.resize(64, 0);
    answer
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut number = [0; 8];
    number[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_le_bytes(number)
}
