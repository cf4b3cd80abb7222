//! Head notes. One names a record by its sequence and the hash of its header. Every header holds the hash of the one before, so a note that is kept off
//! this disk vouches for everything up to it.

use crate::hex;

/// First word of a head note.
const NOTE_MAGIC: &str = "receipt-note-1";

/// What the head of a store was at some time: one line `receipt-note-1 UUID SEQ HASH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Identity of the store.
    pub uuid: [u8; 16],
    /// Sequence of the last record.
    pub seq: u64,
    /// BLAKE3 of its header; for sequence 0 what the first record names as its predecessor.
    pub hash: [u8; 32],
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{NOTE_MAGIC} {} {} {}", hex(&self.uuid), self.seq, hex(&self.hash))
    }
}

impl Note {
    /// Reads the text form; white space around it does not count.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        if words.next() != Some(NOTE_MAGIC) {
            return None;
        }
        let note = Self {
            uuid: from_hex(words.next()?)?,
            seq: words.next()?.parse().ok()?,
            hash: from_hex(words.next()?)?,
        };
        words.next().is_none().then_some(note)
    }
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_round_trip() {
        let note = Note { uuid: [0xab; 16], seq: 7, hash: [1; 32] };
        assert_eq!(Note::parse(&format!("{note}\n")), Some(note.clone()));
        for bad in [
            "",
            "receipt-note-1",
            &format!("{note} x"),
            &note.to_string().replace("ab", "xy"),
            &note.to_string()[1..],
        ] {
            assert_eq!(Note::parse(bad), None, "{bad}");
        }
    }
}
