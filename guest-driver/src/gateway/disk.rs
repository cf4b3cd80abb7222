//! This machine's view of the disk, for tasks of the reactor: reads block, so they run on threads of their own, a few at a time.

use super::answer::{Fault, Reply, bare_reply};
use super::limits::{LOOKS, READS, ROOM_TIME};
use bytes::Bytes;
use hyper::StatusCode;
use receipt_store::{RawDevice, Reader, Receipt, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A reader and how many may use it.
#[derive(Debug)]
pub struct Disk {
    reader: Reader<RawDevice>,
    reads: Arc<Semaphore>,
    /// Images that are being read or wait for memory.
    images: Arc<Semaphore>,
    /// Looks at the state of the store, which must not wait behind images.
    looks: Arc<Semaphore>,
}

/// Memory for bodies on their way, in KiB.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Semaphore>);

impl Memory {
    /// Room for so many MiB.
    pub fn new(mib: u32) -> Self {
        Self(Arc::new(Semaphore::new(usize::try_from(mib).unwrap_or_default() << 10)))
    }

    /// Waits for room for `bytes`.
    pub async fn take(&self, bytes: u64) -> Outcome<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        self.0.clone().acquire_many_owned(kib).await.map_err(|_| stopping())
    }
}

/// Result of what may end a request.
pub type Outcome<T> = std::result::Result<T, Fault>;

fn stopping() -> Fault {
    Fault::unavailable("stopping", "the gateway is stopping")
}

/// The device that is named, or the one receipt disk of this machine.
pub fn device_path(device: Option<&Path>) -> Result<PathBuf> {
    device.map_or_else(receipt_store::discover::find_device, |path| Ok(path.to_owned()))
}

impl Disk {
    /// Opens the device for reading.
    pub fn open(path: &Path) -> Result<Self> {
        let reader = Reader::new(RawDevice::open_reader(path)?, &path.display().to_string());
        let places = |count| Arc::new(Semaphore::new(count));
        Ok(Self { reader, reads: places(READS), images: places(READS), looks: places(LOOKS) })
    }

    /// Does `work` on a thread that may block. The permit goes with it: a read that never ends counts for ever.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Reader<RawDevice>) -> Result<T> + Send + 'static,
    ) -> Outcome<T> {
        self.run_with(&self.reads, work).await
    }

    /// As [`Disk::run`], for a look at the state of the store.
    pub async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Reader<RawDevice>) -> Result<T> + Send + 'static,
    ) -> Outcome<T> {
        self.run_with(&self.looks, work).await
    }

    async fn run_with<T: Send + 'static>(
        self: &Arc<Self>,
        places: &Arc<Semaphore>,
        work: impl FnOnce(&Reader<RawDevice>) -> Result<T> + Send + 'static,
    ) -> Outcome<T> {
        let permit = places.clone().acquire_owned().await.map_err(|_| stopping())?;
        let disk = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let done = work(&disk.reader);
            drop(permit);
            done
        });
        let answer = task.await.map_err(|error| internal(&error))?;
        Ok(answer?)
    }

    /// Reads a receipt; its memory counts until the last byte of it has gone. Clients that take their images slowly keep others waiting for memory,
    /// but not for long, and not for reads.
    pub async fn receipt(
        self: &Arc<Self>,
        memory: &Memory,
        get: impl FnOnce(&Reader<RawDevice>) -> Result<Receipt> + Send + 'static,
    ) -> Outcome<Image> {
        // Held until there is room: what was read and has none yet is bounded.
        let place = soon(self.images.clone().acquire_owned()).await?.map_err(|_| stopping())?;
        let receipt = self.run(get).await?;
        let room = soon(memory.take(receipt.data().len() as u64)).await??;
        drop(place);
        let stat = receipt.stat();
        Ok(Image { stat, data: Bytes::from_owner(Held { receipt, _room: room }) })
    }
}

/// What has to come soon, or the request is refused.
async fn soon<T>(wait: impl Future<Output = T>) -> Outcome<T> {
    let busy = |_| Fault::unavailable("busy", "too many images are on their way to slow clients");
    tokio::time::timeout(ROOM_TIME, wait).await.map_err(busy)
}

/// A receipt in memory.
#[derive(Debug)]
pub struct Image {
    /// What is known about it.
    pub stat: receipt_store::Stat,
    /// Its bytes.
    pub data: Bytes,
}

#[derive(Debug)]
struct Held {
    receipt: Receipt,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.receipt.data()
    }
}

/// A task that panicked: the request fails, the gateway goes on.
pub fn internal(error: &impl std::fmt::Display) -> Fault {
    Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the gateway failed").because(error)
}

/// An empty answer.
pub fn empty(status: StatusCode) -> Reply {
    bare_reply(status, Bytes::new())
}
