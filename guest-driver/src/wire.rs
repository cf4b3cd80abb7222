//! How writing commands reach the process that holds the writer: frames on a Unix stream socket.
//!
//! A frame is a u32 (little-endian) length, that many bytes of JSON, and in a request the data of its puts one after the other.
//! A scrub: `{"store": UUID, "scrub": {"throttle": MiB/s or null}}`; answers: `{"log" or "index": [done, all]}` and
//! `{"finding": {"path", "place", "fact"}, "mended"}`, any number of them, then `{"totals": {..}}` or an error as below.
//! Request: `{"store": UUID, "changes": [{"path", "bytes" (none = remove), "new_version", "class", "issued_day", "version"}]}`. Answer: `{"answers": [{"locator", "version",
//! "new"} or {"error", "exit_code"}]}`. A request is one group commit, so it has the limits of one. `{"store": UUID, "order": {..}}` is answered by
//! events, one a frame, and `{"done": true}` or `{"error", "exit_code"}`.

use crate::layout::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, DATA_BYTES_MAX};
use crate::{Error, Locator, OwnedChange, ReceiptPath, Result, Stored};
use serde_json::{Value, json};
use std::io::{Read, Write};

/// Most bytes of JSON in a frame: 256 paths of 1,024 bytes, escaped.
const JSON_BYTES_MAX: u32 = 4 << 20;

/// A failure of the connection.
#[must_use]
pub fn broken(source: std::io::Error) -> Error {
    Error::File { name: "the connection to the running writer".to_owned(), source }
}

fn bad(what: &str) -> Error {
    Error::Usage(format!("bad frame on the socket: {what}"))
}

/// A number that may be missing, but not out of bounds.
fn small<T: TryFrom<u64>>(value: &Value) -> Result<Option<T>> {
    value.as_u64().map(T::try_from).transpose().map_err(|_| bad("a number is out of bounds"))
}

/// Writes a frame without data.
///
/// # Errors
/// The connection broke, or the frame is too long.
pub fn write_frame(stream: &mut impl Write, value: &Value) -> Result<()> {
    let text = value.to_string();
    let len = u32::try_from(text.len()).map_err(|_| bad("too long"))?;
    let bytes = [&len.to_le_bytes(), text.as_bytes()].concat();
    stream.write_all(&bytes).map_err(broken)
}

/// Reads the JSON of a frame whose length was read.
///
/// # Errors
/// The connection broke, or the frame is too long or no JSON.
pub fn read_json(stream: &mut impl Read, len: [u8; 4]) -> Result<Value> {
    let len = u32::from_le_bytes(len);
    if len > JSON_BYTES_MAX {
        return Err(bad("too long"));
    }
    let mut text = Vec::new();
    stream.take(u64::from(len)).read_to_end(&mut text).map_err(broken)?;
    serde_json::from_slice(&text).map_err(|_| bad("no JSON"))
}

/// Reads a frame without data.
///
/// # Errors
/// As [`read_json`].
pub fn read_frame(stream: &mut impl Read) -> Result<Value> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).map_err(broken)?;
    read_json(stream, len)
}

/// The JSON of a request.
#[must_use]
pub fn request(store: &str, changes: &[OwnedChange]) -> Value {
    let changes: Vec<Value> = changes
        .iter()
        .map(|change| match change {
            OwnedChange::Put { path, data, is_new_version, class, issued_day, version } => json!({
                "path": path.as_str(), "bytes": data.len(), "new_version": is_new_version, "class": class,
                "issued_day": issued_day, "version": version,
            }),
            OwnedChange::Remove { path } => json!({ "path": path.as_str() }),
        })
        .collect();
    json!({ "store": store, "changes": changes })
}

/// A change whose data is not read yet.
#[derive(Debug)]
struct Announcement {
    path: ReceiptPath,
    /// None = remove.
    bytes: Option<u64>,
    is_new_version: bool,
    class: Option<u8>,
    issued_day: Option<u32>,
    version: Option<u16>,
}

