//! Locators: a path with the address of one version, so that a get is one device read.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{BLOCK_BYTES, DATA_BYTES_MAX};
use crate::log::read_blocks_into;
use crate::path::ReceiptPath;
use crate::reader::Receipt;
use crate::record::{Header, Kind};
use crate::retire::is_all_zero;
use crate::rules::Rule;
use crate::spares::Spares;
use crate::superblock::Superblock;
use crate::table;
use std::sync::Arc;

/// `path@block.blocks.generation.seq`. It pins one version: that may be one that was since replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator {
    /// Path.
    pub path: ReceiptPath,
    /// First block of the record.
    pub block: u64,
    /// Blocks of the record.
    pub blocks: u32,
    /// Generation of its segment.
    pub generation: u32,
    /// Sequence of the record.
    pub seq: u64,
}

impl std::fmt::Display for Locator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}.{}.{}.{}", self.path, self.block, self.blocks, self.generation, self.seq)
    }
}

impl Locator {
    /// Reads the text form; `None` when the text is not one (it may still be a path).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (path, address) = text.rsplit_once('@')?;
        let mut numbers = address.split('.');
        let mut next = || {
            let digits = numbers.next()?;
            digits.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
            digits.parse::<u64>().ok()
        };
        let (block, blocks, generation, seq) = (next()?, next()?, next()?, next()?);
        if numbers.next().is_some() {
            return None;
        }
        Some(Self {
            path: ReceiptPath::new(path).ok()?,
            block,
            blocks: u32::try_from(blocks).ok()?,
            generation: u32::try_from(generation).ok()?,
            seq,
        })
    }

    /// Reads the receipt with one device read and no index. `None` when the record there is another one, or of another store.
    ///
    /// # Errors
    /// A device error other than an address beyond the end, or [`Error::CorruptReceipt`].
    pub fn read(&self, device: &dyn Device, superblock: &Superblock) -> Result<Option<Receipt>> {
        self.read_with(device, superblock, &Arc::default())
    }

    /// As [`Locator::read`], with memory of `spares`.
    pub(crate) fn read_with(
        &self,
        device: &dyn Device,
        superblock: &Superblock,
        spares: &Arc<Spares>,
    ) -> Result<Option<Receipt>> {
        let bytes = u64::from(self.blocks) * BLOCK_BYTES;
        let end = self.block.checked_mul(BLOCK_BYTES).and_then(|start| start.checked_add(bytes));
        if bytes == 0
            || bytes > DATA_BYTES_MAX + BLOCK_BYTES
            || end.is_none_or(|end| end > device.size_bytes())
        {
            return Ok(None);
        }
        let buf = read_blocks_into(device, self.block, self.blocks, spares.take())?;
        let Ok((header, _)) = Header::parse(buf.as_slice(), superblock.record_seed()) else {
            return Ok(None);
        };
        let is_same = header.kind == Kind::Put
            && (header.block, header.blocks) == (self.block, self.blocks)
            && (header.generation, header.seq) == (self.generation, self.seq)
            && header.meta == self.path.as_str().as_bytes();
        if !is_same {
            return Ok(None);
        }
        match header.data_by_checksum(buf.as_slice()) {
            // Erased: the index says whether something is stored under the path.
            Err(_) if is_all_zero(&header, buf.as_slice()) => Ok(None),
            // Retired: its room is given back piece by piece, the header last, or was taken again while the blocks were read.
            Err(_) if table::is_over(device, superblock, self.block, self.generation)? => Ok(None),
            Err(fault) if Rule::DataFits.holds() => Err(Error::CorruptReceipt {
                path: self.path.to_string(),
                fact: format!("record at block {}: {fault}", self.block),
            }),
            _ => Ok(Some(Receipt::of_checked(self.path.clone(), header, buf).giving_back(spares))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let locator = Locator {
            path: ReceiptPath::new("a@b/c.png").unwrap(),
            block: 512,
            blocks: 26,
            generation: 1,
            seq: 9,
        };
        assert_eq!(locator.to_string(), "a@b/c.png@512.26.1.9");
        assert_eq!(Locator::parse(&locator.to_string()), Some(locator));
        for no in [
            "a",
            "a@",
            "a@1.2.3",
            "a@1.2.3.4.5",
            "a@1.2.3.x",
            "a@1.2.+3.4",
            "../a@1.2.3.4",
            "a@1.99999999999.3.4",
        ] {
            assert_eq!(Locator::parse(no), None, "{no}");
        }
    }
}
