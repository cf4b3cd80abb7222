//! A disk of which the test owns every operation: it can be held, fail or fall short, and what was never synced can be
//! told from what was.
//!
//! It is a file system of one file, served over `/dev/fuse` by a thread of the test; no package is needed, but root is. The
//! mount is seen by the test's own thread and by what that starts, so nothing is left of it however the test ends.
//!
//! The kernel lets no write of such a file begin while a sync of it runs, so hold the one or make the other.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use crate::wait::until;

/// The largest read or write of one message.
const MAX_IO_BYTES: u32 = 1 << 20;

/// What is done to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOp {
    /// A read.
    Read,
    /// A write.
    Write,
    /// An `fsync` or `fdatasync`.
    Sync,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Errno(i32),
    /// At most this many bytes are moved.
    Short(usize),
}

/// See the module.
#[derive(Debug)]
pub struct FaultDisk {
    path: PathBuf,
    served: Arc<Served>,
}

#[derive(Debug)]
struct Served {
    channel: File,
    content: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    /// What reads return.
    now: Vec<u8>,
    /// What a crash of the host would leave at least.
    durable: Vec<u8>,
    syncs: u64,
    faults: Vec<(DiskOp, Range<u64>, Fault)>,
    holds: Vec<DiskOp>,
    held: Vec<Message>,
}

/// A request of the kernel.
#[derive(Debug)]
struct Message {
    code: u32,
    unique: u64,
    body: Vec<u8>,
    /// For a sync: what it makes durable.
    synced: Vec<u8>,
}

/// Gives the calling thread and what it starts a mount table of their own.
///
/// # Panics
/// Without root.
pub(crate) fn own_mounts() {
    // SAFETY: a system call without pointers; it changes this thread's view of the file system alone.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(result, 0, "this test mounts and so needs root: {}", io::Error::last_os_error());
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
}

/// A tmpfs, for the thread that mounts it and what that starts; unmounted when dropped.
#[derive(Debug)]
pub struct SmallTmpfs(PathBuf);

impl SmallTmpfs {
    /// Mounts one of `bytes` on the folder `at`.
    pub fn mount(at: &Path, bytes: u64) -> Self {
        own_mounts();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let _ = unmount(self.0.as_path(), UnmountFlags::DETACH);
    }
}

impl FaultDisk {
    /// A disk of `bytes` zeroes at `path`, which must not exist yet. The thread that calls it gets its own mounts.
    pub fn new(path: &Path, bytes: usize) -> Self {
        own_mounts();
        File::create(path).unwrap();
        let channel = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=100644,user_id=0,group_id=0", channel.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        mount("receiptdisk-test", path, "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
        let content = Content { now: vec![0; bytes], durable: vec![0; bytes], ..Content::default() };
        let served = Arc::new(Served { channel, content: Mutex::new(content) });
        let server = Arc::clone(&served);
        std::thread::spawn(move || server.serve());
        Self { path: path.to_owned(), served }
    }

    /// From now on operations of this kind wait, until [`FaultDisk::release`].
    pub fn hold(&self, op: DiskOp) {
        self.content().holds.push(op);
    }

    /// Number of operations of this kind that wait.
    pub fn held(&self, op: DiskOp) -> usize {
        self.content().held.iter().filter(|message| message.op() == Some(op)).count()
    }

    /// Waits until `count` operations of this kind wait.
    #[track_caller]
    pub fn wait_for_held(&self, op: DiskOp, count: usize) {
        until("operations on the disk to be held", || (self.held(op) == count).then_some(()));
    }

    /// Carries out the operations of this kind that wait; later ones go on waiting.
    pub fn let_held_pass(&self, op: DiskOp) {
        let mut content = self.content();
        let (pass, keep) = std::mem::take(&mut content.held).into_iter().partition(|m| m.op() == Some(op));
        content.held = keep;
        let pass: Vec<Message> = pass;
        pass.iter().for_each(|message| self.served.carry_out(&mut content, message));
    }

    /// Ends [`FaultDisk::hold`].
    pub fn release(&self, op: DiskOp) {
        self.content().holds.retain(|held| *held != op);
        self.let_held_pass(op);
    }

