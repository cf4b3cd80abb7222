//! Summaries: lists of records inside the log, so that listing reads them instead of every header.
//!
//! A Summary stands after 256 records or 4 MiB; the Seal is the Summary that ends a segment. The descriptor (in the place of
//! a path, under the header's checksum) says which paths and sequences the list spans, so one block decides whether to
//! read the list.
//!
//! Invariant: the Summaries of a segment, linked backwards, list every record with a path before the last of them.

use crate::layout::PATH_BYTES_MAX;
use crate::record::{Header, Kind};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the fixed part of a descriptor.
pub const DESCRIPTOR_BYTES: usize = 56;
/// Most bytes of a descriptor: the fixed part, the smallest and the largest path.
pub const DESCRIPTOR_BYTES_MAX: usize = DESCRIPTOR_BYTES + 2 * PATH_BYTES_MAX;
/// Bytes of a list item before its path.
pub const ITEM_BYTES: usize = 24;

/// Fixed part of a descriptor on disk; the smallest and the largest path follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DescriptorRaw {
    /// Block of the Summary before in this segment, 0 = none.
    pub previous_block: U64,
    /// Sequence of the first record listed.
    pub first_seq: U64,
    /// Sequence of the last record listed.
    pub last_seq: U64,
    /// Seal: the segment that follows; Summary: 0.
    pub next_segment: U64,
    /// Seal: the generation of that segment; Summary: 0.
    pub next_generation: U32,
    /// Records listed.
    pub count: U32,
    /// Bytes of the smallest path.
    pub smallest_len: U16,
    /// Bytes of the largest path.
    pub largest_len: U16,
    /// Zero.
    pub reserved: [u8; 12],
}
const _: () = assert!(size_of::<DescriptorRaw>() == DESCRIPTOR_BYTES);

/// A list item on disk; its path follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ItemRaw {
    /// Sequence.
    pub seq: U64,
    /// Block.
    pub block: U64,
    /// Blocks.
    pub blocks: U32,
    /// [`Kind`].
    pub kind: u8,
    /// 1: the record replaces an older version of its path.
    pub flags: u8,
    /// Bytes of the path.
    pub path_len: U16,
}
const _: () = assert!(size_of::<ItemRaw>() == ITEM_BYTES);

/// One record of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Sequence.
    pub seq: u64,
    /// Block.
    pub block: u64,
    /// Blocks.
    pub blocks: u32,
    /// Put, Tombstone or Erase.
    pub kind: Kind,
    /// The record replaces an older version of its path.
    pub is_replacement: bool,
    /// Path.
    pub path: Vec<u8>,
}

impl Item {
    /// The item of a record with a path.
    #[must_use]
    pub fn of(header: &Header) -> Self {
        Self {
            seq: header.seq,
            block: header.block,
            blocks: header.blocks,
            kind: header.kind,
            is_replacement: header.previous_version_seq != 0,
            path: header.meta.clone(),
        }
    }

    /// Bytes in the list.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        (ITEM_BYTES + self.path.len()) as u64
    }
}

/// What a Summary spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Block of the Summary before in this segment, 0 = none.
    pub previous_block: u64,
    /// Sequence of the first record listed.
    pub first_seq: u64,
    /// Sequence of the last record listed.
    pub last_seq: u64,
    /// Seal: segment and generation that follow.
    pub next: Option<(u64, u32)>,
    /// Records listed.
    pub count: u32,
    /// Smallest path listed.
    pub smallest: Vec<u8>,
    /// Largest path listed.
    pub largest: Vec<u8>,
}

impl Descriptor {
    /// Describes `items`, which are in the order of their sequences.
    #[must_use]
    pub fn of(items: &[Item], previous_block: u64, next: Option<(u64, u32)>) -> Self {
        Self {
            previous_block,
            first_seq: items.first().map_or(0, |i| i.seq),
            last_seq: items.last().map_or(0, |i| i.seq),
            next,
            count: u32::try_from(items.len()).unwrap_or(u32::MAX),
            smallest: items.iter().map(|i| i.path.as_slice()).min().unwrap_or_default().to_vec(),
            largest: items.iter().map(|i| i.path.as_slice()).max().unwrap_or_default().to_vec(),
        }
    }

