//! Sizes on the command line: a number with K, M, G or T (powers of 1024).

/// Reads a size in bytes.
pub fn parse(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is no size: a number with K, M, G or T");
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("1M"), Ok(1 << 20));
        assert_eq!(parse("2t"), Ok(2 << 40));
        for bad in ["", "M", "1X", "-1", "1.5G", "99999999999T", "é"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