    /// Ends all that was held and all faults: a process that waits for the disk cannot even be killed.
    pub fn let_go(&self) {
        self.heal();
        [DiskOp::Read, DiskOp::Write, DiskOp::Sync].into_iter().for_each(|op| self.release(op));
    }

    /// From now on operations of this kind that touch `range` fail with `errno`.
    pub fn fail(&self, op: DiskOp, range: Range<u64>, errno: i32) {
        self.content().faults.push((op, range, Fault::Errno(errno)));
    }

    /// From now on operations of this kind move at most `bytes`. The kernel makes EIO of a short direct write, and zeroes of
    /// what is missing of a read for the page cache.
    pub fn cut_short(&self, op: DiskOp, bytes: usize) {
        self.content().faults.push((op, 0..u64::MAX, Fault::Short(bytes)));
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.content().faults.clear();
    }

    /// Syncs that have succeeded.
    pub fn syncs(&self) -> u64 {
        self.content().syncs
    }

    /// What is there now.
    pub fn now(&self, offset: usize, len: usize) -> Vec<u8> {
        self.content().now[offset..offset + len].to_vec()
    }

    /// What a crash of the host would leave if nothing that was never synced survived.
    pub fn durable(&self, offset: usize, len: usize) -> Vec<u8> {
        self.content().durable[offset..offset + len].to_vec()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.served.content()
    }
}

impl Drop for FaultDisk {
    fn drop(&mut self) {
        let _ = unmount(self.path.as_path(), UnmountFlags::DETACH);
    }
}

impl Served {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the kernel until the file system is gone.
    fn serve(&self) {
        let mut buffer = vec![0; MAX_IO_BYTES as usize + 4096];
        loop {
            let len = match (&self.channel).read(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let message = Message::decode(&buffer[..len]);
            let mut content = self.content();
            let message = Message { synced: content.snapshot_for(&message), ..message };
            if message.op().is_some_and(|op| content.holds.contains(&op)) {
                content.held.push(message);
            } else {
                self.carry_out(&mut content, &message);
            }
        }
    }

    fn carry_out(&self, content: &mut Content, message: &Message) {
        const NO_ANSWER: [u32; 3] = [code::FORGET, code::INTERRUPT, code::BATCH_FORGET];
        if NO_ANSWER.contains(&message.code) {
            return;
        }
        let (error, body) = match content.carry_out(message) {
            Ok(body) => (0, body),
            Err(errno) => (-errno, Vec::new()),
        };
        let len = u32::try_from(16 + body.len()).unwrap();
        let header = [&len.to_le_bytes()[..], &error.to_le_bytes(), &message.unique.to_le_bytes()].concat();
        // The kernel may have given the request up: its caller was killed.
        let _ = (&self.channel).write(&[header, body].concat());
    }
}

/// `linux/fuse.h`.
mod code {
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
}

impl Message {
    /// After the header of 40 bytes comes the body.
    fn decode(bytes: &[u8]) -> Self {
        let (code, unique) = (number(bytes, 4, 4), number(bytes, 8, 8));
        Self { code: u32::try_from(code).unwrap(), unique, body: bytes[40..].to_vec(), synced: Vec::new() }
    }

    fn op(&self) -> Option<DiskOp> {
        match self.code {
            code::READ => Some(DiskOp::Read),
            code::WRITE => Some(DiskOp::Write),
            code::FSYNC => Some(DiskOp::Sync),
            _ => None,
        }
    }

    /// Offset and length of a read or write; a sync touches all.
    fn range(&self) -> Range<u64> {
        if self.code == code::FSYNC {
            return 0..u64::MAX;
        }
        let (offset, len) = (number(&self.body, 8, 8), number(&self.body, 16, 4));
        offset..offset + len
    }
}

impl Content {
    /// A sync covers what was written before it began.
    fn snapshot_for(&self, message: &Message) -> Vec<u8> {
        if message.code == code::FSYNC { self.now.clone() } else { Vec::new() }
    }

