//! The way in for programs: a store by the name of its device.

use crate::error::Result;
use crate::format::{FormatOptions, format};
use crate::raw_device::RawDevice;
use crate::reader::Reader;
use crate::shared::{CommitLimits, SharedWriter};
use crate::writer::{Writer, WriterOptions};
use std::path::{Path, PathBuf};

/// A device that holds a store, or will. Nothing is open until a reader or writer is asked for.
///
/// ```
/// use receipt_store::{CommitLimits, FormatOptions, OwnedChange, Put, ReceiptPath, Store};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let file = dir.path().join("disk.img");
/// # std::fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
/// let store = Store::at(&file);
/// store.format(&FormatOptions::default())?;
///
/// // One thread writes:
/// let path = ReceiptPath::new("2026/11/23/0001.png")?;
/// let mut writer = store.writer()?;
/// let stored = writer.put(&Put::new(&path, b"image"))?;
/// writer.close()?;
///
/// // Many threads write, and share flushes:
/// let shared = store.shared_writer(CommitLimits::default())?;
/// std::thread::scope(|scope| {
///     for number in 0..8 {
///         let shared = &shared;
///         scope.spawn(move || {
///             let path = ReceiptPath::new(&format!("2026/11/24/{number}.png"))?;
///             shared.change(OwnedChange::put(path, b"image".to_vec()))
///         });
///     }
/// });
/// shared.close()?;
///
/// // Anybody reads, here or in another machine:
/// let reader = store.reader()?;
/// assert_eq!(reader.get(&path)?.data(), b"image");
/// assert_eq!(reader.get_locator(&stored.locator)?.data(), b"image");
/// let mut count = 0;
/// reader.list("2026/11/24/", |_| {
///     count += 1;
///     Ok(())
/// })?;
/// assert_eq!(count, 8);
/// # Ok::<(), receipt_store::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Store {
    device: PathBuf,
}

impl Store {
    /// The store on this block device or in this file.
    #[must_use]
    pub fn at(device: &Path) -> Self {
        Self { device: device.to_owned() }
    }

    /// The store on the one disk whose serial begins with `receiptdisk`.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] when there is none, or more than one.
    pub fn find() -> Result<Self> {
        Ok(Self { device: crate::discover::find_device()? })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Makes the store.
    ///
    /// # Errors
    /// As [`format`](fn@crate::format) and [`RawDevice::open_writer`].
    pub fn format(&self, options: &FormatOptions) -> Result<()> {
        format(&RawDevice::open_writer(&self.device)?, options).map(|_| ())
    }

    /// Opens the store for writing.
    ///
    /// # Errors
    /// As [`Writer::open`] and [`RawDevice::open_writer`].
    pub fn writer(&self) -> Result<Writer<RawDevice>> {
        let options = WriterOptions { name: self.device.display().to_string(), ..WriterOptions::default() };
        Writer::open(RawDevice::open_writer(&self.device)?, &options)
    }

    /// Opens the store for writing by many threads.
    ///
    /// # Errors
    /// As [`Store::writer`].
    pub fn shared_writer(&self, limits: CommitLimits) -> Result<SharedWriter<RawDevice>> {
        Ok(SharedWriter::new(self.writer()?, limits))
    }

    /// Opens the store for reading.
    ///
    /// # Errors
    /// As [`RawDevice::open_reader`]; what is on the device is looked at by the first call of the reader.
    pub fn reader(&self) -> Result<Reader<RawDevice>> {
        Ok(Reader::new(RawDevice::open_reader(&self.device)?, &self.device.display().to_string()))
    }
}
