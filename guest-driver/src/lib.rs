//! Receipts by path on a shared raw disk: one writing guest, any number of reading guests, no lock and no network.
//!
//! The format is in `docs/format.md`. Two kinds of things exist on disk: [`page::Page`] (8 KiB, two slots, mutable) and
//! records ([`record::Header`], appended, immutable).
//!
//! A program begins with [`Store`], which opens a [`Writer`] (the one writer, one thread), a [`SharedWriter`] (many threads, whose changes
//! share flushes) or a [`Reader`] (any number, anywhere). All three work on any [`Device`].
//!
//! ```
//! use receipt_store::{FormatOptions, Put, ReceiptPath, Store};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let file = dir.path().join("disk.img");
//! # std::fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
//! let store = Store::at(&file); // `Store::find()` looks for the disk
//! store.format(&FormatOptions::default())?;
//! let mut writer = store.writer()?;
//! let path = ReceiptPath::new("2026/11/23/0001.png")?;
//! writer.put(&Put::new(&path, b"image"))?; // durable and visible when this returns
//! writer.close()?;
//!
//! assert_eq!(store.reader()?.get(&path)?.data(), b"image");
//! # Ok::<(), receipt_store::Error>(())
//! ```

mod aio;
pub mod apply;
pub mod batch;
pub mod chain;
pub mod checksum;
pub mod control;
pub mod day;
pub mod device;
pub mod discover;
pub mod error;
pub mod expire;
pub mod follow;
pub mod format;
pub mod grow;
mod hash;
mod image_lock;
pub mod index;
pub mod layout;
pub mod life;
pub mod list;
pub mod locator;
pub mod log;
pub mod note;
pub mod orders;
pub mod owned_change;
pub mod pace;
pub mod page;
pub mod page_store;
pub mod path;
pub mod policy;
pub mod raw_device;
pub mod reader;
pub mod record;
pub mod recover;
#[cfg(test)]
mod remove_tests;
#[cfg(feature = "render")]
pub mod render;
pub mod repair;
pub mod retire;
pub mod rules;
pub mod scrub;
pub mod sealed;
pub mod shared;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod socket;
pub mod space;
mod spares;
pub mod stop;
pub mod store;
pub mod summary;
pub mod superblock;
pub mod table;
mod throttle;
pub mod verify;
mod verify_life;
mod versions;
pub mod window;
pub mod wire;
pub mod writer;

pub use device::Device;
pub use error::{Error, Result};
pub use format::{FormatOptions, format, format_with_progress};
pub use locator::Locator;
pub use owned_change::OwnedChange;
pub use path::ReceiptPath;
pub use policy::{Hold, Policy, Retention, Term};
pub use raw_device::RawDevice;
pub use reader::{Reader, Receipt, Stat};
pub use repair::repair;
pub use shared::{CommitLimits, SharedWriter};
pub use store::Store;
pub use superblock::Superblock;
pub use writer::{Change, Put, Stored, Writer, WriterOptions};

/// Milliseconds since 1970 by the system's clock; informative only, the order of records is their sequence.
#[must_use]
pub fn clock_ms() -> u64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_1970.ok().and_then(|d| u64::try_from(d.as_millis()).ok()).unwrap_or_default()
}

/// Lower case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Random bytes of the operating system.
///
/// # Errors
/// [`Error::Usage`] where the system has none.
pub fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::Usage(format!("no random numbers: {error}")))?;
    Ok(bytes)
}
