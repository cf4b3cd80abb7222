//! A checksum behind the data of a record: it tells a reader in a fraction of the time of BLAKE3 that the data is whole.
//!
//! Invariants: a checksum that fits spares the reader the hash; one that is missing or does not fit decides nothing, the hash does. It depends on
//! the hash in the header, so it fits no other data of another record that may lie there. Who keeps, copies or proves anything checks the hash.

use crate::layout::BLOCK_BYTES_USIZE;
use crate::record::{Header, RecordFault};
use crate::rules::Rule;
use twox_hash::XxHash64;

/// Bytes of the checksum: the last of the record.
pub const CHECKSUM_BYTES: usize = 8;

/// BLAKE3 of data.
pub type DataHash = [u8; 32];

/// What identifies data, and what tells quickly that it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSums {
    /// Identity.
    pub hash: DataHash,
    /// XXH64, seeded with the first 8 bytes of the hash.
    pub checksum: u64,
}

impl DataSums {
    /// Those of `data`.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        Self::of_hashed(data, *blake3::hash(data).as_bytes())
    }

    /// Those of `data`, whose hash is known.
    #[must_use]
    pub fn of_hashed(data: &[u8], hash: DataHash) -> Self {
        Self { hash, checksum: checksum(data, &hash) }
    }
}

/// The checksum of `data` in a record whose header has this hash.
fn checksum(data: &[u8], hash: &DataHash) -> u64 {
    let mut seed = [0; CHECKSUM_BYTES];
    if Rule::ChecksumBound.holds() {
        seed.copy_from_slice(&hash[..CHECKSUM_BYTES]);
    }
    XxHash64::oneshot(u64::from_le_bytes(seed), data)
}

/// Whether a record has room for a checksum behind its data.
#[must_use]
pub fn has_room(header_len: usize, data_len: u64) -> bool {
    let end = header_len as u64 + data_len % BLOCK_BYTES_USIZE as u64;
    end.next_multiple_of(BLOCK_BYTES_USIZE as u64) - end >= CHECKSUM_BYTES as u64
}

/// Lays out what is behind the data: zeroes, then the checksum if there is one.
pub fn fill_padding(padding: &mut [u8], checksum: Option<u64>) {
    padding.fill(0);
    if let (Some(checksum), Some(last)) = (checksum, padding.last_chunk_mut()) {
        *last = checksum.to_le_bytes();
    }
}

