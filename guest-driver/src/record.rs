//! Records: immutable, appended, never crossing a segment. Header of 144 bytes, then a path (or the descriptor of a
//! Summary), then data; the whole padded to 4 KiB.
//!
//! Invariants: sequences grow by one without a gap; `prev_hash` is the hash of the header before, `data_hash` that of the
//! data, so the chain of headers vouches for every byte ever stored.

use crate::checksum::has_room;
use crate::layout::{BLOCK_BYTES, DATA_BYTES_MAX, PATH_BYTES_MAX};
use crate::summary::DESCRIPTOR_BYTES_MAX;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a record.
pub const RECORD_MAGIC: [u8; 4] = *b"RSRC";
/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 144;
/// Flag: the first record of a group commit. The one before it was flushed when this one was written.
pub const FLAG_BATCH_START: u16 = 1;
/// Flag of a Put: a copy of a receipt out of a segment that is about to be retired; the version before is the record that was copied.
pub const FLAG_MOVED: u16 = 2;
/// Flag of an Erase: the index named the version that it erases.
pub const FLAG_WAS_LIVE: u16 = 4;
/// Flag of a Tombstone: the term was over.
pub const FLAG_EXPIRED: u16 = 8;
/// Flag: the last 8 bytes of the record hold a checksum of its data ([`crate::checksum`]).
pub const FLAG_CHECKSUM: u16 = 16;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A receipt.
    Put,
    /// The removal of a path: it has no data and names the version that it removes.
    Tombstone,
    /// The erasure of a version that it names: its data is zeroed; the data of this record is the reason.
    Erase,
    /// The beginning or end of a hold.
    Hold,
    /// The terms of all classes from here on.
    Policy,
    /// A list of the records since the last Summary.
    Summary,
    /// The Summary that ends a segment and links to the next.
    Seal,
    /// The end of a segment: its records have gone, its room is free.
    Retire,
}

impl Kind {
    /// The number on disk.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Put => 1,
            Self::Tombstone => 2,
            Self::Erase => 3,
            Self::Hold => 4,
            Self::Policy => 5,
            Self::Summary => 6,
            Self::Seal => 7,
            Self::Retire => 8,
        }
    }

    /// The kind of a number on disk.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [
            Self::Put,
            Self::Tombstone,
            Self::Erase,
            Self::Hold,
            Self::Policy,
            Self::Summary,
            Self::Seal,
            Self::Retire,
        ]
        .into_iter()
        .find(|kind| kind.number() == number)
    }

    /// Whether the record is about a path.
    #[must_use]
    pub fn has_path(self) -> bool {
        matches!(self, Self::Put | Self::Tombstone | Self::Erase)
    }

    /// Whether the record is a list of records: Summary or Seal.
    #[must_use]
    pub fn is_list(self) -> bool {
        matches!(self, Self::Summary | Self::Seal)
    }

    /// Whether programs of before retention misread the record: the store says so in its features.
    #[must_use]
    pub fn is_of_life(self) -> bool {
        matches!(self, Self::Erase | Self::Hold | Self::Policy | Self::Retire)
    }
}

/// The fixed header on disk.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RecordRaw {
    /// `RSRC`.
    pub magic: [u8; 4],
    /// CRC-32C of the uuid of the store, then byte 8 to the end of the padded path.
    pub header_crc32c: U32,
    /// Sequence, from 1, no gaps.
    pub seq: U64,
    /// Epoch of the writer.
    pub epoch: U32,
    /// Generation of the segment.
    pub generation: U32,
    /// Block of this record.
    pub self_block: U64,
    /// Blocks of this record.
    pub blocks: U32,
    /// [`Kind`].
    pub kind: u8,
    /// Retention class.
    pub class: u8,
    /// Bytes of the path (or descriptor), not padded.
    pub path_len: U16,
    /// Bytes of data.
    pub data_len: U64,
    /// Milliseconds since 1970 when the record was written; informative.
    pub recorded_at_ms: U64,
    /// Days since 1970 when the receipt was issued.
    pub issued_day: U32,
    /// Flags.
    pub flags: U16,
    /// Version of the path, from 1.
    pub version: U16,
    /// Block of the version before, 0 = none.
    pub previous_version_block: U64,
    /// Sequence of the version before, 0 = none.
    pub previous_version_seq: U64,
    /// BLAKE3 of the header (fixed part and padded path) of the record before.
    pub prev_hash: [u8; 32],
    /// BLAKE3 of the data.
    pub data_hash: [u8; 32],
}
const _: () = assert!(size_of::<RecordRaw>() == HEADER_BYTES);

