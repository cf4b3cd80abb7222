//! What is kept twice: superblocks, and the slots of lease and head.

use super::Check;
use crate::error::Result;
use crate::layout::PAGE_SUPERBLOCK;
use crate::page::{Page, PageId, PageKind, read_page};
use crate::superblock::Superblock;

impl Check<'_> {
    /// Both superblocks say the same. Where both are whole but differ, nothing tells which one is right.
    pub(super) fn check_superblocks(&mut self) -> Result<()> {
        let page_nos = [PAGE_SUPERBLOCK, self.superblock.geometry.superblock_copy_page()];
        let mut pages: Vec<Page> = Vec::new();
        for page_no in page_nos {
            let id =
                PageId { store_id: Some(self.superblock.store_id()), page_no, kind: PageKind::Superblock };
            pages.push(read_page(self.device, id)?.0);
        }
        let is_there = |page: &Page| page.version > 0;
        let is_same = pages.iter().filter(|page| is_there(page)).all(|page| page.body == pages_body(&pages));
        if !is_same && !self.is_half_written(&pages) {
            return self.found(None, "superblock", "its copy says something else");
        }
        for (page_no, page) in page_nos.into_iter().zip(&pages) {
            if !is_there(page) || page.is_damaged {
                self.plan.superblock_pages.push(page_no);
                let fact =
                    if is_there(page) { "a slot is damaged" } else { "damaged; the other one is used" };
                self.found(None, &format!("superblock page {page_no}"), fact)?;
            }
        }
        Ok(())
    }

    /// A crash came between the copy and the superblock: nothing needs what the copy says yet.
    fn is_half_written(&self, pages: &[Page]) -> bool {
        let size_bytes = self.device.size_bytes();
        let decoded: Vec<Superblock> =
            pages.iter().filter_map(|page| Superblock::decode(&page.body, size_bytes).ok()).collect();
        matches!(decoded.as_slice(), [first, copy] if copy.follows(first))
    }

    pub(super) fn check_control(&mut self) -> Result<()> {
        self.plan.is_lease_damaged = self.control.lease_page.is_damaged;
        self.plan.is_head_damaged = self.control.head_page.is_damaged;
        if self.plan.is_lease_damaged {
            self.found(None, "lease", "a slot is damaged")?;
        }
        if self.plan.is_head_damaged {
            self.found(None, "head", "a slot is damaged")?;
        }
        Ok(())
    }
}

/// The body of the first superblock that is there.
fn pages_body(pages: &[Page]) -> Box<crate::page::Body> {
    let body = pages.iter().find(|page| page.version > 0).map(|page| page.body.clone());
    body.unwrap_or_else(|| Page::empty().body)
}
