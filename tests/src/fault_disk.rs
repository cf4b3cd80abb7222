//! A disk of which the test owns every operation: it can be held, fail or fall short, and what was never synced can be
//! told from what was.
//!
//! It is a file that a thread of the test serves over `/dev/fuse`.
//!
//! The kernel lets no write of such a file begin while a sync of it runs, so hold the one or make the other.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::fuse::{Channel, Message, Mount, code, own_mounts, written};
use crate::wait::until;

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
    served: Arc<Served>,
    _mount: Mount,
}

#[derive(Debug)]
struct Served {
    channel: Channel,
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
    held: Vec<Waiting>,
}

/// A request of the kernel, and, for a sync, what it makes durable.
#[derive(Debug)]
struct Waiting {
    message: Message,
    synced: Vec<u8>,
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
        let (mount, channel) = Mount::at(path);
        let content = Content { now: vec![0; bytes], durable: vec![0; bytes], ..Content::default() };
        let served = Arc::new(Served { channel, content: Mutex::new(content) });
        let server = Arc::clone(&served);
        std::thread::spawn(move || server.serve());
        Self { served, _mount: mount }
    }

    /// From now on operations of this kind wait, until [`FaultDisk::release`].
    pub fn hold(&self, op: DiskOp) {
        self.content().holds.push(op);
    }

    /// Number of operations of this kind that wait.
    pub fn held(&self, op: DiskOp) -> usize {
        self.content().held.iter().filter(|waiting| op_of(&waiting.message) == Some(op)).count()
    }

    /// Waits until `count` operations of this kind wait.
    #[track_caller]
    pub fn wait_for_held(&self, op: DiskOp, count: usize) {
        until("operations on the disk to be held", || (self.held(op) == count).then_some(()));
    }

    /// Carries out the operations of this kind that wait; later ones go on waiting.
    pub fn let_held_pass(&self, op: DiskOp) {
        let mut content = self.content();
        let (pass, keep) = std::mem::take(&mut content.held)
            .into_iter()
            .partition(|waiting| op_of(&waiting.message) == Some(op));
        content.held = keep;
        let pass: Vec<Waiting> = pass;
        pass.iter().for_each(|waiting| self.served.carry_out(&mut content, waiting));
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

    /// Makes it larger, with zeroes.
    pub fn grow(&self, bytes: usize) {
        let mut content = self.content();
        assert!(bytes > content.now.len(), "a larger disk");
        content.now.resize(bytes, 0);
        content.durable.resize(bytes, 0);
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

impl Served {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the kernel until the file system is gone.
    fn serve(&self) {
        let mut buffer = Channel::buffer();
        while let Some(message) = self.channel.next(&mut buffer) {
            let mut content = self.content();
            let synced = content.snapshot_for(&message);
            let waiting = Waiting { message, synced };
            if op_of(&waiting.message).is_some_and(|op| content.holds.contains(&op)) {
                content.held.push(waiting);
            } else {
                self.carry_out(&mut content, &waiting);
            }
        }
    }

    fn carry_out(&self, content: &mut Content, waiting: &Waiting) {
        self.channel.answer(&waiting.message, content.carry_out(waiting));
    }
}

fn op_of(message: &Message) -> Option<DiskOp> {
    match message.code {
        code::READ => Some(DiskOp::Read),
        code::WRITE => Some(DiskOp::Write),
        code::FSYNC => Some(DiskOp::Sync),
        _ => None,
    }
}

impl Content {
    /// A sync covers what was written before it began.
    fn snapshot_for(&self, message: &Message) -> Vec<u8> {
        if message.code == code::FSYNC { self.now.clone() } else { Vec::new() }
    }

    fn carry_out(&mut self, Waiting { message, synced }: &Waiting) -> Result<Vec<u8>, i32> {
        let mut longest = usize::MAX;
        if let Some(op) = op_of(message) {
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
            code::READ => {
                let range = self.indices(message);
                Ok(self.now[range.start..range.end.min(range.start.saturating_add(longest))].to_vec())
            }
            code::WRITE => {
                let range = self.indices(message);
                let len = range.len().min(longest);
                self.now[range.start..range.start + len].copy_from_slice(&message.data()[..len]);
                Ok(written(len))
            }
            code::FSYNC => {
                self.durable.clone_from(synced);
                self.syncs += 1;
                Ok(Vec::new())
            }
            _ => message.answer_for(self.now.len() as u64),
        }
    }

    fn indices(&self, message: &Message) -> Range<usize> {
        let clamp = |at: u64| usize::try_from(at).unwrap().min(self.now.len());
        clamp(message.range().start)..clamp(message.range().end)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
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
