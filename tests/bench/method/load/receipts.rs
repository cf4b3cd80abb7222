//! The receipts: bytes that differ with every id, so that a wrong one is noticed.

use receiptdisk_tests::pattern;

/// Different contents; more of them would only take memory.
const CONTENTS: u64 = 32;

/// See the module.
pub struct Receipts {
    contents: Vec<Vec<u8>>,
}

impl Receipts {
    /// Receipts of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let len = usize::try_from(bytes).unwrap();
        Self { contents: (0..CONTENTS).map(|seed| pattern(seed + 1, 0, len)).collect() }
    }

    /// One receipt.
    pub fn get(&self, id: u64) -> Vec<u8> {
        let mut data = self.content(id).to_vec();
        data[..8].copy_from_slice(&id.to_le_bytes());
        data
    }

    /// Panics where `data` is not the receipt. Its id, its length and every 512th byte are compared, whatever the peer itself verifies.
    pub fn check(&self, id: u64, data: &[u8]) {
        let content = self.content(id);
        assert_eq!(data.len(), content.len(), "receipt {id}");
        assert_eq!(data[..8], id.to_le_bytes(), "receipt {id} is another one");
        let differs = (8..content.len()).step_by(512).find(|at| data[*at] != content[*at]);
        assert_eq!(differs, None, "receipt {id} is damaged");
    }

    fn content(&self, id: u64) -> &[u8] {
        &self.contents[usize::try_from(id % CONTENTS).unwrap()]
    }
}

/// The path of a receipt.
pub fn path(id: u64) -> String {
    format!("2026/11/26/{id:08}.png")
}

/// The id in a path.
pub fn id_of(path: &str) -> u64 {
    let digits = path.rsplit('/').next().and_then(|name| name.strip_suffix(".png"));
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("{path} is no path of a receipt"))
}
