//! The writer stops after a device error. This thread opens the store again, once the disk works.
//!
//! Invariant: it opens only what this process was the last to write; a store that another writer has taken over stays alone.

use crate::limits::{REOPEN_PAUSE_MAX, REOPEN_PAUSE_MIN, REOPEN_QUIET};
use crate::log::Log;
use receipt_store::control::Control;
use receipt_store::{Error, RawDevice, Reader, Result, SharedWriter, Writer, WriterOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// What is opened, and by whom.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
    writer_uuid: [u8; 16],
    options: WriterOptions,
}

impl Store {
    /// The store on `path`; every opening has the same identity in the lease.
    pub fn new(path: &Path) -> Result<Self> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let writer_uuid = receipt_store::random_bytes()?;
        let options = WriterOptions {
            name: path.display().to_string(),
            guest_name: host.trim().to_owned(),
            fixed_uuid: Some(writer_uuid),
            ..WriterOptions::default()
        };
        Ok(Self { path: path.to_owned(), writer_uuid, options })
    }

    /// The identity.
    pub fn writer_uuid(&self) -> [u8; 16] {
        self.writer_uuid
    }

    /// Opens it for writing.
    pub fn open(&self) -> Result<Writer<RawDevice>> {
        Writer::open(RawDevice::open_writer(&self.path)?, &self.options)
    }

    /// As [`Store::open`], unless another writer has opened it since, or it is another store.
    fn open_again(&self, store_uuid: [u8; 16]) -> Result<Writer<RawDevice>> {
        let device = RawDevice::open_writer(&self.path)?;
        let reader = Reader::new(&device, &self.options.name);
        let superblock = reader.superblock_now()?;
        if superblock.uuid != store_uuid {
            return Err(Error::Corrupt("the disk holds another store now".to_owned()));
        }
        if let Some(lease) = Control::read(&device, &superblock)?.lease
            && lease.writer_uuid != self.writer_uuid
        {
            return Err(Error::Fenced { epoch: lease.epoch });
        }
        Writer::open(device, &self.options)
    }
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Reopener {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    reopened: Arc<AtomicU64>,
}

impl Reopener {
    /// Starts it.
    pub fn start(store: Store, store_uuid: [u8; 16], shared: Arc<SharedWriter<RawDevice>>, log: Log) -> Self {
        let (stop, stopped) = channel();
        let reopened = Arc::new(AtomicU64::new(0));
        let count = reopened.clone();
        let thread = std::thread::spawn(move || {
            watch(
                &stopped,
                &log,
                &count,
                || shared.may_reopen(),
                || shared.reopen(|| store.open_again(store_uuid)),
            );
        });
        Self { stop: Some(stop), thread: Some(thread), reopened }
    }

    /// How often the store was opened again.
    pub fn count(&self) -> Arc<AtomicU64> {
        self.reopened.clone()
    }
}

impl Drop for Reopener {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Looks every second; what fails is tried again after pauses that double. They are short again when all was well for a while.
fn watch(
    stopped: &Receiver<()>,
    log: &Log,
    count: &AtomicU64,
    has_failed: impl Fn() -> bool,
    reopen: impl Fn() -> Result<bool>,
) {
    let (mut pause, mut last_try) = (REOPEN_PAUSE_MIN, Instant::now());
    while stopped.recv_timeout(REOPEN_PAUSE_MIN) == Err(RecvTimeoutError::Timeout) {
        if !has_failed() {
            if last_try.elapsed() >= REOPEN_QUIET {
                pause = REOPEN_PAUSE_MIN;
            }
            continue;
        }
        if last_try.elapsed() < pause {
            continue;
        }
        match reopen() {
            Ok(false) => {}
            Ok(true) => {
                count.fetch_add(1, Ordering::Relaxed);
                log.say("the device had failed; the store is open for writing again".to_owned());
            }
            Err(error) => {
                log.say(format!("the device had failed; the store cannot be opened again: {error}"))
            }
        }
        last_try = Instant::now();
        pause = (pause * 2).min(REOPEN_PAUSE_MAX);
    }
}
