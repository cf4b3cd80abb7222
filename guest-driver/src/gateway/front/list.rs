//! Lists of paths by prefix, newest first, read from the Summaries of the store.

use super::Front;
use crate::answer::{Fault, Reply, json_reply};
use crate::disk::{Outcome, internal};
use crate::ids::is_reserved;
use crate::limits::{LIST_PATHS, LIST_SKIP};
use crate::target::Query;
use hyper::StatusCode;
use receipt_store::layout::PATH_BYTES_MAX;
use receipt_store::{Error, Locator};
use serde_json::json;

/// Part of a list.
#[derive(Debug)]
pub struct List {
    /// Receipts, newest first.
    pub locators: Vec<Locator>,
    /// There are more.
    pub is_cut: bool,
    /// Something that lists paths is damaged: paths may be missing.
    pub is_damaged: bool,
}

impl Front {
    /// The paths that begin with `prefix`, without the first `skip`.
    ///
    /// Costs one device read a page of the segment table and a Summary (256 receipts or 4 MiB), one more for each Summary that may
    /// have such a path, and one a record since the last one.
    pub async fn list(&self, prefix: &str, skip: u64) -> Outcome<List> {
        if prefix.len() > PATH_BYTES_MAX {
            return Err(Fault::bad(format!("the prefix is longer than {PATH_BYTES_MAX} bytes")));
        }
        let skip = usize::try_from(skip).ok().filter(|skip| *skip <= LIST_SKIP);
        let skip = skip.ok_or_else(|| Fault::bad(format!("skip is more than {LIST_SKIP}")))?;
        let prefix = prefix.to_owned();
        let _place = self.lists.acquire().await.map_err(|error| internal(&error))?;
        self.disk
            .run(move |reader| {
                let mut list = List { locators: Vec::new(), is_cut: false, is_damaged: false };
                let mut skipped = 0;
                let listed = reader.list(&prefix, |locator| {
                    if is_reserved(&locator.path) {
                        return Ok(());
                    }
                    if skipped < skip {
                        skipped += 1;
                        return Ok(());
                    }
                    if list.locators.len() == LIST_PATHS {
                        list.is_cut = true;
                        return Err(Error::NotReached); // enough
                    }
                    list.locators.push(locator);
                    Ok(())
                });
                match listed {
                    Err(Error::NotReached) if list.is_cut => {}
                    Err(Error::Corrupt(_)) => list.is_damaged = true,
                    done => done?,
                }
                Ok(list)
            })
            .await
    }

    /// `GET /receipts?prefix=P[&skip=N]`.
    pub async fn list_json(&self, prefix: &str, query: &Query) -> Outcome<Reply> {
        let skip = query.number("skip")?.unwrap_or_default();
        let list = self.list(prefix, skip).await?;
        let receipts: Vec<_> = list
            .locators
            .iter()
            .map(|locator| {
                json!({ "path": locator.path.as_str(), "locator": locator.to_string(), "seq": locator.seq })
            })
            .collect();
        let body = json!({ "receipts": receipts, "more": list.is_cut, "damaged": list.is_damaged });
        Ok(json_reply(StatusCode::OK, &body))
    }
}