/// What a request announces; its data is not read yet.
#[derive(Debug)]
pub struct Announced {
    /// Hexadecimal uuid of the store that is meant.
    pub store: String,
    changes: Vec<Announcement>,
    /// Bytes of data that follow.
    pub bytes: u64,
}

impl Announced {
    /// Checks the limits of a group commit; the data of one put may be too large by one byte, which the writer then refuses.
    ///
    /// # Errors
    /// [`Error::Usage`] or [`Error::BadPath`].
    pub fn parse(value: &Value) -> Result<Self> {
        let list = value["changes"].as_array().ok_or_else(|| bad("no changes"))?;
        let mut announced = Self {
            store: value["store"].as_str().unwrap_or_default().to_owned(),
            changes: Vec::new(),
            bytes: 0,
        };
        for change in list {
            let path = ReceiptPath::new(change["path"].as_str().unwrap_or_default())?;
            let bytes = change["bytes"].as_u64();
            if bytes.unwrap_or_default() > DATA_BYTES_MAX + 1 {
                return Err(bad("too much data"));
            }
            announced.bytes += bytes.unwrap_or_default();
            let is_new_version = change["new_version"] == true;
            let class = small(&change["class"])?;
            let issued_day = small(&change["issued_day"])?;
            let version = small(&change["version"])?;
            announced.changes.push(Announcement { path, bytes, is_new_version, class, issued_day, version });
        }
        if list.len() > BATCH_RECORDS_MAX || (list.len() > 1 && announced.bytes > BATCH_BYTES_MAX) {
            return Err(bad("more than a group commit takes"));
        }
        Ok(announced)
    }

    /// Reads the data that follows.
    ///
    /// # Errors
    /// The connection broke.
    pub fn read_data(self, stream: &mut impl Read) -> Result<Vec<OwnedChange>> {
        let mut changes = Vec::new();
        for Announcement { path, bytes, is_new_version, class, issued_day, version } in self.changes {
            changes.push(match bytes {
                None => OwnedChange::Remove { path },
                Some(bytes) => {
                    let mut data = vec![0; usize::try_from(bytes).map_err(|_| bad("too much data"))?];
                    stream.read_exact(&mut data).map_err(broken)?;
                    OwnedChange::Put { path, data, is_new_version, class, issued_day, version }
                }
            });
        }
        Ok(changes)
    }
}

/// The JSON of an answer.
#[must_use]
pub fn answer(result: &Result<Stored>) -> Value {
    match result {
        Ok(stored) => {
            json!({ "locator": stored.locator.to_string(), "version": stored.version, "new": stored.is_new })
        }
        Err(error) => answer_error(error),
    }
}

/// The answer that says what went wrong.
#[must_use]
pub fn answer_error(error: &Error) -> Value {
    json!({ "error": error.to_string(), "exit_code": error.exit_code() })
}

/// An error of the running writer.
#[must_use]
pub fn parse_error(value: &Value) -> Error {
    let Some(text) = value["error"].as_str() else {
        return bad("no answer");
    };
    let exit_code = value["exit_code"].as_u64().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Error::Remote { text: text.to_owned(), exit_code }
}

/// An answer as if this process had the writer.
///
/// # Errors
/// What the writer answered, or [`Error::Usage`] when that makes no sense.
pub fn parse_answer(value: &Value) -> Result<Stored> {
    if value["error"].is_string() {
        return Err(parse_error(value));
    }
    let locator = value["locator"].as_str().and_then(Locator::parse).ok_or_else(|| bad("no answer"))?;
    let version = value["version"].as_u64().and_then(|version| u16::try_from(version).ok());
    Ok(Stored {
        locator,
        version: version.ok_or_else(|| bad("no version"))?,
        is_new: value["new"].as_bool().unwrap_or_default(),
    })
}