/// A header that verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sequence.
    pub seq: u64,
    /// Epoch of the writer.
    pub epoch: u32,
    /// Generation of the segment.
    pub generation: u32,
    /// Block of this record.
    pub block: u64,
    /// Blocks of this record.
    pub blocks: u32,
    /// Kind.
    pub kind: Kind,
    /// Retention class.
    pub class: u8,
    /// Path; the descriptor of a Summary or Seal; what a Hold, Policy or Retire says.
    pub meta: Vec<u8>,
    /// Bytes of data.
    pub data_len: u64,
    /// Milliseconds since 1970.
    pub recorded_at_ms: u64,
    /// Days since 1970.
    pub issued_day: u32,
    /// Flags.
    pub flags: u16,
    /// Version of the path, from 1; 0 in records without a path.
    pub version: u16,
    /// Block of the version before, 0 = none.
    pub previous_version_block: u64,
    /// Sequence of the version before, 0 = none.
    pub previous_version_seq: u64,
    /// Hash of the header before.
    pub prev_hash: [u8; 32],
    /// Hash of the data.
    pub data_hash: [u8; 32],
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// The bytes do not begin with a record.
    #[error("no record header")]
    NoMagic,
    /// The header does not match its checksum.
    #[error("header checksum is wrong")]
    BadHeaderCrc,
    /// A field is out of bounds.
    #[error("header field {0} is out of bounds")]
    BadField(&'static str),
    /// The header is whole, but of a kind that this program does not know.
    #[error("kind {0} is not known: use a newer `receipt`")]
    UnknownKind(u8),
    /// The data does not match its hash.
    #[error("data does not match its hash")]
    BadData,
}

impl Header {
    /// Whether the record changes what the index says of its path: Summaries list it. The erasure of a version that was replaced or removed before does
    /// not.
    #[must_use]
    pub fn changes_index(&self) -> bool {
        match self.kind {
            Kind::Put | Kind::Tombstone => true,
            Kind::Erase => self.flags & FLAG_WAS_LIVE != 0,
            _ => false,
        }
    }

    /// Bytes of the header with its padded path.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        HEADER_BYTES + self.meta.len().next_multiple_of(8)
    }

    /// The header's bytes, checksum included. `store_seed` binds it to its store: [`crate::Superblock::record_seed`].
    #[must_use]
    pub fn encode(&self, store_seed: u32) -> Vec<u8> {
        let raw = RecordRaw {
            magic: RECORD_MAGIC,
            header_crc32c: U32::ZERO,
            seq: U64::new(self.seq),
            epoch: U32::new(self.epoch),
            generation: U32::new(self.generation),
            self_block: U64::new(self.block),
            blocks: U32::new(self.blocks),
            kind: self.kind.number(),
            class: self.class,
            path_len: U16::new(u16::try_from(self.meta.len()).unwrap_or(u16::MAX)),
            data_len: U64::new(self.data_len),
            recorded_at_ms: U64::new(self.recorded_at_ms),
            issued_day: U32::new(self.issued_day),
            flags: U16::new(self.flags),
            version: U16::new(self.version),
            previous_version_block: U64::new(self.previous_version_block),
            previous_version_seq: U64::new(self.previous_version_seq),
            prev_hash: self.prev_hash,
            data_hash: self.data_hash,
        };
        let mut bytes = vec![0; self.len_bytes()];
        bytes[..HEADER_BYTES].copy_from_slice(raw.as_bytes());
        bytes[HEADER_BYTES..HEADER_BYTES + self.meta.len()].copy_from_slice(&self.meta);
        let crc = crc32c::crc32c_append(store_seed, &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header from the first bytes of a record (4096 are always enough). Returns it with its hash, which the
    /// next record carries. A record of another store has a wrong checksum.
    ///
    /// # Errors
    /// The first [`RecordFault`].
    pub fn parse(bytes: &[u8], store_seed: u32) -> Result<(Self, [u8; 32]), RecordFault> {
        let (raw, _) = RecordRaw::ref_from_prefix(bytes).map_err(|_| RecordFault::NoMagic)?;
        if raw.magic != RECORD_MAGIC {
            return Err(RecordFault::NoMagic);
        }
        let meta_len = usize::from(raw.path_len.get());
        let padded = HEADER_BYTES + meta_len.next_multiple_of(8);
        let whole = bytes.get(..padded).ok_or(RecordFault::BadField("path_len"))?;
        if crc32c::crc32c_append(store_seed, &whole[8..]) != raw.header_crc32c.get() {
            return Err(RecordFault::BadHeaderCrc);
        }
        let kind = Kind::from_number(raw.kind).ok_or(RecordFault::UnknownKind(raw.kind))?;
        let header = Self {
            seq: raw.seq.get(),
            epoch: raw.epoch.get(),
            generation: raw.generation.get(),
            block: raw.self_block.get(),
            blocks: raw.blocks.get(),
            kind,
            class: raw.class,
            meta: whole[HEADER_BYTES..HEADER_BYTES + meta_len].to_vec(),
            data_len: raw.data_len.get(),
            recorded_at_ms: raw.recorded_at_ms.get(),
            issued_day: raw.issued_day.get(),
            flags: raw.flags.get(),
            version: raw.version.get(),
            previous_version_block: raw.previous_version_block.get(),
            previous_version_seq: raw.previous_version_seq.get(),
            prev_hash: raw.prev_hash,
            data_hash: raw.data_hash,
        };
        header.check()?;
        Ok((header, *blake3::hash(whole).as_bytes()))
    }

    fn check(&self) -> Result<(), RecordFault> {
        let meta_max = if self.kind.has_path() { PATH_BYTES_MAX } else { DESCRIPTOR_BYTES_MAX };
        if self.meta.is_empty() || self.meta.len() > meta_max {
            return Err(RecordFault::BadField("path_len"));
        }
        if self.data_len > DATA_BYTES_MAX {
            return Err(RecordFault::BadField("data_len"));
        }
        if u64::from(self.blocks) != record_blocks(self.meta.len(), self.data_len) {
            return Err(RecordFault::BadField("blocks"));
        }
        if self.seq == 0 {
            return Err(RecordFault::BadField("seq"));
        }
        // Whoever follows versions back comes to an end.
        if self.previous_version_seq >= self.seq {
            return Err(RecordFault::BadField("previous_version_seq"));
        }
        if self.kind.has_path() != (self.version > 0) {
            return Err(RecordFault::BadField("version"));
        }
        Ok(())
    }

    /// The data of the record whose bytes are `bytes`, checked against the hash.
    ///
    /// # Errors
    /// [`RecordFault::BadData`].
    pub fn data<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], RecordFault> {
        let (data, _) = self.split(bytes).ok_or(RecordFault::BadData)?;
        if *blake3::hash(data).as_bytes() != self.data_hash {
            return Err(RecordFault::BadData);
        }
        Ok(data)
    }

    /// The data and what is behind it.
    #[must_use]
    pub fn split<'a>(&self, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        bytes.get(self.len_bytes()..)?.split_at_checked(usize::try_from(self.data_len).ok()?)
    }

    /// Whether the last bytes of the record are a checksum of its data.
    #[must_use]
    pub fn has_checksum(&self) -> bool {
        self.flags & FLAG_CHECKSUM != 0 && has_room(self.len_bytes(), self.data_len)
    }
}