impl Header {
    /// The data of the record whose bytes are `bytes`, if it matches its checksum; otherwise, and where there is none, checked against its hash.
    ///
    /// # Errors
    /// [`RecordFault::BadData`].
    pub fn data_by_checksum<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], RecordFault> {
        let (data, padding) = self.split(bytes).ok_or(RecordFault::BadData)?;
        let stored = padding.last_chunk().copied().map(u64::from_le_bytes);
        match self.has_checksum().then(|| checksum(data, &self.data_hash)) {
            Some(right) if stored == Some(right) => Ok(data),
            Some(_) if !Rule::HashDecides.holds() => Err(RecordFault::BadData),
            _ => self.data(bytes),
        }
    }

    /// Whether what is behind the data, which matches its hash, is what it should be: zeroes, and the checksum where there is one.
    #[must_use]
    pub fn is_padded(&self, bytes: &[u8]) -> bool {
        let Some((data, padding)) = self.split(bytes) else { return false };
        let zeroes = match (self.has_checksum(), padding.split_last_chunk()) {
            (false, _) => padding,
            (true, Some((zeroes, stored))) if *stored == checksum(data, &self.data_hash).to_le_bytes() => {
                zeroes
            }
            (true, _) => return false,
        };
        zeroes.iter().all(|byte| *byte == 0)
    }

    /// Makes what is behind the data, which matches its hash, what it should be. True when it was not.
    pub fn mend_padding(&self, bytes: &mut [u8]) -> bool {
        if self.is_padded(bytes) {
            return false;
        }
        let Some((data, padding)) = self.split(bytes) else { return false };
        let (start, checksum) = (bytes.len() - padding.len(), checksum(data, &self.data_hash));
        fill_padding(&mut bytes[start..], self.has_checksum().then_some(checksum));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{FLAG_CHECKSUM, record_blocks, tests::header};

    /// A record of `data` as it lies on the disk.
    fn record(data: &[u8]) -> (Header, Vec<u8>) {
        let mut header = header("a", data);
        header.flags |= FLAG_CHECKSUM;
        let len = usize::try_from(record_blocks(1, data.len() as u64)).unwrap() * BLOCK_BYTES_USIZE;
        let mut bytes = header.encode(7);
        bytes.extend_from_slice(data);
        let end = bytes.len();
        bytes.resize(len, 0);
        if header.has_checksum() {
            fill_padding(&mut bytes[end..], Some(DataSums::of(data).checksum));
        }
        (header, bytes)
    }

    #[test]
    fn data_is_accepted_by_its_checksum_alone() {
        let (mut header, mut bytes) = record(&[7; 5000]);
        assert_eq!(header.data_by_checksum(&bytes).unwrap(), [7; 5000]);
        // The rest of the hash is not looked at when the checksum fits.
        header.data_hash[31] ^= 1;
        assert_eq!(header.data_by_checksum(&bytes).unwrap(), [7; 5000]);
        assert_eq!(header.data(&bytes), Err(RecordFault::BadData));
        bytes[5000] ^= 1;
        assert_eq!(header.data_by_checksum(&bytes), Err(RecordFault::BadData));
    }

    #[test]
    fn right_data_with_a_wrong_checksum_or_none_is_accepted_by_its_hash() {
        let (header, mut bytes) = record(&[7; 5000]);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_eq!(header.data_by_checksum(&bytes).unwrap(), [7; 5000]);
        bytes[last - 7..].fill(0);
        assert_eq!(header.data_by_checksum(&bytes).unwrap(), [7; 5000]);
        let plain = Header { flags: 0, ..header };
        assert_eq!(plain.data_by_checksum(&bytes).unwrap(), [7; 5000]);
        bytes[5000] ^= 1;
        assert_eq!(plain.data_by_checksum(&bytes), Err(RecordFault::BadData));
    }

    #[test]
    fn data_and_checksum_of_another_record_do_not_fit_this_header() {
        let (header, bytes) = record(&[7; 5000]);
        let (_, other) = record(&[8; 5000]);
        let mixed = [&bytes[..header.len_bytes()], &other[header.len_bytes()..]].concat();
        assert_eq!(header.data_by_checksum(&mixed), Err(RecordFault::BadData));
    }

    #[test]
    fn a_record_without_room_has_none_whatever_its_flags_say() {
        let room = BLOCK_BYTES_USIZE - 152;
        for (len, has_checksum) in [
            (0, true),
            (room - 8, true),
            (room - 7, false),
            (room, false),
            (room + 1, true),
            (room + 4088, true),
            (room + 4089, false),
        ] {
            let (header, bytes) = record(&vec![9; len]);
            assert_eq!(has_room(header.len_bytes(), len as u64), has_checksum, "{len}");
            assert_eq!(header.has_checksum(), has_checksum, "{len}");
            assert_eq!(header.data_by_checksum(&bytes).unwrap(), vec![9; len]);
        }
    }

    #[test]
    fn padding_is_mended_and_nothing_else() {
        for flags in [0, FLAG_CHECKSUM] {
            let (header, mut whole) = record(&[7; 5000]);
            let header = Header { flags, ..header };
            assert_eq!(header.mend_padding(&mut whole), flags == 0);
            let start = header.len_bytes() + 5000;
            for at in start..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 0xff;
                assert!(header.mend_padding(&mut bytes), "byte {at}");
                assert_eq!(bytes, whole);
                assert!(!header.mend_padding(&mut bytes));
            }
        }
    }
}
