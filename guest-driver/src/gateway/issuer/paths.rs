//! `GET /paths/ID` and `GET /?ID`: where the receipt of a business id is.

use super::Issuer;
use crate::answer::{Fault, Reply, json_reply};
use crate::disk::empty;
use crate::ids::{Id, PATH_HEADER};
use crate::server::{Asked, only_get};
use crate::target::{Query, decode, encode_path};
use hyper::StatusCode;
use hyper::ext::ReasonPhrase;
use hyper::header::HeaderValue;
use receipt_store::hex;
use serde_json::json;

fn id_of(encoded: &str) -> Result<Id, Fault> {
    let id = decode(encoded).ok_or_else(|| Fault::bad("the id is not percent-encoded UTF-8"))?;
    Id::new(&id)
}

impl Issuer {
    /// `GET /paths/ID`: what is known of the receipt.
    pub async fn stat_of(&self, asked: &Asked, id: &str) -> Result<Reply, Fault> {
        only_get(asked)?;
        Query::strict(asked.uri.query(), &[])?;
        let id = id_of(id)?;
        let text = id.as_str().to_owned();
        let stat = self.disk.run(move |reader| id.find(reader)).await?;
        let locator = stat.locator();
        let body = json!({
            "id": text, "path": locator.path.as_str(), "locator": locator.to_string(),
            "hash": hex(&stat.header.data_hash), "seq": locator.seq, "version": stat.header.version,
        });
        Ok(json_reply(StatusCode::OK, &body))
    }

    /// `GET /?ID`: the path, in the fewest bytes that HTTP allows, because each of them crosses the network: no body that a length must
    /// announce, no words after the status. Whether the receipt is still there, the front end sees for itself.
    pub async fn path_of(&self, asked: &Asked, id: &str) -> Result<Reply, Fault> {
        only_get(asked)?;
        let id = id_of(id)?;
        let path = self.disk.run(move |reader| id.path(reader)).await?;
        let value = HeaderValue::try_from(encode_path(path.as_str()));
        let value = value.map_err(|error| crate::disk::internal(&error))?;
        let mut reply = empty(StatusCode::NO_CONTENT);
        reply.headers_mut().insert(PATH_HEADER, value);
        reply.extensions_mut().insert(ReasonPhrase::from_static(b""));
        Ok(reply)
    }
}
