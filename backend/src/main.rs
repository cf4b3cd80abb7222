//! Host daemon of receiptdisk.
fn main() {}
