//! Changes that own their bytes, so that they can wait for a commit or come through a socket; and with their hashes, so that nobody hashes twice.

use crate::checksum::{DataHash, DataSums};
use crate::hash::hash_all;
use crate::path::ReceiptPath;
use crate::writer::{Change, Put};

/// A change with its own bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedChange {
    /// Stores a receipt.
    Put {
        /// Path.
        path: ReceiptPath,
        /// Bytes.
        data: Vec<u8>,
        /// Other data under the same path becomes its next version instead of being refused.
        is_new_version: bool,
        /// Retention class; `None` = that of the version before, or 0.
        class: Option<u8>,
        /// Days since 1970 when the receipt was issued; `None` = today.
        issued_day: Option<u32>,
        /// Refused unless it becomes this version; `None` = whichever comes next.
        version: Option<u16>,
    },
    /// Removes a path.
    Remove {
        /// Path.
        path: ReceiptPath,
    },
}

impl OwnedChange {
    /// A receipt issued today whose path must be new.
    #[must_use]
    pub fn put(path: ReceiptPath, data: Vec<u8>) -> Self {
        Self::Put { path, data, is_new_version: false, class: None, issued_day: None, version: None }
    }

    fn data(&self) -> &[u8] {
        match self {
            Self::Put { data, .. } => data,
            Self::Remove { .. } => &[],
        }
    }

    /// Bytes of data.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        self.data().len() as u64
    }

    /// The change, borrowed.
    #[must_use]
    pub fn borrow(&self) -> Change<'_> {
        match self {
            Self::Put { path, data, is_new_version, class, issued_day, version } => Change::Put(Put {
                path,
                data,
                is_new_version: *is_new_version,
                class: *class,
                issued_day: *issued_day,
                version: *version,
            }),
            Self::Remove { path } => Change::Remove(path),
        }
    }
}

/// Changes that are made together.
pub type Group = Vec<OwnedChange>;

/// Changes that are made together, with hash and checksum of the data of each: whoever had the bytes in hand has hashed them, and nobody does again.
#[derive(Debug)]
pub struct HashedGroup(Vec<(OwnedChange, DataSums)>);

impl HashedGroup {
    /// Hashes every change.
    #[must_use]
    pub fn hash(group: Group) -> Self {
        Self::hash_all(vec![group]).pop().unwrap_or_else(|| Self(Vec::new()))
    }

    /// Hashes every change of all groups, on as many processors as there are.
    #[must_use]
    pub fn hash_all(groups: Vec<Group>) -> Vec<Self> {
        let datas: Vec<&[u8]> = groups.iter().flatten().map(OwnedChange::data).collect();
        let (hashes, ()) = hash_all(&datas, || ());
        let mut hashes = hashes.into_iter();
        groups.into_iter().map(|group| Self(group.into_iter().zip(hashes.by_ref()).collect())).collect()
    }

    /// A group of one change whose data was hashed as it came, with its BLAKE3.
    #[must_use]
    pub fn hashed(change: OwnedChange, hash: DataHash) -> Self {
        debug_assert_eq!(*blake3::hash(change.data()).as_bytes(), hash, "the hash is that of the data");
        let sums = DataSums::of_hashed(change.data(), hash);
        Self(vec![(change, sums)])
    }

    /// Both groups as one.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Bytes of data.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        self.0.iter().map(|(change, _)| change.data_len()).sum()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        self.0.iter().map(|(change, _)| change.borrow())
    }

    pub(crate) fn sums(&self) -> impl Iterator<Item = DataSums> + '_ {
        self.0.iter().map(|(_, sums)| *sums)
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "the hash is that of the data")]
    fn another_hash_is_noticed() {
        let path = ReceiptPath::new("one").unwrap();
        let _ = HashedGroup::hashed(OwnedChange::put(path, b"one".to_vec()), [0; 32]);
    }
}
