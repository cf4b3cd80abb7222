//! What a writer is asked to do, and what it answers.

use crate::error::{Error, Result};
use crate::layout::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, DATA_BYTES_MAX};
use crate::locator::Locator;
use crate::path::ReceiptPath;

/// One receipt to store.
#[derive(Clone, Debug)]
pub struct Put<'a> {
    /// Path.
    pub path: &'a ReceiptPath,
    /// Bytes, kept as they are.
    pub data: &'a [u8],
    /// Other data under the same path becomes its next version instead of being refused.
    pub is_new_version: bool,
    /// Days since 1970 when the receipt was issued; `None` = today.
    pub issued_day: Option<u32>,
    /// Retention class; `None` = that of the version before, or 0.
    pub class: Option<u8>,
    /// Refused unless it becomes this version; `None` = whichever comes next.
    pub version: Option<u16>,
}

impl<'a> Put<'a> {
    /// A receipt issued today whose path must be new.
    #[must_use]
    pub fn new(path: &'a ReceiptPath, data: &'a [u8]) -> Self {
        Self { path, data, is_new_version: false, issued_day: None, class: None, version: None }
    }
}

/// One change of the store.
#[derive(Clone, Debug)]
pub enum Change<'a> {
    /// Stores a receipt.
    Put(Put<'a>),
    /// Removes a path whose term is over, or has none: it is "not found" from then on and may be stored anew, as version 1. The log keeps
    /// the bytes, and locators still find them, until the segment is retired.
    Remove(&'a ReceiptPath),
}

impl Change<'_> {
    pub(super) fn data(&self) -> &[u8] {
        match self {
            Self::Put(put) => put.data,
            Self::Remove(_) => &[],
        }
    }

    pub(super) fn path(&self) -> &ReceiptPath {
        match self {
            Self::Put(put) => put.path,
            Self::Remove(path) => path,
        }
    }
}

/// An acknowledged change: durable, and every reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where the record lies: the receipt, or the Tombstone of a removal (which no get takes).
    pub locator: Locator,
    /// Version of the path that was stored or removed, from 1.
    pub version: u16,
    /// False when the same data was stored under this path before.
    pub is_new: bool,
}

/// Checks the limits of a group commit.
pub(super) fn check_limits(groups: &[&[Change<'_>]]) -> Result<()> {
    let count = groups.iter().map(|group| group.len()).sum::<usize>();
    let bytes: u64 = groups.iter().copied().flatten().map(|change| change.data().len() as u64).sum();
    let bytes_max = if groups.len() > 1 { BATCH_BYTES_MAX } else { DATA_BYTES_MAX + BATCH_BYTES_MAX };
    // One change alone is held against the limit of its store, with an answer of its own.
    if count > BATCH_RECORDS_MAX || (count > 1 && bytes > bytes_max) {
        return Err(Error::Usage(format!(
            "a group commit takes {BATCH_RECORDS_MAX} changes and {bytes_max} bytes, this one has {count} and {bytes}"
        )));
    }
    Ok(())
}
