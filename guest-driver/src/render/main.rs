//! Renders sample receipts.
fn main() {}
