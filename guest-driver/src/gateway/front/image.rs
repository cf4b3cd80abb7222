//! `GET /receipts/PATH`: the bytes as they were stored.

use super::Front;
use super::range::Part;
use crate::answer::{Fault, Reply, bare_reply};
use crate::disk::{Image, Outcome, empty};
use crate::server::Asked;
use crate::target::{Query, Wanted, encode, encode_path};
use bytes::Bytes;
use hyper::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, StatusCode};
use receipt_store::{RawDevice, Reader, Receipt, Stat, hex};

/// The type of bytes that are none of the known ones.
const OTHER_TYPE: &str = "application/octet-stream";

/// What the first bytes say that a receipt is. Any bytes are stored, so this may be wrong; browsers are told not to guess further.
pub fn content_type(data: &[u8]) -> &'static str {
    let kinds: [(&[u8], &str); 3] =
        [(b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"%PDF-", "application/pdf")];
    kinds.into_iter().find_map(|(magic, name)| data.starts_with(magic).then_some(name)).unwrap_or(OTHER_TYPE)
}

/// A name for a saved file: the last part of the path.
pub fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl Front {
    /// `GET /receipts/PATH[?version=N][&hash=HASH][&download=1]`; PATH may be a locator.
    pub async fn image(&self, asked: &Asked, encoded: &str) -> Outcome<Reply> {
        let query = Query::strict(asked.uri.query(), &["version", "hash", "download"])?;
        let version = match query.number("version")? {
            Some(number) => Some(u16::try_from(number).map_err(|_| Fault::not_found("no such version"))?),
            None => None,
        };
        self.send(asked, Self::wanted(encoded)?, &query, version).await
    }

    /// Reads and verifies a receipt; against its hash, which takes longer, for whoever shows or names that.
    pub async fn read(&self, wanted: Wanted, version: Option<u16>, is_hashed: bool) -> Outcome<Image> {
        let get = move |reader: &Reader<RawDevice>| {
            let receipt = get(reader, &wanted, version)?;
            if is_hashed {
                receipt.check_hash()?;
            }
            Ok(receipt)
        };
        self.disk.receipt(&self.memory, get).await
    }

    /// Answers with a receipt.
    pub async fn send(
        &self,
        asked: &Asked,
        wanted: Wanted,
        query: &Query,
        version: Option<u16>,
    ) -> Outcome<Reply> {
        let is_download = query.flag("download")?;
        let expected = query.get("hash");
        let image = self.read(wanted, version, expected.is_some()).await?;
        let hash = hex(&image.stat.header.data_hash);
        let etag = format!("\"{hash}\"");
        // Only a hash names bytes for ever. A locator may be that of another receipt once the disk was formatted anew or an older copy of it was
        // brought back, a path and a version name others in time anyway.
        if expected.is_some_and(|expected| expected != hash) {
            let message = "the receipt is another one than ?hash= names";
            return Err(Fault::new(StatusCode::PRECONDITION_FAILED, "changed", message).with(ETAG, &etag));
        }
        if !is_expected(&asked.headers, &etag) {
            let message = "the receipt is another one than If-Match asks for: another version was stored";
            return Err(Fault::new(StatusCode::PRECONDITION_FAILED, "changed", message).with(ETAG, &etag));
        }
        let mut reply = if is_known(&asked.headers, &etag) {
            empty(StatusCode::NOT_MODIFIED)
        } else {
            body(asked, &etag, &image, is_download)
        };
        let headers = reply.headers_mut();
        set(headers, ETAG, &etag);
        let caching =
            if expected.is_some() { "private, max-age=31536000, immutable" } else { "private, no-cache" };
        set(headers, CACHE_CONTROL, caching);
        describe(headers, &image.stat);
        Ok(reply)
    }
}

fn get(reader: &Reader<RawDevice>, wanted: &Wanted, version: Option<u16>) -> receipt_store::Result<Receipt> {
    match (wanted, version) {
        (Wanted::Locator(locator), None) => reader.get_locator(locator),
        (Wanted::Path(path), None) => reader.get(path),
        (wanted, Some(version)) => reader.get_version(wanted.path(), version),
    }
}

fn body(asked: &Asked, etag: &str, image: &Image, is_download: bool) -> Reply {
    let data = &image.data;
    let part = match asked.method {
        Method::GET => Part::of(&asked.headers, etag, data.len()),
        _ => Part::Whole,
    };
    let mut reply = match part {
        Part::Whole => bare_reply(StatusCode::OK, data.clone()),
        Part::Bytes(first, last) => {
            let mut reply = bare_reply(StatusCode::PARTIAL_CONTENT, data.slice(first..=last));
            set(reply.headers_mut(), CONTENT_RANGE, &format!("bytes {first}-{last}/{}", data.len()));
            reply
        }
        Part::Beyond => {
            let mut reply = bare_reply(StatusCode::RANGE_NOT_SATISFIABLE, Bytes::new());
            set(reply.headers_mut(), CONTENT_RANGE, &format!("bytes */{}", data.len()));
            return reply;
        }
    };
    let headers = reply.headers_mut();
    let content_type = content_type(data);
    set(headers, CONTENT_TYPE, content_type);
    set(headers, X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(headers, ACCEPT_RANGES, "bytes");
    // Should the bytes be a page after all, it may do nothing. A browser's own viewer of PDF would not start under this.
    if content_type != "application/pdf" {
        set(headers, CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; sandbox");
    }
    let name = encode(file_name(image.stat.path.as_str()), "");
    let is_shown = !is_download && content_type != OTHER_TYPE;
    let kind = if is_shown { "inline" } else { "attachment" };
    set(headers, CONTENT_DISPOSITION, &format!("{kind}; filename*=UTF-8''{name}"));
    reply
}

/// What is known about a receipt, for programs.
fn describe(headers: &mut HeaderMap, stat: &Stat) {
    let locator = encode_path(&stat.locator().to_string());
    set(headers, HeaderName::from_static("receipt-locator"), &locator);
    set(headers, HeaderName::from_static("receipt-version"), &stat.header.version.to_string());
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The tags of a header that lists them; `None` when it is not there.
fn tags<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<impl Iterator<Item = &'h str>> {
    let all = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default());
    headers.contains_key(name).then(|| all.flat_map(|list| list.split(',')).map(str::trim))
}

/// Whether `If-None-Match` has this tag. Weak comparison: a `W/` before the tag does not count.
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let mut tags = tags(headers, &IF_NONE_MATCH).into_iter().flatten();
    tags.any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

/// Whether `If-Match` allows this tag: somebody who has a part of one version must not be given the rest of another.
fn is_expected(headers: &HeaderMap, etag: &str) -> bool {
    tags(headers, &IF_MATCH).is_none_or(|mut tags| tags.any(|tag| tag == "*" || tag == etag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_come_from_the_first_bytes() {
        assert_eq!(content_type(b"\x89PNG\r\n\x1a\n..."), "image/png");
        assert_eq!(content_type(b"\xff\xd8\xff\xe0"), "image/jpeg");
        assert_eq!(content_type(b"%PDF-1.7"), "application/pdf");
        for other in [&b""[..], b"\x89PN", b"<html><script>", b"GIF89a", b"\xff\xd8"] {
            assert_eq!(content_type(other), "application/octet-stream");
        }
    }
}
