//! Summaries and Seals list what is there.

use super::Check;
use crate::error::Result;
use crate::record::Header;
use crate::summary::{Descriptor, Item, decode_items};

/// The records of a segment since its last Summary.
#[derive(Clone, Debug, Default)]
pub(super) struct Stretch {
    items: Vec<Item>,
    summary_block: u64,
    /// The last sequence in it whose record is gone, 0 = none. It may have been a Summary.
    pub(super) damaged_seq: u64,
}

impl Stretch {
    /// Goes on behind a record.
    pub(super) fn pass(&mut self, header: &Header) {
        if header.changes_index() {
            self.items.push(Item::of(header));
        } else if header.kind.is_list() {
            *self = Self { summary_block: header.block, ..Self::default() };
        }
    }

    /// Whether a list is the one over this stretch. What was damaged when it was written is not in it, what was damaged since is.
    fn fits(&self, descriptor: &Descriptor, items: &[Item]) -> bool {
        if self.damaged_seq == 0 {
            let whole = Descriptor::of(&self.items, self.summary_block, descriptor.next);
            return items == self.items && *descriptor == whole;
        }
        self.items.iter().filter(|item| item.seq > self.damaged_seq).all(|item| items.contains(item))
    }
}

impl Check<'_> {
    /// Checks the list of a Summary or Seal against the records before it.
    pub(super) fn check_list(&mut self, header: &Header, data: &[u8], stretch: &mut Stretch) -> Result<()> {
        if header.kind.is_list() {
            let list = Descriptor::decode(header).zip(decode_items(data));
            if !list.is_some_and(|(descriptor, items)| stretch.fits(&descriptor, &items)) {
                self.found(
                    None,
                    &format!("block {}", header.block),
                    "a list does not name the records before it",
                )?;
            }
        }
        stretch.pass(header);
        Ok(())
    }
}
