//! Any line of a manifest, any path, any locator: a path that is accepted keeps the rules and stays itself.
#![no_main]
mod allocations;

use libfuzzer_sys::fuzz_target;
use receipt_store::{Locator, ReceiptPath};

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    for line in text.lines() {
        let (path, _file) = line.split_once('\t').unwrap_or((line, ""));
        if let Ok(path) = ReceiptPath::new(path) {
            let name = path.as_str();
            assert!(!name.is_empty() && name.len() <= 1024 && !name.starts_with('/'));
            assert!(name.split('/').all(|part| !matches!(part, "" | "." | "..")));
            assert!(!name.chars().any(char::is_control));
            assert_eq!(ReceiptPath::new(name).expect("an accepted path"), path);
        }
        if let Some(locator) = Locator::parse(line) {
            assert_eq!(Locator::parse(&locator.to_string()), Some(locator));
        }
    }
});
