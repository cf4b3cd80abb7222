//! Where things lie: pure address arithmetic from the segment size, and every limit of the format.
//!
//! Invariants: segment 0 holds the meta pages; an index region is `zones` zones of `zone_segments` segments whose
//! first one holds index pages; every other segment below `segment_count` holds records. No structure on disk is
//! a map: an address is always computed.

use crate::error::{Error, Result};

/// Bytes of a block, the unit of records and of device transfers.
pub const BLOCK_BYTES: u64 = 4096;
/// [`BLOCK_BYTES`] for slices.
pub const BLOCK_BYTES_USIZE: usize = 4096;
/// Bytes of a page: two slots of one block each.
pub const PAGE_BYTES: u64 = 2 * BLOCK_BYTES;
/// Bytes of a slot before its body.
pub const SLOT_HEADER_BYTES: usize = 64;
/// Bytes of a slot's body.
pub const SLOT_BODY_BYTES: usize = BLOCK_BYTES_USIZE - SLOT_HEADER_BYTES;

/// Smallest segment, bytes.
pub const SEGMENT_BYTES_MIN: u64 = 256 << 10;
/// Smallest segment that `format` chooses by itself, bytes.
pub const SEGMENT_BYTES_DEFAULT_MIN: u64 = 1 << 20;
/// Segment that `format` chooses on large devices, bytes.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// Largest segment, bytes.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Fewest segments of a store: meta, index and two for records.
pub const SEGMENT_COUNT_MIN: u64 = 4;
/// Segments of a zone unless `format` is told otherwise.
pub const ZONE_SEGMENTS_DEFAULT: u64 = 128;
/// Most index regions.
pub const REGION_COUNT_MAX: usize = 8;
/// Most blocks of a store.
pub const BLOCK_COUNT_MAX: u64 = 1 << 48;

/// Most bytes of data in a record (a small segment lowers it).
pub const DATA_BYTES_MAX: u64 = 32 << 20;
/// Most blocks of a record: its header and the data.
pub const RECORD_BLOCKS_MAX: u64 = DATA_BYTES_MAX / BLOCK_BYTES + 1;
/// Most bytes of a path.
pub const PATH_BYTES_MAX: usize = 1024;
/// Most puts in one group commit.
pub const BATCH_RECORDS_MAX: usize = 256;
/// Most bytes of data in one group commit (one larger receipt is a batch of its own).
pub const BATCH_BYTES_MAX: u64 = 8 << 20;
/// A Summary is due after this many records.
pub const SUMMARY_RECORDS_MAX: usize = 256;
/// A Summary is due after this many blocks of records (4 MiB).
pub const SUMMARY_BLOCKS_MAX: u64 = 1024;
/// Pages after the home page that an entry may spill to.
pub const SPILL_HOPS_MAX: usize = 4;
/// How often a get starts again when the record does not match the index.
pub const GET_ATTEMPTS_MAX: usize = 5;
/// How often a torn page is read again before it is called changing.
pub const PAGE_READS_MAX: usize = 40;
/// Most records between the replay position and the end of the log.
pub const WINDOW_RECORDS_MAX: usize = 4096;
/// Pages that a writer keeps in memory.
pub const CACHED_PAGES_MAX: usize = 4096;

/// Records of a commit are written in pieces of at most so many blocks (512 KiB), a longer record alone. Small in tests, so that commits have
/// several.
pub const WRITE_PIECE_BLOCKS: usize = if cfg!(test) { 8 } else { 128 };
/// Blocks of the buffer for records that a writer keeps: enough for every commit but that of one large receipt.
pub const BUFFER_BLOCKS_KEPT: usize = 2560;
/// Page number of the superblock.
pub const PAGE_SUPERBLOCK: u64 = 0;
/// Page number of the lease.
pub const PAGE_LEASE: u64 = 1;
/// Page number of the head.
pub const PAGE_HEAD: u64 = 2;
/// Page number of the retention policy.
pub const PAGE_POLICY: u64 = 3;
/// First page of holds.
pub const PAGE_HOLDS_FIRST: u64 = 4;
/// Last page of holds.
pub const PAGE_HOLDS_LAST: u64 = 15;
/// First page of the segment table.
pub const PAGE_TABLE: u64 = 16;
/// Growth adds index pages when the index is fuller than this.
pub const INDEX_FULL_PERCENT: u64 = 60;
/// Entries of an index page.
pub const INDEX_PAGE_ENTRIES: u64 = 126;
/// Segment table entries in a page.
pub const TABLE_ENTRIES_PER_PAGE: u64 = 126;

/// Index pages: the first segment of each of `zones` zones, beginning at `first_segment`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Segment number of the first index segment.
    pub first_segment: u64,
    /// Zones, each with one index segment.
    pub zones: u64,
}

