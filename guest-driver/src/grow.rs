//! Growth: the writer takes a larger device over, at opening or while it works. Nothing that is stored moves.
//!
//! New segments hold records at once; where the index would become too small for them, some hold index pages instead: a new region, to which new paths go.
//! The order: what is new is zeroed and flushed, then the copy of the superblock, then the superblock. Until the last step the store is what it was.
//! A reader with the older superblock finds what was there before; where it fails to find, it reads the superblock again.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{PAGE_BYTES, PAGE_TABLE, TABLE_ENTRIES_PER_PAGE, page_offset};
use crate::reader::Reader;
use crate::writer::Writer;

/// What growth has added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Segments of the store now.
    pub segment_count: u64,
    /// Segments that it has more than before.
    pub added: u64,
    /// Index segments among them.
    pub index_segments: u64,
    /// Bytes of the device that segments of this size cannot reach.
    pub unreachable_bytes: u64,
}

impl<D: Device> Writer<D> {
    /// Takes over what the device has grown by; `None` when that is less than a segment, or more than the segment table can describe already.
    ///
    /// # Errors
    /// A device error; the store is as before, or grown, and the writer has stopped.
    pub fn grow(&mut self) -> Result<Option<Grown>> {
        if self.is_stopped {
            return Err(Error::WriterStopped);
        }
        let size_bytes = self.device.size_bytes();
        let old = self.superblock.geometry.clone();
        if old.segment_count >= old.segments_of(size_bytes) {
            return Ok(None);
        }
        let entries = Reader::new(&self.device, "").usage()?.live;
        let geometry = old.grown(size_bytes, entries);
        geometry.check(size_bytes)?;
        self.check_lease()?;
        let first_page = PAGE_TABLE + old.segment_count.div_ceil(TABLE_ENTRIES_PER_PAGE);
        let end_page = PAGE_TABLE + geometry.segment_count.div_ceil(TABLE_ENTRIES_PER_PAGE);
        let pages = geometry.pages_per_segment();
        let regions = geometry.regions.iter().skip(old.regions.len());
        let index: Vec<u64> = regions
            .flat_map(|region| {
                (0..region.zones).map(|zone| region.first_segment + zone * geometry.zone_segments)
            })
            .collect();
        let table = (first_page, end_page - first_page);
        let ranges = std::iter::once(table).chain(index.iter().map(|segment| (segment * pages, pages)));
        for (page_no, count) in ranges.filter(|(_, count)| *count > 0) {
            // crash here: nothing refers to it.
            let zeroed = self.device.write_zeroes(page_offset(page_no), count * PAGE_BYTES);
            if let Err(error) = zeroed {
                return Err(self.stop(error.into()));
            }
        }
        let grown = Grown {
            segment_count: geometry.segment_count,
            added: geometry.segment_count - old.segment_count,
            index_segments: index.len() as u64,
            unreachable_bytes: (size_bytes / geometry.segment_bytes - geometry.segment_count)
                * geometry.segment_bytes,
        };
        let mut superblock = self.superblock.clone();
        superblock.geometry = geometry;
        self.write_superblock(superblock)?;
        Ok(Some(grown))
    }
}
