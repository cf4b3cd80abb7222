//! Paths of receipts: the rules, and the keyed hash that finds them.

use crate::error::{Error, Result};
use crate::layout::PATH_BYTES_MAX;

/// What the paths begin with under which `receipt-gateway` keeps business ids: records about receipts, none themselves.
pub const ID_PREFIX: &str = ".id/";

/// A path that keeps the rules: UTF-8, 1 to 1024 bytes, parts divided by `/`, none empty, `.` or `..`, no control
/// characters (so that a list of paths can have one a line). A leading `/` is accepted and dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReceiptPath(String);

impl ReceiptPath {
    /// Checks the rules.
    ///
    /// # Errors
    /// [`Error::BadPath`] names the rule that `text` breaks.
    pub fn new(text: &str) -> Result<Self> {
        let path = text.strip_prefix('/').unwrap_or(text);
        match broken_rule(path) {
            None => Ok(Self(path.to_owned())),
            Some(reason) => Err(Error::BadPath { path: text.chars().take(200).collect(), reason }),
        }
    }

    /// As [`ReceiptPath::new`], for bytes that may not be UTF-8.
    ///
    /// # Errors
    /// [`Error::BadPath`] names the rule.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::new(text),
            Err(_) => {
                Err(Error::BadPath { path: String::from_utf8_lossy(bytes).into_owned(), reason: "not UTF-8" })
            }
        }
    }

    /// The path without a leading `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ReceiptPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn broken_rule(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("empty");
    }
    if path.len() > PATH_BYTES_MAX {
        return Some("longer than 1024 bytes");
    }
    if path.chars().any(char::is_control) {
        return Some("has a control character");
    }
    if looks_like_locator(path) {
        return Some("ends like a locator (`@` and four numbers with dots between)");
    }
    path.split('/').find_map(|part| match part {
        "" => Some("has an empty part"),
        "." => Some("has a part `.`"),
        ".." => Some("has a part `..`"),
        _ => None,
    })
}

/// A locator is a path and an address: a path of that form could be read as another receipt's locator.
fn looks_like_locator(path: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    path.rsplit_once('@').is_some_and(|(_, address)| {
        let numbers: Vec<&str> = address.split('.').collect();
        numbers.len() == 4 && numbers.into_iter().all(is_number)
    })
}

/// Keyed hash of a path. The key is random for each store, so that nobody can craft paths that share a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PathHash {
    /// Chooses the bucket.
    pub bucket: u64,
    /// Names the path inside its bucket.
    pub tag: u64,
}

impl PathHash {
    /// Hash of `path` under `path_key`.
    #[must_use]
    pub fn of(path_key: &[u8; 32], path: &[u8]) -> Self {
        let hash = blake3::keyed_hash(path_key, path);
        let mut halves = hash.as_bytes().chunks_exact(8).map(|c| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(c);
            u64::from_le_bytes(bytes)
        });
        Self { bucket: halves.next().unwrap_or_default(), tag: halves.next().unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_rules() {
        for good in [
            "a",
            "/a",
            "a/b.png",
            "2026/11/回单.png",
            "a b/c@d",
            "a@1.2.3",
            "a@1.2.3.4.png",
            ".hidden/..x/...",
            &"x".repeat(1024),
        ] {
            assert!(ReceiptPath::new(good).is_ok(), "{good}");
        }
        assert_eq!(ReceiptPath::new("/a/b").unwrap().as_str(), "a/b");
        let long = "x".repeat(1025);
        for bad in [
            "",
            "/",
            "//a",
            "a//b",
            "a/",
            ".",
            "..",
            "a/./b",
            "../a",
            "a/..",
            "a\0b",
            "a\nb",
            "a\tb",
            "a\x7f",
            &long,
            "alice@192.168.1.7",
            "a@1.2.3.4",
        ] {
            let error = ReceiptPath::new(bad).unwrap_err();
            assert!(matches!(error, Error::BadPath { .. }), "{bad:?}");
            assert_eq!(error.exit_code(), 2);
        }
        assert!(ReceiptPath::from_bytes(&[b'a', 0xff]).is_err());
    }

    #[test]
    fn hash_depends_on_the_key() {
        let (one, two) = (PathHash::of(&[1; 32], b"a"), PathHash::of(&[2; 32], b"a"));
        assert_ne!(one, two);
        assert_ne!(one.bucket, one.tag);
    }
}