/// The shape of a store. [`Geometry::check`] has passed for every value that the crate hands out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a segment, a power of two.
    pub segment_bytes: u64,
    /// Segments, segment 0 included.
    pub segment_count: u64,
    /// Segments of a zone.
    pub zone_segments: u64,
    /// Index regions, oldest first; at least one.
    pub regions: Vec<Region>,
}

impl Geometry {
    /// The shape `format` gives to a device of `size_bytes`.
    ///
    /// # Errors
    /// [`Error::BadGeometry`] when the device is too small or the segment size is out of bounds.
    pub fn plan(size_bytes: u64, segment_bytes: Option<u64>, zone_segments: u64) -> Result<Self> {
        let segment_bytes = segment_bytes.unwrap_or_else(|| default_segment_bytes(size_bytes));
        if !segment_bytes.is_power_of_two() {
            return Err(Error::BadGeometry(format!("segment size {segment_bytes} is not a power of two")));
        }
        let mut segment_count = size_bytes / segment_bytes;
        if zone_segments >= 2 && segment_count > 1 && (segment_count - 1) % zone_segments == 1 {
            segment_count -= 1; // a zone of an index segment alone would hold nothing
        }
        let zones = segment_count.saturating_sub(1).div_ceil(zone_segments.max(1));
        let geometry = Self {
            segment_bytes,
            segment_count,
            zone_segments,
            regions: vec![Region { first_segment: 1, zones }],
        };
        geometry.check(size_bytes)?;
        Ok(geometry)
    }

    /// Checks every bound against the device.
    ///
    /// # Errors
    /// [`Error::BadGeometry`] names the bound.
    pub fn check(&self, size_bytes: u64) -> Result<()> {
        let fail = |text: String| Err(Error::BadGeometry(text));
        if !self.segment_bytes.is_power_of_two()
            || !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
        {
            return fail(format!(
                "segment size {} is not a power of two from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}",
                self.segment_bytes
            ));
        }
        if self.segment_count < SEGMENT_COUNT_MIN {
            return fail(format!(
                "{} segments of {} bytes are fewer than {SEGMENT_COUNT_MIN}: the device is too small, or use a smaller --segment-size",
                self.segment_count, self.segment_bytes
            ));
        }
        match self.segment_count.checked_mul(self.segment_bytes) {
            Some(bytes) if bytes <= size_bytes && bytes / BLOCK_BYTES <= BLOCK_COUNT_MAX => {}
            _ => {
                return fail(format!(
                    "the store has {} segments of {} bytes, the device only {size_bytes} bytes",
                    self.segment_count, self.segment_bytes
                ));
            }
        }
        if self.segment_count > self.table_capacity() {
            return fail(format!(
                "more than {} segments: use a larger --segment-size",
                self.table_capacity()
            ));
        }
        if self.zone_segments < 2 || self.zone_segments > self.segment_bytes {
            return fail(format!("a zone of {} segments", self.zone_segments));
        }
        self.check_regions()
    }

    fn check_regions(&self) -> Result<()> {
        if self.regions.is_empty() || self.regions.len() > REGION_COUNT_MAX {
            return Err(Error::BadGeometry(format!("{} index regions", self.regions.len())));
        }
        let mut next_free = 1;
        for region in &self.regions {
            let last_index_segment = region
                .zones
                .checked_sub(1)
                .and_then(|z| z.checked_mul(self.zone_segments))
                .and_then(|s| s.checked_add(region.first_segment));
            match last_index_segment {
                Some(last) if region.first_segment >= next_free && last < self.segment_count => {
                    next_free = last + 1
                }
                _ => return Err(Error::BadGeometry(format!("index region {region:?}"))),
            }
        }
        Ok(())
    }

    /// Segments of a store of this shape on a device of `size_bytes`.
    #[must_use]
    pub fn segments_of(&self, size_bytes: u64) -> u64 {
        let most = (BLOCK_COUNT_MAX / self.blocks_per_segment()).min(self.table_capacity());
        (size_bytes / self.segment_bytes).min(most)
    }

    /// The shape after growth to a device of `size_bytes`, with `entries` in the index: the last zone is filled, what follows holds records only,
    /// unless the index is more than 60 % full or would be a smaller part of the store than half of what `format` gives it.
    #[must_use]
    pub fn grown(&self, size_bytes: u64, entries: u64) -> Self {
        let mut grown = self.clone();
        grown.segment_count = self.segments_of(size_bytes).max(self.segment_count);
        let index_segments: u64 = self.regions.iter().map(|region| region.zones).sum();
        let is_full = entries * 100
            > index_segments * self.pages_per_segment() * INDEX_PAGE_ENTRIES * INDEX_FULL_PERCENT;
        let is_small = index_segments * 2 * self.zone_segments < grown.segment_count;
        let first_segment = self.last_zone_end().max(self.segment_count);
        let room = grown.segment_count.saturating_sub(first_segment);
        if (is_full || is_small) && room >= 2 && self.regions.len() < REGION_COUNT_MAX {
            // A zone of an index segment alone would hold nothing.
            let zones = if room % self.zone_segments == 1 {
                room / self.zone_segments
            } else {
                room.div_ceil(self.zone_segments)
            };
            grown.regions.push(Region { first_segment, zones });
        }
        grown
    }

