//! Business ids: a small record under a reserved prefix says the path of an id, so the store itself is the only database.
//!
//! `.id/HASH` holds `{"id": ID, "path": PATH}`, HASH being the BLAKE3 of the id in hexadecimal: any text is an id, and every such path
//! keeps the rules. It is written in the group commit of its receipt. An id names one path for ever; versions do not change it.

use super::answer::Fault;
use super::limits::ID_BYTES;
use hyper::header::HeaderName;
use receipt_store::{Error, OwnedChange, RawDevice, Reader, ReceiptPath, Result, Stat};
use serde_json::{Value, json};

/// The header in which the issuer answers the path of an id, percent-encoded. One letter: it crosses the network for every receipt.
pub const PATH_HEADER: HeaderName = HeaderName::from_static("p");

const PREFIX: &str = receipt_store::path::ID_PREFIX;

/// An id that keeps the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id(String);

impl Id {
    /// Checks the limits.
    pub fn new(text: &str) -> std::result::Result<Self, Fault> {
        match text.len() {
            0 => Err(Fault::bad("the id is empty")),
            len if len > ID_BYTES => {
                Err(Fault::bad(format!("the id has {len} bytes, the limit is {ID_BYTES}")))
            }
            _ => Ok(Self(text.to_owned())),
        }
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn record_path(&self) -> Result<ReceiptPath> {
        ReceiptPath::new(&format!("{PREFIX}{}", blake3::hash(self.0.as_bytes()).to_hex()))
    }

    /// The change that gives this id to `path`.
    pub fn change(&self, path: &ReceiptPath) -> Result<OwnedChange> {
        let data = json!({ "id": self.0, "path": path.as_str() }).to_string().into_bytes();
        Ok(OwnedChange::put(self.record_path()?, data))
    }

    fn not_found(&self) -> Error {
        Error::NotFound { path: format!("id {:?}", self.0) }
    }

    /// The path of this id, whether a receipt is there or was removed: 2 device reads.
    pub fn path(&self, reader: &Reader<RawDevice>) -> Result<ReceiptPath> {
        let record = match reader.get(&self.record_path()?) {
            Err(Error::NotFound { .. }) => return Err(self.not_found()),
            record => record?,
        };
        let value: Value = serde_json::from_slice(record.data()).unwrap_or_default();
        let path = value["path"].as_str().and_then(|path| ReceiptPath::new(path).ok());
        let path = path.filter(|path| value["id"] == self.0 && !is_reserved(path));
        path.ok_or_else(|| Error::Corrupt(format!("the record of the id {:?}", self.0)))
    }

    /// Where the receipt of this id is: 2 device reads for the id, 2 for the receipt.
    pub fn find(&self, reader: &Reader<RawDevice>) -> Result<Stat> {
        match reader.stat(&self.path(reader)?) {
            Err(Error::NotFound { .. }) => Err(self.not_found()),
            stat => stat,
        }
    }
}

/// Whether a path belongs to an id: no receipt is stored, listed or shown under such a one.
pub fn is_reserved(path: &ReceiptPath) -> bool {
    path.as_str().starts_with(PREFIX)
}
