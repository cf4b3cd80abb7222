//! The superblock: identity, shape and features of a store. Written by `format` (and by growth), twice on the disk.
//!
//! Invariant: a superblock that is handed out has a supported version, known incompatible features and a geometry
//! that fits the device.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{
    Geometry, PAGE_BYTES, PAGE_SUPERBLOCK, REGION_COUNT_MAX, Region, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
    SLOT_BODY_BYTES,
};
use crate::page::{Page, PageId, PageKind, read_page};
use crate::path::PathHash;
use crate::rules::Rule;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of the superblock's body.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"RSTORE1\0";
/// Format version this program writes.
pub const FORMAT_MAJOR: u16 = 1;
/// Minor version this program writes; a higher one is read, too.
pub const FORMAT_MINOR: u16 = 0;
/// BLAKE3 with 32 bytes.
pub const HASH_BLAKE3: u16 = 1;
/// Incompatible features that this program knows.
pub const KNOWN_INCOMPAT: u32 = INCOMPAT_LIFE;
/// There are, or were, records of kind Erase, Hold, Policy or Retire, or copies of receipts: a program that does not know them would misread the log.
pub const INCOMPAT_LIFE: u32 = 1;
/// Features unknown to a writer make the store read-only; these are known.
pub const KNOWN_RO_COMPAT: u32 = 0;

/// An index region on disk.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegionRaw {
    /// First index segment.
    pub first_segment: U64,
    /// Zones.
    pub zones: U64,
}

/// Body of the superblock page.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SuperblockRaw {
    /// `RSTORE1\0`.
    pub magic: [u8; 8],
    /// Major format version: a higher one is not read.
    pub format_major: U16,
    /// Minor format version.
    pub format_minor: U16,
    /// Features that may be ignored.
    pub feature_compat: U32,
    /// Features that a reader may ignore and a writer must know.
    pub feature_ro_compat: U32,
    /// Features that everybody must know.
    pub feature_incompat: U32,
    /// Identity of the store; the first 8 bytes are the store id in every page.
    pub uuid: [u8; 16],
    /// Key of the path hash.
    pub path_key: [u8; 32],
    /// Hash of data and chain: 1 = BLAKE3.
    pub hash_alg: U16,
    /// Zero.
    pub reserved_a: U16,
    /// Segments of a zone.
    pub zone_segments: U32,
    /// Bytes of a segment.
    pub segment_bytes: U64,
    /// Segments of the store.
    pub segment_count: U64,
    /// Milliseconds since 1970 when the store was made.
    pub created_at_ms: U64,
    /// Regions in use.
    pub region_count: U32,
    /// Zero.
    pub reserved_b: U32,
    /// Index regions, oldest first.
    pub regions: [RegionRaw; REGION_COUNT_MAX],
}
const _: () = assert!(size_of::<SuperblockRaw>() == 240);

/// A checked superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the store.
    pub uuid: [u8; 16],
    /// Key of the path hash.
    pub path_key: [u8; 32],
    /// Shape.
    pub geometry: Geometry,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
    /// Unknown features forbid writing.
    pub is_read_only: bool,
    /// Retention, erasure or retirement was used: [`INCOMPAT_LIFE`].
    pub has_life: bool,
    /// Features that may be ignored, kept when the superblock is written again.
    pub feature_compat: u32,
}

impl Superblock {
    /// The store id in every page.
    #[must_use]
    pub fn store_id(&self) -> u64 {
        store_id_of(&self.uuid)
    }

    /// What the checksum of every record header begins with: records that an earlier store left on the disk never verify.
    #[must_use]
    pub fn record_seed(&self) -> u32 {
        if Rule::RecordsBound.holds() { crc32c::crc32c(&self.uuid) } else { 0 }
    }

    /// Whether this is what `other` was to become when a crash came between the two superblocks: the copy is written first, and both are right.
    #[must_use]
    pub fn follows(&self, other: &Self) -> bool {
        let (now, before) = (&self.geometry, &other.geometry);
        let is_grown = now.segment_count >= before.segment_count && now.regions.starts_with(&before.regions);
        let mut same = other.clone();
        same.geometry.segment_count = now.segment_count;
        same.geometry.regions = now.regions.clone();
        same.has_life = self.has_life;
        is_grown && self.has_life >= other.has_life && *self == same
    }

    /// Hash of a path in this store.
    #[must_use]
    pub fn path_hash(&self, path: &[u8]) -> PathHash {
        PathHash::of(&self.path_key, path)
    }

    /// The index page in each region at which the search for a path begins.
    pub(crate) fn home_pages(&self, path: &[u8]) -> impl Iterator<Item = u64> {
        let bucket = self.path_hash(path).bucket;
        self.geometry.regions.iter().map(move |region| self.geometry.home_page(region, bucket))
    }