    /// The size of the device from which on growth can add index pages, in bytes: it must reach behind the last zone. None where the format knows no more.
    #[must_use]
    pub fn index_growth_bytes(&self) -> Option<u64> {
        let segment_count = self.last_zone_end().max(self.segment_count) + 2;
        let size_bytes = segment_count.checked_mul(self.segment_bytes)?;
        let is_known = self.regions.len() < REGION_COUNT_MAX && self.segments_of(size_bytes) == segment_count;
        is_known.then_some(size_bytes)
    }

    fn last_zone_end(&self) -> u64 {
        self.regions.last().map_or(1, |last| last.first_segment + last.zones * self.zone_segments)
    }

    /// Segments that the segment table can describe.
    #[must_use]
    pub fn table_capacity(&self) -> u64 {
        (self.pages_per_segment() - PAGE_TABLE - 1) * TABLE_ENTRIES_PER_PAGE
    }

    /// Blocks of a segment.
    #[must_use]
    pub fn blocks_per_segment(&self) -> u64 {
        self.segment_bytes / BLOCK_BYTES
    }

    /// Pages of an index segment.
    #[must_use]
    pub fn pages_per_segment(&self) -> u64 {
        self.segment_bytes / PAGE_BYTES
    }

    /// Page number of the second superblock: the last page of segment 0.
    #[must_use]
    pub fn superblock_copy_page(&self) -> u64 {
        self.pages_per_segment() - 1
    }

    /// First block of a segment.
    #[must_use]
    pub fn first_block(&self, segment: u64) -> u64 {
        segment * self.blocks_per_segment()
    }

    /// Block after the last one of a segment.
    #[must_use]
    pub fn end_block(&self, segment: u64) -> u64 {
        self.first_block(segment) + self.blocks_per_segment()
    }

    /// Segment of a block.
    #[must_use]
    pub fn segment_of(&self, block: u64) -> u64 {
        block / self.blocks_per_segment()
    }

    /// Whether a segment holds records.
    #[must_use]
    pub fn is_data_segment(&self, segment: u64) -> bool {
        segment > 0 && segment < self.segment_count && !self.is_index_segment(segment)
    }

    fn is_index_segment(&self, segment: u64) -> bool {
        self.regions.iter().any(|region| {
            segment.checked_sub(region.first_segment).is_some_and(|distance| {
                distance % self.zone_segments == 0 && distance / self.zone_segments < region.zones
            })
        })
    }

    /// Whether `blocks` blocks from `block` lie inside one data segment.
    #[must_use]
    pub fn holds_record(&self, block: u64, blocks: u32) -> bool {
        let segment = self.segment_of(block);
        self.is_data_segment(segment)
            && blocks > 0
            && block.checked_add(u64::from(blocks)).is_some_and(|end| end <= self.end_block(segment))
    }

    /// Page number and position in the page of a segment's table entry.
    #[must_use]
    pub fn table_slot(&self, segment: u64) -> (u64, usize) {
        let position = usize::try_from(segment % TABLE_ENTRIES_PER_PAGE).unwrap_or_default();
        (PAGE_TABLE + segment / TABLE_ENTRIES_PER_PAGE, position)
    }

    /// Home page of a path hash in a region.
    #[must_use]
    pub fn home_page(&self, region: &Region, bucket_hash: u64) -> u64 {
        let pages = self.pages_per_segment();
        let bucket = bucket_hash % (region.zones * pages);
        let segment = region.first_segment + bucket / pages * self.zone_segments;
        segment * pages + bucket % pages
    }

    /// The page that takes what a full page cannot hold: the next one of the same index segment.
    #[must_use]
    pub fn spill_page(&self, page_no: u64) -> u64 {
        let pages = self.pages_per_segment();
        page_no - page_no % pages + (page_no % pages + 1) % pages
    }

    /// Segments that hold records.
    #[must_use]
    pub fn data_segment_count(&self) -> u64 {
        self.segment_count - 1 - self.regions.iter().map(|r| r.zones).sum::<u64>()
    }