    fn carry_out(&mut self, message: &Message) -> Result<Vec<u8>, i32> {
        let mut longest = usize::MAX;
        if let Some(op) = message.op() {
            let touched = message.range();
            for (faulty, range, fault) in &self.faults {
                if *faulty == op && touched.start < range.end && range.start < touched.end {
                    match fault {
                        Fault::Errno(errno) => return Err(*errno),
                        Fault::Short(bytes) => longest = *bytes,
                    }
                }
            }
        }
        match message.code {
            code::INIT => Ok(init_answer()),
            code::GETATTR => Ok([vec![0; 16], self.attributes()].concat()),
            code::OPEN => Ok(vec![0; 16]),
            code::RELEASE | code::FLUSH => Ok(Vec::new()),
            code::READ => {
                let range = self.indices(message);
                Ok(self.now[range.start..range.end.min(range.start.saturating_add(longest))].to_vec())
            }
            code::WRITE => {
                let range = self.indices(message);
                let len = range.len().min(longest);
                self.now[range.start..range.start + len].copy_from_slice(&message.body[40..40 + len]);
                let len = u32::try_from(len).unwrap();
                Ok([len.to_le_bytes(), [0; 4]].concat())
            }
            code::FSYNC => {
                self.durable.clone_from(&message.synced);
                self.syncs += 1;
                Ok(Vec::new())
            }
            _ => Err(libc::ENOSYS),
        }
    }

    fn indices(&self, message: &Message) -> Range<usize> {
        let clamp = |at: u64| usize::try_from(at).unwrap().min(self.now.len());
        clamp(message.range().start)..clamp(message.range().end)
    }

    /// `struct fuse_attr` of a regular file.
    fn attributes(&self) -> Vec<u8> {
        let size = self.now.len() as u64;
        let wide = [1, size, size / 512, 0, 0, 0].map(u64::to_le_bytes).concat();
        let narrow = [0, 0, 0, libc::S_IFREG | 0o644, 1, 0, 0, 0, 4096, 0].map(u32::to_le_bytes).concat();
        [wide, narrow].concat()
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::disk::Scratch;

    #[test]
    fn keeps_apart_what_is_written_and_what_is_synced() {
        let scratch = Scratch::new();
        let disk = FaultDisk::new(&scratch.join("disk"), 1 << 20);
        let file = OpenOptions::new().read(true).write(true).open(scratch.join("disk")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        file.write_all_at(&[7; 5000], 100).unwrap();
        assert_eq!((disk.now(100, 5000), disk.durable(100, 5000)), (vec![7; 5000], vec![0; 5000]));
        file.sync_data().unwrap();
        assert_eq!((disk.durable(100, 5000), disk.syncs()), (vec![7; 5000], 1));
    }

    #[test]
    fn fails_and_heals() {
        let scratch = Scratch::new();
        let disk = FaultDisk::new(&scratch.join("disk"), 1 << 20);
        let file = OpenOptions::new().write(true).open(scratch.join("disk")).unwrap();
        disk.fail(DiskOp::Write, 4096..8192, libc::EIO);
        assert_eq!(file.write_at(&[1; 10], 5000).unwrap_err().raw_os_error(), Some(libc::EIO));
        file.write_all_at(&[1; 10], 9000).unwrap();
        disk.heal();
        file.write_all_at(&[1; 10], 5000).unwrap();
    }

    #[test]
    fn holds_a_sync_while_reads_go_on() {
        let scratch = Scratch::new();
        let disk = FaultDisk::new(&scratch.join("disk"), 1 << 20);
        let file = OpenOptions::new().read(true).write(true).open(scratch.join("disk")).unwrap();
        file.write_all_at(&[1; 10], 0).unwrap();
        disk.hold(DiskOp::Sync);
        std::thread::scope(|scope| {
            let syncing = scope.spawn(|| file.sync_data().unwrap());
            disk.wait_for_held(DiskOp::Sync, 1);
            assert_eq!((disk.durable(0, 10), disk.now(0, 10)), (vec![0; 10], vec![1; 10]));
            file.read_exact_at(&mut [0; 10], 0).unwrap();
            assert!(!syncing.is_finished());
            disk.release(DiskOp::Sync);
            syncing.join().unwrap();
        });
        assert_eq!(disk.durable(0, 10), [1; 10]);
    }
}