/// Blocks of a record.
#[must_use]
pub fn record_blocks(meta_len: usize, data_len: u64) -> u64 {
    let header = (HEADER_BYTES + meta_len.next_multiple_of(8)) as u64;
    header.saturating_add(data_len).div_ceil(BLOCK_BYTES)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const SEED: u32 = 7;

    pub(crate) fn header(path: &str, data: &[u8]) -> Header {
        Header {
            seq: 5,
            epoch: 2,
            generation: 1,
            block: 600,
            blocks: u32::try_from(record_blocks(path.len(), data.len() as u64)).unwrap(),
            kind: Kind::Put,
            class: 0,
            meta: path.as_bytes().to_vec(),
            data_len: data.len() as u64,
            recorded_at_ms: 1,
            issued_day: 2,
            flags: FLAG_BATCH_START,
            version: 1,
            previous_version_block: 0,
            previous_version_seq: 0,
            prev_hash: [9; 32],
            data_hash: *blake3::hash(data).as_bytes(),
        }
    }

    #[test]
    fn a_header_names_only_what_is_before_it() {
        for (previous_version_seq, is_right) in [(4, true), (5, false), (6, false)] {
            let header = Header { previous_version_seq, ..header("a", b"data") };
            assert_eq!(Header::parse(&header.encode(SEED), SEED).is_ok(), is_right, "{previous_version_seq}");
        }
    }

    #[test]
    fn headers_round_trip_and_every_changed_byte_is_noticed() {
        let header = header("a/b.png", b"data");
        let bytes = header.encode(SEED);
        assert_eq!(bytes.len(), 152);
        assert_eq!(Header::parse(&bytes, SEED).unwrap().0, header);
        assert_eq!(Header::parse(&bytes, SEED + 1), Err(RecordFault::BadHeaderCrc), "of another store");
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Header::parse(&bad, SEED).is_err(), "byte {at}");
            assert!(Header::parse(&bytes[..at], SEED).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn fields_out_of_bounds_are_refused_even_with_a_right_checksum() {
        let fault = |change: fn(&mut Header)| {
            let mut bad = header("a", b"data");
            change(&mut bad);
            Header::parse(&bad.encode(SEED), SEED).unwrap_err()
        };
        assert_eq!(fault(|h| h.blocks = 2), RecordFault::BadField("blocks"));
        assert_eq!(fault(|h| h.data_len = u64::MAX), RecordFault::BadField("data_len"));
        assert_eq!(fault(|h| h.seq = 0), RecordFault::BadField("seq"));
        assert_eq!(fault(|h| h.version = 0), RecordFault::BadField("version"));
        assert_eq!(fault(|h| h.meta = vec![b'x'; 1025]), RecordFault::BadField("path_len"));
    }

    #[test]
    fn changed_data_does_not_verify() {
        let header = header("a", b"data");
        let mut bytes = header.encode(SEED);
        bytes.extend_from_slice(b"data");
        assert_eq!(header.data(&bytes).unwrap(), b"data");
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(header.data(&bytes), Err(RecordFault::BadData));
        assert_eq!(header.data(&bytes[..155]), Err(RecordFault::BadData));
    }
}
