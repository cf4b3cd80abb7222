//! Which versions of an export with all versions the store has already, so that an import goes on where it was ended and keeps their order.

use super::line::Item;
use receipt_store::{Error, OwnedChange, RawDevice, Reader, ReceiptPath, Result, Stat};

/// What becomes of an item.
pub enum Step {
    /// It is stored.
    Stored(Stat),
    /// To be stored.
    Put(OwnedChange),
}

/// The versions of one path after the other, each the oldest first.
pub struct Stored {
    reader: Reader<RawDevice>,
    path: Option<ReceiptPath>,
    /// Those in the store that are not met yet, the newest first.
    versions: Vec<Stat>,
    /// Version that the next one becomes.
    next_version: u16,
}

impl Stored {
    pub fn new(reader: Reader<RawDevice>) -> Self {
        Self { reader, path: None, versions: Vec::new(), next_version: 1 }
    }

    /// Takes the next version; `data` may be missing or wrong, and then none after it is stored either: it would get its number.
    pub fn take(&mut self, item: Item, data: Result<Vec<u8>>) -> Result<Step> {
        if self.path.as_ref() != Some(&item.path) {
            self.look(&item.path)?;
        }
        let met = self.versions.iter().rposition(|stat| item.is_hash(stat.header.data_hash));
        if let Some(stat) = met.and_then(|at| self.versions.drain(at..).next()) {
            let header = &stat.header;
            if (header.class, header.issued_day) != (item.class, item.issued_day) {
                return Err(Error::kept_otherwise(&item.path, header));
            }
            return Ok(Step::Stored(stat));
        }
        if let Some(newest) = self.versions.first() {
            return Err(Error::Exists { path: item.path.to_string(), seq: newest.header.seq });
        }
        let path = item.path.to_string();
        let version = self.next_version;
        self.next_version = version.checked_add(1).ok_or(Error::TooManyVersions { path })?;
        let data = data?;
        item.check(&data)?;
        Ok(Step::Put(OwnedChange::Put {
            path: item.path,
            data,
            is_new_version: true,
            class: Some(item.class),
            issued_day: Some(item.issued_day),
            version: Some(version),
        }))
    }

    fn look(&mut self, path: &ReceiptPath) -> Result<()> {
        self.path = None;
        self.versions = match self.reader.stat(path) {
            Ok(newest) => {
                let mut versions = self.reader.versions_before(&newest)?;
                versions.push(newest);
                versions
            }
            Err(Error::NotFound { .. } | Error::Pending { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        self.versions.reverse();
        let newest = self.versions.first().map_or(0, |stat| stat.header.version);
        let too_many = || Error::TooManyVersions { path: path.to_string() };
        self.next_version = newest.checked_add(1).ok_or_else(too_many)?;
        self.path = Some(path.clone());
        Ok(())
    }
}
