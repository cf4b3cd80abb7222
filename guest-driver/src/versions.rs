//! Older versions of a receipt: each record names the one before it.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::GET_ATTEMPTS_MAX;
use crate::log::read_header;
use crate::path::ReceiptPath;
use crate::reader::{Reader, Receipt, Stat};
use crate::record::FLAG_MOVED;

impl<D: Device> Reader<D> {
    /// Reads an older version; 1 is the first. One more device read a version back.
    ///
    /// # Errors
    /// As [`Reader::get`]; [`Error::NotFound`] when there are fewer versions.
    pub fn get_version(&self, path: &ReceiptPath, version: u16) -> Result<Receipt> {
        for _ in 0..GET_ATTEMPTS_MAX {
            // None: it was erased, or its segment retired, since its header was read.
            if let Some(receipt) = self.version_now(path, version)? {
                return Ok(receipt);
            }
        }
        let fact = format!("version {version} changes while it is read");
        Err(Error::CorruptReceipt { path: path.to_string(), fact })
    }

    fn version_now(&self, path: &ReceiptPath, version: u16) -> Result<Option<Receipt>> {
        let mut stat = self.stat(path)?;
        if version == 0 || version > stat.header.version {
            return Err(Error::NotFound { path: format!("{path} version {version}") });
        }
        while stat.header.version > version {
            stat = self.version_before(&stat)?.ok_or_else(|| gone(path, version))?;
        }
        self.read_version(&stat)
    }

    /// The versions before this one that are still there, the oldest first: one device read each. A damaged one that was mended, by storing the
    /// same data again as the version after it, is left out.
    ///
    /// # Errors
    /// A device error or [`Error::CorruptReceipt`].
    pub fn versions_before(&self, newest: &Stat) -> Result<Vec<Stat>> {
        let mut versions: Vec<Stat> = Vec::new();
        let mut stat = newest.clone();
        while let Some(older) = self.version_before(&stat)? {
            if older.header.data_hash != stat.header.data_hash {
                versions.push(older.clone());
            }
            stat = older;
        }
        versions.reverse();
        Ok(versions)
    }

    /// Reads one version: one device read. `None` when it has gone meanwhile.
    ///
    /// # Errors
    /// A device error or [`Error::CorruptReceipt`].
    pub fn read_version(&self, stat: &Stat) -> Result<Option<Receipt>> {
        stat.locator().read(self.device(), &*self.superblock()?)
    }

    /// The version before this one; `None` when this is the first, or the one before has gone.
    fn version_before(&self, stat: &Stat) -> Result<Option<Stat>> {
        let newer = &stat.header;
        // A receipt is copied only when its older versions are gone.
        if newer.version <= 1 || newer.flags & FLAG_MOVED != 0 {
            return Ok(None);
        }
        let (block, seq) = (newer.previous_version_block, newer.previous_version_seq);
        let corrupt = |fact: &str| Error::CorruptReceipt {
            path: stat.path.to_string(),
            fact: format!("older version at block {block}: {fact}"),
        };
        let superblock = &*self.superblock()?;
        if !superblock.geometry.holds_record(block, 1) {
            return Err(corrupt("address out of bounds"));
        }
        let parsed = read_header(self.device(), superblock, block)?;
        let is_there = parsed.as_ref().is_ok_and(|(header, _)| header.seq == seq);
        if !is_there && self.is_retired(superblock, block, seq)? {
            return Ok(None);
        }
        let (header, _) = parsed.map_err(|fault| corrupt(&fault.to_string()))?;
        let is_older = header.version < newer.version;
        if header.seq != seq || header.meta != stat.path.as_str().as_bytes() || !is_older {
            return Err(corrupt("another record"));
        }
        Ok(Some(Stat { path: stat.path.clone(), header }))
    }
}

fn gone(path: &ReceiptPath, version: u16) -> Error {
    Error::NotFound { path: format!("{path} version {version} (it is gone)") }
}
