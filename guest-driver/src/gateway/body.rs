//! Bodies of requests: into a buffer of bounded size, hashed as they come.

use super::answer::Fault;
use super::disk::{Memory, Outcome};
use super::limits::{DRAIN_TIME, DRAINED_BYTES};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, EXPECT, HeaderValue, TRANSFER_ENCODING};
use hyper::{HeaderMap, StatusCode};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// A whole body.
#[derive(Debug)]
pub struct Received {
    /// Its bytes.
    pub data: Vec<u8>,
    /// BLAKE3 of them.
    pub hash: blake3::Hash,
    /// Their memory.
    pub room: OwnedSemaphorePermit,
}

fn too_large(limit_bytes: u64) -> Fault {
    let message = format!("the body is larger than {limit_bytes} bytes");
    Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
}

/// Reads a body of at most `limit_bytes` within `time`.
pub async fn receive(
    headers: &HeaderMap,
    body: &mut Incoming,
    memory: &Memory,
    limit_bytes: u64,
    time: Duration,
) -> Outcome<Received> {
    if headers.get_all(CONTENT_ENCODING).iter().any(|encoding| encoding != "identity") {
        let message = "send the bytes as they are, without Content-Encoding";
        return Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding", message));
    }
    // `gzip, chunked`, say: without the chunks there is still not what was meant to be stored.
    let is_chunks =
        |coding: &HeaderValue| coding.to_str().is_ok_and(|name| name.trim().eq_ignore_ascii_case("chunked"));
    if !headers.get_all(TRANSFER_ENCODING).iter().all(is_chunks) {
        let message = "the only Transfer-Encoding here is chunked";
        return Err(Fault::new(StatusCode::NOT_IMPLEMENTED, "transfer_encoding", message));
    }
    let len = body.size_hint().exact();
    if len.unwrap_or_default() > limit_bytes {
        return Err(too_large(limit_bytes));
    }
    // A body of unknown length might need the limit. Taken at once, so that two bodies never wait for each other's room.
    let collect = async {
        let room = memory.take(len.unwrap_or(limit_bytes)).await?;
        // All at once where the length is known: a buffer that grows is copied and its fresh memory touched several times.
        let mut data = Vec::with_capacity(len.and_then(|len| usize::try_from(len).ok()).unwrap_or_default());
        let mut hasher = blake3::Hasher::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Fault::bad("the body ended early").because(error))?;
            let Ok(bytes) = frame.into_data() else { continue };
            if data.len() as u64 + bytes.len() as u64 > limit_bytes {
                return Err(too_large(limit_bytes));
            }
            hasher.update(&bytes);
            data.extend_from_slice(&bytes);
        }
        Ok(Received { data, hash: hasher.finalize(), room })
    };
    tokio::time::timeout(time, collect).await.unwrap_or_else(|_| {
        let message = format!("the body did not arrive within {} seconds", time.as_secs());
        Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "timeout", message))
    })
}

/// Reads and drops what is left of a body whose request is refused: a client that still sends would not see the refusal. One that waits
/// for `100 Continue` has not begun.
pub async fn drain(headers: &HeaderMap, body: &mut Incoming) {
    if headers.contains_key(EXPECT) {
        return;
    }
    let mut left = DRAINED_BYTES;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            let len = frame.data_ref().map_or(0, bytes::Bytes::len) as u64;
            match left.checked_sub(len) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, read).await; // who sends more does not want to know
}
