//! `receipt export` and `receipt import`: receipts as files of a folder or entries of a tar archive, with what the store knows of each.
//!
//! A folder holds `receipts/PATH` and, once everything is there, `manifest.jsonl`: one line that begins, one a receipt, one that ends. An archive holds
//! the same lines: the first and the last one as entries of their own, that of a receipt in the PAX header of its entry. With all versions the older
//! ones come before the newest one of their path, the oldest first, as `versions/NUMBER/PATH`.

pub mod export;
mod folder;
pub mod import;
mod kept;
mod line;
mod stored;
mod tar_target;
mod tarball;

/// Folder of the receipts.
const RECEIPTS: &str = "receipts";
/// Folder of folders of older versions.
const VERSIONS: &str = "versions";
/// The lines of a folder.
const MANIFEST: &str = "manifest.jsonl";
/// The same while an export runs.
const UNFINISHED: &str = "manifest.jsonl.part";
/// A receipt while it is written.
const PARTIAL: &str = "receipt.part";
/// First and last entry of an archive.
const FIRST_ENTRY: &str = "receipt-export.json";
const LAST_ENTRY: &str = "receipt-export-end.json";
/// The line of a receipt in the PAX header of its entry.
const PAX_KEY: &str = "RECEIPTDISK.receipt";

fn is_tar(name: &std::path::Path) -> bool {
    name == std::path::Path::new("-") || name.extension().is_some_and(|end| end == "tar")
}
