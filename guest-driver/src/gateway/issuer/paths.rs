//! `GET /paths/ID`: where the receipt of a business id is.

use super::Issuer;
use crate::answer::{Fault, Reply, bare_reply, json_reply};
use crate::ids::Id;
use crate::server::{Asked, only_get};
use crate::target::{Query, decode};
use hyper::StatusCode;
use hyper::header::ACCEPT;
use receipt_store::hex;
use serde_json::json;

impl Issuer {
    /// The locator alone to a request that accepts nothing in particular (the front end: every byte of it crosses the network), a JSON
    /// object to one with an `Accept` header.
    pub async fn path_of(&self, asked: &Asked, id: &str) -> Result<Reply, Fault> {
        only_get(asked)?;
        Query::strict(asked.uri.query(), &[])?;
        let id = decode(id).ok_or_else(|| Fault::bad("the id is not percent-encoded UTF-8"))?;
        let id = Id::new(&id)?;
        let text = id.as_str().to_owned();
        let stat = self.disk.run(move |reader| id.find(reader)).await?;
        let locator = stat.locator();
        if !asked.headers.contains_key(ACCEPT) {
            return Ok(bare_reply(StatusCode::OK, locator.to_string()));
        }
        let body = json!({
            "id": text, "path": locator.path.as_str(), "locator": locator.to_string(),
            "hash": hex(&stat.header.data_hash), "seq": locator.seq, "version": stat.header.version,
        });
        Ok(json_reply(StatusCode::OK, &body))
    }
}
