//! `PUT /receipts/PATH` and `POST /issue`: an image becomes durable, and found by its path and by its id.

use super::Issuer;
use crate::answer::{Fault, Reply, json_reply};
use crate::body::{Received, receive};
use crate::ids::{Id, is_reserved};
use crate::limits::RECORD_BYTES;
use crate::server::Asked;
use crate::target::{Query, Wanted};
use hyper::body::Incoming;
use hyper::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH,
    IF_UNMODIFIED_SINCE, TRANSFER_ENCODING,
};
use hyper::{Method, StatusCode};
use receipt_store::owned_change::HashedGroup;
use receipt_store::{Error, OwnedChange, ReceiptPath};
use serde_json::json;

/// The header that may carry the id instead of the query.
const ID_HEADER: &str = "receipt-id";

impl Issuer {
    /// `PUT /receipts/PATH[?id=ID][&new_version=1]`.
    pub async fn put(&self, asked: &Asked, path: &str, body: &mut Incoming) -> Result<Reply, Fault> {
        if asked.method != Method::PUT {
            return Err(Fault::method("PUT"));
        }
        let Wanted::Path(path) = Wanted::parse(path)? else {
            return Err(Fault::new(StatusCode::BAD_REQUEST, "bad_path", "a locator cannot be put"));
        };
        if is_reserved(&path) {
            return Err(Fault::new(StatusCode::BAD_REQUEST, "bad_path", "paths below .id/ are those of ids"));
        }
        refuse_conditions(&asked.headers)?;
        let query = Query::strict(asked.uri.query(), &["id", "new_version"])?;
        let (id, is_new_version) = (id_of(asked, &query)?, query.flag("new_version")?);
        let received =
            receive(&asked.headers, body, &self.memory, self.data_bytes_max, self.body_time).await?;
        self.store(path, received, id, is_new_version).await
    }

    /// `POST /issue[?id=ID]`: draws the receipt and stores it. Its id is its serial unless another is given.
    pub async fn issue(&self, asked: &Asked, body: &mut Incoming) -> Result<Reply, Fault> {
        if asked.method != Method::POST {
            return Err(Fault::method("POST"));
        }
        let Some(painter) = self.painter.clone() else {
            let message = "this issuer draws no receipts: start it with --font-dir";
            return Err(Fault::new(StatusCode::NOT_IMPLEMENTED, "no_fonts", message));
        };
        // A page of another site cannot send this type without asking first.
        if !asked.headers.get(CONTENT_TYPE).is_some_and(is_json) {
            let message = "send the record with Content-Type: application/json";
            return Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", message));
        }
        let query = Query::strict(asked.uri.query(), &["id"])?;
        let given = id_of(asked, &query)?;
        let Received { data, room, .. } =
            receive(&asked.headers, body, &self.memory, RECORD_BYTES, self.body_time).await?;
        let drawn = painter.draw(data).await?;
        drop(room);
        let room = self.memory.take(drawn.picture.len() as u64).await?;
        let id = given.map_or_else(|| Id::new(&drawn.serial), Ok)?;
        let path = ReceiptPath::new(&drawn.path)?;
        let hash = blake3::hash(&drawn.picture);
        self.store(path, Received { data: drawn.picture, hash, room }, Some(id), false).await
    }

    async fn store(
        &self,
        path: ReceiptPath,
        received: Received,
        id: Option<Id>,
        is_new_version: bool,
    ) -> Result<Reply, Fault> {
        let Received { data, hash, room } = received;
        let bytes = data.len();
        let put = OwnedChange::Put {
            path: path.clone(),
            data,
            is_new_version,
            class: None,
            issued_day: None,
            version: None,
        };
        // The body was hashed as it came.
        let mut group = HashedGroup::hashed(put, *hash.as_bytes());
        if let Some(id) = &id {
            group = group.and(HashedGroup::hash(vec![id.change(&path)?]));
        }
        let mut answers = self.committer.commit(group, room).await?.into_iter();
        let receipt = answers.next().unwrap_or(Err(Error::WriterStopped));
        match answers.next() {
            Some(Err(Error::Exists { .. })) => {
                let message = "the id belongs to another path; nothing was stored";
                return Err(Fault::new(StatusCode::CONFLICT, "id_taken", message));
            }
            // The reason is in the answer of the receipt.
            Some(Err(Error::NotReached)) if receipt.is_err() => {}
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(_)) | None => {}
        }
        let stored = receipt?;
        let mut answer = json!({
            "path": path.as_str(), "locator": stored.locator.to_string(), "hash": hash.to_hex().as_str(),
            "seq": stored.locator.seq, "version": stored.version, "bytes": bytes, "new": stored.is_new,
        });
        if let Some(id) = &id {
            answer["id"] = id.as_str().into();
        }
        Ok(json_reply(if stored.is_new { StatusCode::CREATED } else { StatusCode::OK }, &answer))
    }
}

/// What would be ignored otherwise: a part of an image stored as the whole, a version that was meant for another state of the path, and no
/// image at all.
fn refuse_conditions(headers: &HeaderMap) -> Result<(), Fault> {
    if headers.contains_key(CONTENT_RANGE) {
        return Err(Fault::bad("an image is put as a whole, without Content-Range"));
    }
    if [IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE].iter().any(|name| headers.contains_key(name)) {
        let message = "a PUT takes no condition: other bytes under a path are refused unless ?new_version=1 says otherwise";
        return Err(Fault::bad(message));
    }
    if headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING) {
        return Ok(());
    }
    let message = "no body: send Content-Length, which may be 0, or Transfer-Encoding: chunked";
    Err(Fault::new(StatusCode::LENGTH_REQUIRED, "no_body", message))
}

fn is_json(value: &HeaderValue) -> bool {
    let name = value.to_str().ok().and_then(|text| text.split(';').next());
    name.is_some_and(|name| name.trim().eq_ignore_ascii_case("application/json"))
}

/// The id of a request, from its query or its header (percent-encoded in both).
fn id_of(asked: &Asked, query: &Query) -> Result<Option<Id>, Fault> {
    let mut headers = asked.headers.get_all(ID_HEADER).iter();
    let (first, second) = (headers.next(), headers.next());
    if second.is_some() {
        return Err(Fault::bad(format!("two ids: the header {ID_HEADER} stands twice")));
    }
    let header = first.map(|value| {
        let text = value.to_str().ok().and_then(crate::target::decode);
        text.ok_or_else(|| Fault::bad(format!("the header {ID_HEADER} is not percent-encoded UTF-8")))
    });
    match (query.get("id"), header.transpose()?) {
        (Some(_), Some(_)) => Err(Fault::bad("two ids: one in the query, one in the header")),
        (Some(id), None) => Id::new(id).map(Some),
        (None, Some(id)) => Id::new(&id).map(Some),
        (None, None) => Ok(None),
    }
}
