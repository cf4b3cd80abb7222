//! Receipts by path on a shared raw disk.
