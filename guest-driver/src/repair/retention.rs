//! Mending the pages of policy and holds from the records of the log, and doing what the replay window orders.

use super::Damaged;
use crate::device::Device;
use crate::error::Result;
use crate::page::{Page, PageId, PageKind, read_page};
use crate::policy::retention_pages;
use crate::record::Header;
use crate::retire::carry_out_again;
use crate::rules::Rule;
use crate::table::applied_seq;
use crate::verify::Plan;
use crate::verify::retention::{page_of, says};
use crate::writer::Writer;

impl<D: Device> Writer<D> {
    /// Writes the pages of policy and holds that lack something, and erases and discards again what the replay window says. Returns the number of pages
    /// that cannot be mended: a record that changed them may have gone with its segment, or its header is damaged.
    pub(super) fn mend_retention(&mut self, plan: &Plan) -> Result<usize> {
        if !self.superblock.has_life || !Rule::RepairAppliesWindow.holds() {
            return Ok(0);
        }
        let (mut damaged, mut left) = (Damaged::default(), 0);
        for (page_no, kind) in retention_pages() {
            let records: Vec<&Header> =
                plan.statements.iter().filter(|header| page_of(header) == Some(page_no)).collect();
            let is_found = plan.retention_pages.contains(&page_no);
            let id = PageId { store_id: Some(self.superblock.store_id()), page_no, kind };
            let (mut page, _) = read_page(&self.device, id)?;
            if !is_found && records.last().is_none_or(|last| last.seq <= applied_seq(&page)) {
                continue;
            }
            damaged.any.extend(is_found.then_some(page_no));
            damaged.lost.extend((page.version == 0).then_some(page_no));
            if !says(&page, &records, plan.gone_seq()) {
                page = Page { version: page.version, slot: page.slot, ..Page::empty() };
            }
            if is_found && !is_all_there(plan, kind, &page, &records) {
                left += 1;
                continue;
            }
            self.pages.remember(page_no, page);
            self.pages.stage(&self.device, page_no, kind)?;
            records.into_iter().try_for_each(|header| self.pages().apply(header))?;
        }
        self.write_in_order(&damaged)?;
        let window: Vec<Header> =
            plan.statements.iter().filter(|header| header.seq > self.head_replay.seq).cloned().collect();
        // crash here: the window is still there, so this is done again.
        carry_out_again(&self.device, &self.superblock, &mut self.pages, &window)?;
        Ok(left)
    }
}

/// Whether everything that changed the page after what `page` shows is among the records. No retired segment has taken along what one slot of a page shows
/// and the other does not.
fn is_all_there(plan: &Plan, kind: PageKind, page: &Page, records: &[&Header]) -> bool {
    let gone_seq = if applied_seq(page) == 0 { plan.gone_seq() } else { plan.unknown_seq };
    // A Policy record says everything, a Hold record one hold.
    let known_seq = match (kind, records.last()) {
        (PageKind::Policy, Some(last)) => last.seq.max(applied_seq(page)),
        _ => applied_seq(page),
    };
    known_seq >= gone_seq
}
