use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::*;
use crate::memory::total_len;

const NEXT: u32 = VRING_DESC_F_NEXT;
const WRITE: u32 = VRING_DESC_F_WRITE;
const INDIRECT: u32 = VRING_DESC_F_INDIRECT;

/// Two regions with a hole behind them: 0..0x8000 and 0x8000..0x10000.
fn memory() -> Mem {
    Mem::from_ranges(&[(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x8000)]).unwrap()
}

fn put(mem: &Mem, table: u64, index: u64, (addr, len, flags, next): (u64, u32, u32, u16)) {
    let descriptor = Descriptor::new(addr, len, u16::try_from(flags).unwrap(), next);
    mem.write_obj(descriptor, GuestAddress(table + 16 * index)).unwrap();
}

fn walk(mem: &Mem, head: u16) -> Result<Chain, ChainError> {
    let ring = DescriptorTable { address: 0, size: 8, may_be_indirect: true };
    let mut chain = Chain::default();
    chain.walk(mem, ring, head)?;
    Ok(chain)
}

fn lengths(chain: &Chain) -> (usize, usize) {
    (total_len(&chain.readable), total_len(&chain.writable))
}

#[test]
fn collects_readable_then_writable_bytes() {
    let mem = memory();
    put(&mem, 0, 3, (0x1000, 16, NEXT, 5));
    put(&mem, 0, 5, (0x2000, 512, NEXT | WRITE, 0));
    put(&mem, 0, 0, (0x3000, 1, WRITE, 0));
    assert_eq!(lengths(&walk(&mem, 3).unwrap()), (16, 513));
}

#[test]
fn splits_a_buffer_where_regions_meet() {
    let mem = memory();
    put(&mem, 0, 0, (0x7ff0, 0x20, WRITE, 0));
    let chain = walk(&mem, 0).unwrap();
    assert_eq!(chain.writable.iter().map(HostSlice::len).collect::<Vec<_>>(), [0x10, 0x10]);
}

#[test]
fn refuses_loops_and_bad_indices() {
    let mem = memory();
    put(&mem, 0, 0, (0x1000, 16, NEXT, 1));
    put(&mem, 0, 1, (0x1000, 16, NEXT, 0));
    put(&mem, 0, 2, (0x1000, 16, NEXT, 8));
    assert_eq!(walk(&mem, 0).unwrap_err(), ChainError::Loop);
    assert_eq!(walk(&mem, 2).unwrap_err(), ChainError::IndexOutside(8));
    assert_eq!(walk(&mem, 8).unwrap_err(), ChainError::IndexOutside(8));
}

#[test]
fn refuses_buffers_outside_memory_and_wrong_order() {
    let mem = memory();
    for addr in [0xfff1, 0x10000, u64::MAX - 4] {
        put(&mem, 0, 0, (addr, 16, 0, 0));
        assert_eq!(walk(&mem, 0).unwrap_err(), ChainError::BufferOutside, "{addr:#x}");
    }
    put(&mem, 0, 0, (0x1000, 16, WRITE | NEXT, 1));
    put(&mem, 0, 1, (0x1000, 16, 0, 0));
    assert_eq!(walk(&mem, 0).unwrap_err(), ChainError::ReadableAfterWritable);
}

#[test]
fn follows_an_indirect_table_once() {
    let mem = memory();
    put(&mem, 0, 0, (0x1000, 16, NEXT, 1));
    put(&mem, 0, 1, (0x4000, 32, INDIRECT, 0));
    put(&mem, 0x4000, 0, (0x2000, 100, NEXT, 1));
    put(&mem, 0x4000, 1, (0x3000, 1, WRITE, 0));
    assert_eq!(lengths(&walk(&mem, 0).unwrap()), (116, 1));

    put(&mem, 0x4000, 1, (0x5000, 16, INDIRECT, 0));
    assert_eq!(walk(&mem, 0).unwrap_err(), ChainError::BadIndirect);
    put(&mem, 0x4000, 1, (0x3000, 1, NEXT, 2));
    assert_eq!(walk(&mem, 0).unwrap_err(), ChainError::IndexOutside(2));
    put(&mem, 0x4000, 1, (0x3000, 1, NEXT, 0));
    assert_eq!(walk(&mem, 0).unwrap_err(), ChainError::Loop);
}