    /// What the first record of the store carries as the hash of its predecessor. It binds the chain to the store:
    /// records that an earlier store left on the disk never fit.
    #[must_use]
    pub fn genesis_hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("receiptdisk RS1 genesis");
        if Rule::Genesis.holds() {
            hasher.update(&self.uuid);
        }
        *hasher.finalize().as_bytes()
    }

    /// The page body.
    #[must_use]
    pub fn encode(&self) -> Page {
        let mut regions = [RegionRaw::default(); REGION_COUNT_MAX];
        for (raw, region) in regions.iter_mut().zip(&self.geometry.regions) {
            *raw = RegionRaw { first_segment: U64::new(region.first_segment), zones: U64::new(region.zones) };
        }
        let raw = SuperblockRaw {
            magic: SUPERBLOCK_MAGIC,
            format_major: U16::new(FORMAT_MAJOR),
            format_minor: U16::new(FORMAT_MINOR),
            feature_compat: U32::new(self.feature_compat),
            feature_incompat: U32::new(if self.has_life { INCOMPAT_LIFE } else { 0 }),
            uuid: self.uuid,
            path_key: self.path_key,
            hash_alg: U16::new(HASH_BLAKE3),
            zone_segments: U32::new(u32::try_from(self.geometry.zone_segments).unwrap_or(u32::MAX)),
            segment_bytes: U64::new(self.geometry.segment_bytes),
            segment_count: U64::new(self.geometry.segment_count),
            created_at_ms: U64::new(self.created_at_ms),
            region_count: U32::new(u32::try_from(self.geometry.regions.len()).unwrap_or(u32::MAX)),
            regions,
            ..SuperblockRaw::default()
        };
        let mut page = Page::empty();
        page.body[..size_of::<SuperblockRaw>()].copy_from_slice(raw.as_bytes());
        page
    }

    /// Reads the superblock, or its copy when the first is damaged.
    ///
    /// # Errors
    /// [`Error::NoStore`], a newer format, unknown features, a geometry that does not fit, or a device error.
    pub fn read(device: &dyn Device, name: &str) -> Result<Self> {
        let mut first_error = None;
        if device.size_bytes() >= PAGE_BYTES {
            match Self::read_at(device, PAGE_SUPERBLOCK) {
                Ok(Some(superblock)) => return Ok(superblock),
                Ok(None) => {}
                Err(
                    error
                    @ (Error::NewerFormat { .. } | Error::UnknownFeature { .. } | Error::BadGeometry(_)),
                ) => {
                    return Err(error);
                }
                Err(error) => first_error = Some(error),
            }
        }
        for page_no in superblock_pages(device.size_bytes()).skip(1) {
            match Self::read_at(device, page_no) {
                Ok(Some(superblock)) if superblock.geometry.superblock_copy_page() == page_no => {
                    return Ok(superblock);
                }
                // A disk that cannot be read is not one without a store.
                Err(error @ Error::Device(_)) => first_error = Some(error),
                _ => {}
            }
        }
        Err(first_error.unwrap_or_else(|| Error::NoStore { name: name.to_owned() }))
    }

    fn read_at(device: &dyn Device, page_no: u64) -> Result<Option<Self>> {
        let (page, store_id) =
            read_page(device, PageId { store_id: None, page_no, kind: PageKind::Superblock })?;
        if page.version == 0 && page.is_damaged {
            return Err(Error::Corrupt("superblock: damaged".to_owned()));
        }
        if page.version == 0 {
            return Ok(None);
        }
        let superblock = Self::decode(&page.body, device.size_bytes())?;
        Ok((superblock.store_id() == store_id).then_some(superblock))
    }

    pub(crate) fn decode(body: &[u8; SLOT_BODY_BYTES], size_bytes: u64) -> Result<Self> {
        let corrupt = |text: String| Error::Corrupt(format!("superblock: {text}"));
        let (raw, _) = SuperblockRaw::ref_from_prefix(body).map_err(|_| corrupt("too short".to_owned()))?;
        if raw.magic != SUPERBLOCK_MAGIC {
            return Err(corrupt("no magic".to_owned()));
        }
        if raw.format_major.get() != FORMAT_MAJOR {
            return Err(Error::NewerFormat { major: raw.format_major.get(), minor: raw.format_minor.get() });
        }
        let unknown = raw.feature_incompat.get() & !KNOWN_INCOMPAT;
        if unknown != 0 {
            return Err(Error::UnknownFeature { bits: unknown });
        }
        if raw.hash_alg.get() != HASH_BLAKE3 {
            return Err(corrupt(format!("unknown hash {}", raw.hash_alg)));
        }
        let region_count = usize::try_from(raw.region_count.get()).unwrap_or(usize::MAX);
        let regions =
            raw.regions.get(..region_count).ok_or_else(|| corrupt(format!("{region_count} regions")))?;
        let geometry = Geometry {
            segment_bytes: raw.segment_bytes.get(),
            segment_count: raw.segment_count.get(),
            zone_segments: u64::from(raw.zone_segments.get()),
            regions: regions
                .iter()
                .map(|r| Region { first_segment: r.first_segment.get(), zones: r.zones.get() })
                .collect(),
        };
        geometry.check(size_bytes)?;
        Ok(Self {
            uuid: raw.uuid,
            path_key: raw.path_key,
            geometry,
            created_at_ms: raw.created_at_ms.get(),
            has_life: raw.feature_incompat.get() & INCOMPAT_LIFE != 0,
            feature_compat: raw.feature_compat.get(),
            is_read_only: raw.feature_ro_compat.get() & !KNOWN_RO_COMPAT != 0,
        })
    }
}

/// Pages where a superblock may lie: page 0, and the last page of segment 0 for each size of a segment.
pub(crate) fn superblock_pages(device_size_bytes: u64) -> impl Iterator<Item = u64> {
    let sizes = std::iter::successors(Some(SEGMENT_BYTES_MIN), |size| size.checked_mul(2));
    let sizes = sizes.take_while(move |size| *size <= SEGMENT_BYTES_MAX.min(device_size_bytes));
    std::iter::once(PAGE_SUPERBLOCK).chain(sizes.map(|size| size / PAGE_BYTES - 1))
}

fn store_id_of(uuid: &[u8; 16]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&uuid[..8]);
    u64::from_le_bytes(bytes)
}
