//! What admission costs: nanoseconds for one admit and its release, with so many other requests in the table.
//! Run with `tests/bench.sh order` or `cargo bench -p receiptdisk-backend --bench order`.

use std::hint::black_box;
use std::time::Instant;

use receiptdisk_backend::order::{Access, Admission, ByteRange, Order};

const ROUNDS: u32 = 2_000_000;
const SAMPLES: usize = 5;
const REQUEST_BYTES: u64 = 4096;

fn main() {
    println!("others in the table   ns per admit and release (median of {SAMPLES})");
    for others in [0, 1, 8, 32, 128] {
        let mut samples: Vec<f64> = (0..SAMPLES).map(|_| nanoseconds(others)).collect();
        samples.sort_by(f64::total_cmp);
        println!("{others:>19}   {:.1}", samples[SAMPLES / 2]);
    }
}

/// Nothing overlaps: the price that every ordinary request pays.
fn nanoseconds(others: u64) -> f64 {
    let mut order = Order::default();
    let mut granted = Vec::new();
    let at = |block: u64| ByteRange { start: block * REQUEST_BYTES, end: (block + 1) * REQUEST_BYTES };
    let held: Vec<Admission> =
        (0..others).map(|block| order.admit(&[at(block)], Access::Exclusive, block)).collect();
    let began = Instant::now();
    for round in 0..u64::from(ROUNDS) {
        let range = at(others + round % 1024);
        if let Admission::Now(ticket) = order.admit(black_box(&[range]), Access::Exclusive, round) {
            order.release(ticket, &mut granted);
        }
    }
    let elapsed = began.elapsed();
    assert!(granted.is_empty());
    drop(held);
    elapsed.as_secs_f64() * 1e9 / f64::from(ROUNDS)
}
