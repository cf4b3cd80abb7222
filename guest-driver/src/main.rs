//! Guest helper of receiptdisk.
fn main() {}