    /// Bytes for the header's path field.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let len = |path: &[u8]| U16::new(u16::try_from(path.len()).unwrap_or(u16::MAX));
        let (next_segment, next_generation) = self.next.unwrap_or_default();
        let raw = DescriptorRaw {
            previous_block: U64::new(self.previous_block),
            first_seq: U64::new(self.first_seq),
            last_seq: U64::new(self.last_seq),
            next_segment: U64::new(next_segment),
            next_generation: U32::new(next_generation),
            count: U32::new(self.count),
            smallest_len: len(&self.smallest),
            largest_len: len(&self.largest),
            reserved: [0; 12],
        };
        [raw.as_bytes(), &self.smallest, &self.largest].concat()
    }

    /// Reads the descriptor of a Summary or Seal.
    #[must_use]
    pub fn decode(header: &Header) -> Option<Self> {
        let (raw, paths) = DescriptorRaw::ref_from_prefix(&header.meta).ok()?;
        let smallest_len = usize::from(raw.smallest_len.get());
        let largest_len = usize::from(raw.largest_len.get());
        if paths.len() != smallest_len + largest_len {
            return None;
        }
        let next = match header.kind {
            Kind::Seal => Some((raw.next_segment.get(), raw.next_generation.get())),
            _ => None,
        };
        Some(Self {
            previous_block: raw.previous_block.get(),
            first_seq: raw.first_seq.get(),
            last_seq: raw.last_seq.get(),
            next,
            count: raw.count.get(),
            smallest: paths[..smallest_len].to_vec(),
            largest: paths[smallest_len..].to_vec(),
        })
    }

    /// Whether a path that begins with `prefix` can be in the list.
    #[must_use]
    pub fn may_hold_prefix(&self, prefix: &[u8]) -> bool {
        self.count > 0
            && self.largest.as_slice() >= prefix
            && (self.smallest.as_slice() <= prefix || self.smallest.starts_with(prefix))
    }
}

/// The list as data of a Summary.
#[must_use]
pub fn encode_items(items: &[Item]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        let raw = ItemRaw {
            seq: U64::new(item.seq),
            block: U64::new(item.block),
            blocks: U32::new(item.blocks),
            kind: item.kind.number(),
            flags: u8::from(item.is_replacement),
            path_len: U16::new(u16::try_from(item.path.len()).unwrap_or(u16::MAX)),
        };
        bytes.extend_from_slice(raw.as_bytes());
        bytes.extend_from_slice(&item.path);
    }
    bytes
}

/// Reads a list; `None` when it is not made of whole items.
#[must_use]
pub fn decode_items(mut bytes: &[u8]) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    while !bytes.is_empty() {
        let (raw, rest) = ItemRaw::ref_from_prefix(bytes).ok()?;
        let path = rest.get(..usize::from(raw.path_len.get()))?;
        items.push(Item {
            seq: raw.seq.get(),
            block: raw.block.get(),
            blocks: raw.blocks.get(),
            kind: Kind::from_number(raw.kind).filter(|kind| kind.has_path())?,
            is_replacement: raw.flags & 1 != 0,
            path: path.to_vec(),
        });
        bytes = &rest[path.len()..];
    }
    Some(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(seq: u64, path: &str) -> Item {
        let kind = if seq == 3 { Kind::Tombstone } else { Kind::Put };
        Item {
            seq,
            block: 600 + seq,
            blocks: 1,
            kind,
            is_replacement: seq > 1,
            path: path.as_bytes().to_vec(),
        }
    }

    #[test]
    fn lists_round_trip_and_cut_lists_do_not() {
        let items = vec![item(1, "b"), item(2, "aa/c"), item(3, "c")];
        let bytes = encode_items(&items);
        assert_eq!(bytes.len() as u64, items.iter().map(Item::len_bytes).sum::<u64>());
        assert_eq!(decode_items(&bytes).unwrap(), items);
        assert!(decode_items(&bytes[..bytes.len() - 1]).is_none());
        assert!(decode_items(&bytes[..ITEM_BYTES - 1]).is_none());
    }

    #[test]
    fn prefixes_are_skipped_only_when_nothing_can_match() {
        let d = Descriptor::of(&[item(1, "b/1"), item(2, "d/9")], 0, None);
        for (prefix, may) in [
            ("", true),
            ("a", false),
            ("b", true),
            ("b/1", true),
            ("c", true),
            ("d/9", true),
            ("d/91", false),
            ("e", false),
        ] {
            assert_eq!(d.may_hold_prefix(prefix.as_bytes()), may, "{prefix}");
        }
        assert!(!Descriptor::of(&[], 0, None).may_hold_prefix(b""));
    }
}
