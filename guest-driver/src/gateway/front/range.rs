//! Byte ranges of an image: one range, as RFC 9110 has it.

use hyper::HeaderMap;
use hyper::header::{IF_RANGE, RANGE};

/// What part of a body a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it: no range, several, or one that is to be ignored.
    Whole,
    /// From the first to the last byte, both included.
    Bytes(usize, usize),
    /// A range that begins behind the end.
    Beyond,
}

impl Part {
    /// The part of a body of `len` bytes with the entity tag `etag`.
    pub fn of(headers: &HeaderMap, etag: &str, len: usize) -> Self {
        // A range holds only for the version that the client has; a date never proves that.
        if headers.get(IF_RANGE).is_some_and(|value| value != etag) {
            return Self::Whole;
        }
        let mut all = headers.get_all(RANGE).iter();
        match (all.next().and_then(|value| value.to_str().ok()), all.next()) {
            (Some(text), None) => Self::parse(text, len),
            _ => Self::Whole,
        }
    }

    fn parse(text: &str, len: usize) -> Self {
        let parse = |digits: &str| -> Option<usize> {
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            // More digits than a number has are beyond every end.
            is_number.then(|| digits.parse().unwrap_or(usize::MAX))
        };
        let Some((unit, range)) = text.split_once('=') else { return Self::Whole };
        let Some((first, last)) = range.trim().split_once('-') else { return Self::Whole };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Self::Whole;
        }
        match (first.trim(), last.trim()) {
            ("", last) => match parse(last) {
                Some(0) => Self::Beyond,
                Some(_) if len == 0 => Self::Beyond,
                Some(count) => Self::Bytes(len.saturating_sub(count), len - 1),
                None => Self::Whole,
            },
            (first, last) => match (parse(first), parse(last)) {
                (Some(first), Some(last)) if first > last => Self::Whole,
                (None, _) => Self::Whole,
                (Some(_), None) if !last.is_empty() => Self::Whole,
                (Some(first), _) if first >= len => Self::Beyond,
                (Some(first), last) => Self::Bytes(first, last.unwrap_or(usize::MAX).min(len - 1)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges() {
        for (text, part) in [
            ("bytes=0-0", Part::Bytes(0, 0)),
            ("bytes=2-", Part::Bytes(2, 9)),
            ("bytes=2-99", Part::Bytes(2, 9)),
            ("bytes=-3", Part::Bytes(7, 9)),
            ("bytes=-99", Part::Bytes(0, 9)),
            ("BYTES = 1 - 2", Part::Bytes(1, 2)),
            ("bytes=99999999999999999999999-", Part::Beyond),
            ("bytes=10-", Part::Beyond),
            ("bytes=-0", Part::Beyond),
            ("bytes=5-4", Part::Whole),
            ("bytes=1-2,4-5", Part::Whole),
            ("bytes=", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=1-b", Part::Whole),
            ("lines=1-2", Part::Whole),
        ] {
            assert_eq!(Part::parse(text, 10), part, "{text}");
        }
        assert_eq!(Part::parse("bytes=0-", 0), Part::Beyond);
        assert_eq!(Part::parse("bytes=-1", 0), Part::Beyond);
    }

    proptest! {
        #[test]
        fn a_range_lies_inside(text in "bytes=[0-9]{0,21}-[0-9]{0,21}", len in 0_usize..1000) {
            if let Part::Bytes(first, last) = Part::parse(&text, len) {
                prop_assert!(first <= last && last < len);
            }
        }
    }
}