    /// First page and number of pages of everything that a new store needs empty: meta pages and table, and each index segment.
    pub fn zeroed_pages(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let meta_pages = PAGE_TABLE + self.segment_count.div_ceil(TABLE_ENTRIES_PER_PAGE);
        let index_segments = (1..self.segment_count).filter(|segment| self.is_index_segment(*segment));
        let pages = self.pages_per_segment();
        std::iter::once((0, meta_pages)).chain(index_segments.map(move |segment| (segment * pages, pages)))
    }

    /// Page numbers of all index pages, in order.
    pub fn index_pages(&self) -> impl Iterator<Item = u64> + '_ {
        let pages = self.pages_per_segment();
        self.regions
            .iter()
            .flat_map(move |r| (0..r.zones).map(move |z| r.first_segment + z * self.zone_segments))
            .flat_map(move |segment| segment * pages..(segment + 1) * pages)
    }
}

/// A 64th of the device, from 1 MiB to 64 MiB; larger only where the segment table would not reach the end.
fn default_segment_bytes(size_bytes: u64) -> u64 {
    let mut bytes = (size_bytes / 64).clamp(SEGMENT_BYTES_DEFAULT_MIN, SEGMENT_BYTES_DEFAULT);
    bytes = 1 << bytes.ilog2();
    let reaches = |b: u64| (b / PAGE_BYTES - PAGE_TABLE - 1) * TABLE_ENTRIES_PER_PAGE * b >= size_bytes;
    while bytes < SEGMENT_BYTES_MAX && !reaches(bytes) {
        bytes *= 2;
    }
    bytes
}

/// Byte offset of a block.
#[must_use]
pub fn block_offset(block: u64) -> u64 {
    block.saturating_mul(BLOCK_BYTES)
}

/// Byte offset of a page.
#[must_use]
pub fn page_offset(page_no: u64) -> u64 {
    page_no.saturating_mul(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_suit_devices_from_16_mib_to_petabytes() {
        let plan = |size| Geometry::plan(size, None, ZONE_SEGMENTS_DEFAULT).unwrap();
        assert_eq!(plan(16 << 20).segment_bytes, 1 << 20);
        assert_eq!(plan(16 << 20).segment_count, 16);
        assert_eq!(plan(1 << 30).segment_bytes, 16 << 20);
        assert_eq!(plan(1 << 40).segment_bytes, 64 << 20);
        assert_eq!(plan(1 << 40).regions[0].zones, 128);
        assert_eq!(plan(62 << 40).segment_bytes, 64 << 20);
        assert_eq!(plan(126 << 40).segment_bytes, 128 << 20);
        assert!(plan(1 << 50).segment_bytes <= SEGMENT_BYTES_MAX);
        assert!(Geometry::plan(2 << 20, None, 128).is_err());
        assert!(Geometry::plan(1 << 30, Some(3 << 20), 128).is_err());
        assert!(Geometry::plan(1 << 30, Some(128 << 10), 128).is_err());
        assert!(Geometry::plan(u64::MAX, None, 128).is_err());
    }

    #[test]
    fn every_block_of_a_zone_has_one_owner() {
        let g = Geometry::plan(300 << 20, Some(1 << 20), 128).unwrap();
        assert_eq!(g.regions, vec![Region { first_segment: 1, zones: 3 }]);
        let index: Vec<u64> = (0..g.segment_count).filter(|s| *s > 0 && !g.is_data_segment(*s)).collect();
        assert_eq!(index, vec![1, 129, 257]);
        assert_eq!(g.data_segment_count(), 296);
        assert_eq!(g.index_pages().count(), 3 * 128);
        for hash in [0, 1, 127, 128, 383, 384, u64::MAX] {
            let page = g.home_page(&g.regions[0], hash);
            assert!(index.contains(&(page / g.pages_per_segment())), "hash {hash} page {page}");
            assert!(index.contains(&(g.spill_page(page) / g.pages_per_segment())));
        }
        assert_eq!(g.spill_page(255), 128, "spilling stays in the index segment");
    }

    #[test]
    fn a_zone_of_an_index_segment_alone_is_left_out() {
        let g = Geometry::plan(130 << 20, Some(1 << 20), 128).unwrap();
        assert_eq!((g.segment_count, g.regions[0].zones), (129, 1));
    }

    #[test]
    fn records_stay_in_data_segments() {
        let g = Geometry::plan(16 << 20, Some(1 << 20), 128).unwrap();
        assert!(g.holds_record(512, 256));
        assert!(!g.holds_record(512, 257));
        assert!(!g.holds_record(511, 1), "index segment");
        assert!(!g.holds_record(0, 1), "meta segment");
        assert!(!g.holds_record(16 * 256, 1), "behind the end");
        assert!(!g.holds_record(u64::MAX, u32::MAX));
    }
}
