//! What a request asks for: percent-encoded paths and queries.

use super::answer::Fault;
use receipt_store::{Locator, ReceiptPath};

/// Decodes `%XX`. `None` for a broken escape or bytes that are no UTF-8.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            hex_digit(rest.next()?)? << 4 | hex_digit(rest.next()?)?
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

/// Encodes everything but unreserved characters and those in `kept`.
pub fn encode(text: &str, kept: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let letter = char::from(byte);
        if byte.is_ascii_alphanumeric()
            || "-._~".contains(letter)
            || (byte.is_ascii() && kept.contains(letter))
        {
            out.push(letter);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A path of a receipt as it stands in a URL.
pub fn encode_path(path: &str) -> String {
    encode(path, "/@")
}

/// The parameters of a query, decoded.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the part after `?`.
    pub fn parse(text: Option<&str>) -> Result<Self, Fault> {
        let mut all: Vec<(String, String)> = Vec::new();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let clean = |text: &str| decode(&text.replace('+', " "));
            let (Some(name), Some(value)) = (clean(name), clean(value)) else {
                return Err(Fault::bad("the query is not percent-encoded UTF-8"));
            };
            if all.iter().any(|(other, _)| *other == name) {
                return Err(Fault::bad(format!("the parameter {name:?} stands twice")));
            }
            all.push((name, value));
        }
        Ok(Self(all))
    }

    /// As [`Query::parse`]; any parameter but these is an error, since it would be ignored otherwise.
    pub fn strict(text: Option<&str>, known: &[&str]) -> Result<Self, Fault> {
        let query = Self::parse(text)?;
        match query.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => Err(Fault::bad(format!("unknown parameter {name:?}; known here: {known:?}"))),
            None => Ok(query),
        }
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// All parameters, in their order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// A number; `None` when it is not given.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Fault> {
        let bad = || Fault::bad(format!("the parameter {name:?} is not a number"));
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let parse = |text: &str| if is_plain(text) { text.parse().map_err(|_| bad()) } else { Err(bad()) };
        self.get(name).map(parse).transpose()
    }

    /// `1` or `0`; not given is `0`.
    pub fn flag(&self, name: &str) -> Result<bool, Fault> {
        match self.get(name) {
            None | Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(_) => Err(Fault::bad(format!("the parameter {name:?} is 0 or 1"))),
        }
    }
}

/// What a URL names.
#[derive(Debug)]
pub enum Wanted {
    /// The newest version.
    Path(ReceiptPath),
    /// One version.
    Locator(Locator),
}

impl Wanted {
    /// Reads a percent-encoded path or locator. The rules of paths forbid `..`, empty parts and control characters.
    pub fn parse(encoded: &str) -> Result<Self, Fault> {
        let bad = |why| Fault::new(hyper::StatusCode::BAD_REQUEST, "bad_path", why);
        let text = decode(encoded).ok_or_else(|| bad("the path is not percent-encoded UTF-8"))?;
        if text.starts_with('/') {
            return Err(bad("the path begins with an empty part")); // one receipt has one URL
        }
        match Locator::parse(&text) {
            Some(locator) => Ok(Self::Locator(locator)),
            None => Ok(Self::Path(ReceiptPath::new(&text)?)),
        }
    }

    /// The path alone.
    pub fn path(&self) -> &ReceiptPath {
        match self {
            Self::Path(path) => path,
            Self::Locator(locator) => &locator.path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in "\\PC*") {
            prop_assert_eq!(decode(&encode(&text, "")), Some(text.clone()));
            prop_assert_eq!(decode(&encode_path(&text)), Some(text.clone()));
            let query = format!("id={}", encode(&text, ""));
            let query = Query::parse(Some(&query)).unwrap();
            prop_assert_eq!(query.get("id"), Some(text.as_str()));
        }

        #[test]
        fn no_text_breaks_the_parsers(text in ".*") {
            let _ = (decode(&text), Query::parse(Some(&text)), Wanted::parse(&text));
        }
    }

    #[test]
    fn broken_escapes_are_refused() {
        for bad in ["%", "%4", "%zz", "%+1", "%ff", "a%C3"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        for bad in ["a=1&a=2", "a=%ff"] {
            assert!(Query::parse(Some(bad)).is_err(), "{bad}");
        }
        assert!(Query::strict(Some("newversion=1"), &["new_version"]).is_err());
        for bad in ["n=", "n=+1", "n=-1", "n=1x", "n=99999999999999999999"] {
            assert!(Query::parse(Some(bad)).unwrap().number("n").is_err(), "{bad}");
        }
    }

    #[test]
    fn hostile_paths_are_refused() {
        for bad in [
            "..", "a/../b", "%2e%2e/a", "a/%2e%2e", "a%00b", "%2Fa", "/a", "%2F%2Fa", "", "a//b", "a%0ab",
            "%ff",
        ] {
            assert!(Wanted::parse(bad).is_err(), "{bad}");
        }
        assert!(matches!(Wanted::parse("a%2Fb"), Ok(Wanted::Path(path)) if path.as_str() == "a/b"));
        assert!(matches!(Wanted::parse("a@1.2.3.4"), Ok(Wanted::Locator(locator)) if locator.seq == 4));
    }
}
