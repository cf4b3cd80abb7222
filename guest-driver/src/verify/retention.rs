//! Policy and holds: their pages say what the Policy and Hold records of the log say, as far as these are still there.

use super::Check;
use crate::error::Result;
use crate::layout::PAGE_POLICY;
use crate::page::{Page, PageId, PageKind, read_page};
use crate::policy::{Hold, decode_holds, retention_pages};
use crate::record::{Header, Kind};
use crate::rules::Rule;
use crate::table::applied_seq;
use std::collections::BTreeMap;

/// The page that a Policy or Hold record changes.
pub(crate) fn page_of(header: &Header) -> Option<u64> {
    match header.kind {
        Kind::Policy => Some(PAGE_POLICY),
        Kind::Hold => Hold::decode(&header.meta).map(|(_, raw, _)| u64::from(raw.page)),
        _ => None,
    }
}

/// Whether the page says what the newest of these records, all of this page, say of what it has applied. Of holds nothing is known that changed before
/// `gone_seq`: the record that ended one may have gone.
pub(crate) fn says(page: &Page, records: &[&Header], gone_seq: u64) -> bool {
    let applied = applied_seq(page);
    let mut known = records.iter().filter(|header| header.seq <= applied);
    match records.first().map(|header| header.kind) {
        Some(Kind::Policy) => {
            known.next_back().is_none_or(|last| last.seq < applied || page.body.starts_with(&last.meta))
        }
        Some(_) => {
            let Ok(holds) = decode_holds(page) else { return false };
            let decoded =
                known.filter(|header| header.seq > gone_seq).filter_map(|header| Hold::decode(&header.meta));
            let newest: BTreeMap<Vec<u8>, _> =
                decoded.map(|(hold, raw, _)| (hold.prefix.clone(), (hold, raw.is_release == 0))).collect();
            newest.values().all(|(hold, is_on)| {
                let on_page = holds.iter().find(|other| other.prefix == hold.prefix);
                on_page == is_on.then_some(hold)
            })
        }
        None => true,
    }
}

impl Check<'_> {
    /// What the repair needs of a record that is about no path.
    pub(super) fn note_statement(&mut self, header: &Header) {
        let is_in_window = header.seq > self.control.head.replay.seq;
        if page_of(header).is_some() || (header.kind.is_of_life() && is_in_window) {
            self.plan.statements.push(header.clone());
        }
    }

    /// What lies behind the replay position may not be on the pages yet.
    pub(super) fn check_retention(&mut self) -> Result<()> {
        if !self.superblock.has_life || !Rule::RetentionIsChecked.holds() {
            return Ok(());
        }
        for (page_no, kind) in retention_pages() {
            let id = PageId { store_id: Some(self.superblock.store_id()), page_no, kind };
            let (page, _) = read_page(self.device, id)?;
            let of_page = |header: &&Header| page_of(header) == Some(page_no);
            let records: Vec<&Header> = self.plan.statements.iter().filter(of_page).collect();
            let is_due = |header: &&&Header| header.seq <= self.control.head.replay.seq;
            let last_due = records.iter().rfind(is_due).map_or(0, |header| header.seq);
            let fact = if page.is_damaged {
                "a slot is damaged".to_owned()
            } else if applied_seq(&page) < last_due {
                format!("does not show sequence {last_due}")
            } else if applied_seq(&page) > self.end_seq || says(&page, &records, self.plan.gone_seq()) {
                continue; // a page that was written since is not compared
            } else {
                "does not say what the log says".to_owned()
            };
            self.plan.retention_pages.insert(page_no);
            let name = if kind == PageKind::Policy { "policy" } else { "holds" };
            self.found(None, &format!("{name} page {page_no}"), &fact)?;
        }
        Ok(())
    }
}
