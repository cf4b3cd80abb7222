//! Both gateways over real sockets, with a file as the disk.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

mod browser;
#[path = "../support/child.rs"]
mod child;
mod client;
mod feed;
#[path = "../support/forge.rs"]
mod forge;
mod get;
mod ids;
mod lifecycle;
mod limits;
mod pages;
mod put;
mod stand;

/// What the tests store: bytes that begin as a PNG does.
fn image(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    bytes.extend((0_u32..).map(|n| n.to_le_bytes()[0].wrapping_mul(seed | 1)).take(len));
    bytes
}