#[test]
fn reads_a_descriptor_that_lies_across_two_regions() {
    let mem = memory();
    put(&mem, 0, 0, (0x7ff8, 32, INDIRECT, 0));
    put(&mem, 0x7ff8, 0, (0x2000, 100, NEXT, 1));
    put(&mem, 0x7ff8, 1, (0x3000, 1, WRITE, 0));
    assert_eq!(lengths(&walk(&mem, 0).unwrap()), (100, 1));
    // And one that begins in the last region and ends in none.
    put(&mem, 0, 0, (0xfff8, 16, INDIRECT, 0));
    assert_eq!(walk(&mem, 0).unwrap_err(), ChainError::TableOutside);
}

#[test]
fn refuses_bad_indirect_tables() {
    let mem = memory();
    for len in [0, 15, 17, 0xffff_fff0] {
        put(&mem, 0, 0, (0x4000, len, INDIRECT, 0));
        assert_eq!(walk(&mem, 0).unwrap_err(), ChainError::BadIndirectLength(len));
    }
    put(&mem, 0, 0, (0x4000, 16, INDIRECT | NEXT, 1));
    assert_eq!(walk(&mem, 0).unwrap_err(), ChainError::BadIndirect);
    put(&mem, 0, 0, (0x20000, 16, INDIRECT, 0));
    assert_eq!(walk(&mem, 0).unwrap_err(), ChainError::TableOutside);

    put(&mem, 0, 0, (0x4000, 16, INDIRECT, 0));
    put(&mem, 0x4000, 0, (0x3000, 1, WRITE, 0));
    let not_negotiated = DescriptorTable { address: 0, size: 8, may_be_indirect: false };
    assert_eq!(Chain::default().walk(&mem, not_negotiated, 0), Err(ChainError::BadIndirect));
}

#[test]
fn an_over_long_chain_keeps_only_its_end() {
    let mem = Mem::from_ranges(&[(GuestAddress(0), 0x100_000)]).unwrap();
    let count = MAX_CHAIN_DESCRIPTORS + 100;
    put(&mem, 0, 0, (0x10000, count * 16, INDIRECT, 0));
    for at in 0..count - 1 {
        put(&mem, 0x10000, u64::from(at), (0x1000, 16, NEXT, u16::try_from(at + 1).unwrap()));
    }
    put(&mem, 0x10000, u64::from(count - 1), (0x2000, 1, WRITE, 0));
    let chain = walk(&mem, 0).unwrap();
    assert!(chain.is_too_long);
    assert_eq!((chain.writable.len(), lengths(&chain).1), (1, 1));
}

/// Every address beside an edge with every length beside one, against arithmetic that cannot wrap.
#[test]
fn buffers_are_inside_memory_exactly_when_wider_arithmetic_says_so() {
    let mem = memory();
    let around = |edge: u64| (0..=2).flat_map(move |by| [edge.wrapping_sub(by), edge.wrapping_add(by)]);
    let edges = [0, 0x8000, 0x10000, 1 << 32, 1 << 63, u64::MAX];
    for addr in edges.into_iter().flat_map(around) {
        for len in [1u32, 2, 0x7fff, 0x8000, 0x8001, 0xffff, 0x10000, 0x10001, u32::MAX - 1, u32::MAX] {
            let mut slices = Vec::new();
            let found = HostSlice::resolve(&mem, GuestAddress(addr), len as usize, &mut slices);
            let is_inside = u128::from(addr) + u128::from(len) <= 0x10000;
            assert_eq!(found.is_some(), is_inside, "{len} bytes at {addr:#x}");
            if is_inside {
                assert_eq!(total_len(&slices), len as usize);
            }
        }
    }
}

#[test]
fn table_at_the_end_of_addresses_is_not_there() {
    let mem = memory();
    for address in [0x10000 - 15, u64::MAX - 15, u64::MAX] {
        let ring = DescriptorTable { address, size: 8, may_be_indirect: true };
        for head in [0, 1, 7] {
            assert_eq!(Chain::default().walk(&mem, ring, head), Err(ChainError::TableOutside));
        }
    }
}
