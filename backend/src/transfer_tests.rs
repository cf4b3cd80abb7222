use proptest::prelude::*;

use super::*;
use crate::limits::BOUNCE_BUFFER_BYTES;

const DISK_BYTES: usize = 64 * 1024;

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 31 + salt) % 251).unwrap()).collect()
}

/// Does what the engine does, at most `most` bytes at a time, and checks what direct IO would check.
fn carry_out(transfer: &mut Transfer, disk: &mut [u8], most: usize, alignment: Alignment) {
    while let Some(io) = transfer.next_io() {
        // SAFETY: the transfer owns the segments and is not touched meanwhile.
        let segments = unsafe { std::slice::from_raw_parts(io.segments, io.segment_count as usize) };
        let start = usize::try_from(io.offset_bytes).unwrap();
        let whole =
            ByteRange { start: start as u64, end: (start + crate::memory::total_len(segments)) as u64 };
        assert!(most != usize::MAX || alignment.suits(whole, segments), "direct IO would refuse this");
        let len = crate::memory::total_len(segments).min(most);
        let moved = match io.direction {
            Direction::Read => scatter(segments, 0, &disk[start..start + len]),
            Direction::Write => gather(segments, 0, &mut disk[start..start + len]),
        };
        transfer.advance(moved);
    }
}

fn slices(memory: &mut [u8], cuts: &[usize]) -> Vec<HostSlice> {
    // SAFETY: the memory outlives the slices in every test.
    let mut rest = unsafe { HostSlice::of_buffer(memory.as_mut_ptr(), memory.len()) };
    let mut slices = Vec::new();
    for &cut in cuts {
        let (first, left) = rest.split(cut);
        slices.push(first);
        rest = left;
    }
    slices.push(rest);
    slices
}

#[test]
fn a_long_request_takes_several_calls() {
    let mut memory = pattern(DISK_BYTES, 1);
    let segments = slices(&mut memory, &[16; 3000]);
    let mut disk = vec![0; DISK_BYTES];
    let range = ByteRange { start: 0, end: DISK_BYTES as u64 };
    let mut transfer = Transfer::new(Direction::Write, range, segments, Alignment::NONE);
    assert_eq!(transfer.next_io().unwrap().segment_count as usize, MAX_IOVECS);
    carry_out(&mut transfer, &mut disk, usize::MAX, Alignment::NONE);
    assert_eq!(disk, memory);
}

#[test]
fn alignment_looks_at_addresses_lengths_and_offsets() {
    let alignment = Alignment { memory_bytes: 512, offset_bytes: 512 };
    let mut buffer = AlignedBuffer::new(4096, 4096);
    let aligned = slices(buffer.as_mut_slice(), &[512, 1024]);
    let odd_cut = slices(buffer.as_mut_slice(), &[1, 511]);
    let range = ByteRange { start: 512, end: 4608 };
    assert!(alignment.suits(range, &aligned));
    assert!(!alignment.suits(range, &odd_cut));
    assert!(!Alignment { memory_bytes: 512, offset_bytes: 4096 }.suits(range, &aligned));
    assert!(Alignment::NONE.suits(range, &odd_cut));
}

proptest! {
    /// Whatever the cuts, the alignment and the short calls: the right bytes move and no others.
    #[test]
    fn moves_exactly_the_bytes_of_the_request(
        start_sector in 0..100usize,
        sectors in 1..20usize,
        cuts in prop::collection::vec(0..700usize, 0..12),
        write in any::<bool>(),
        block in prop::sample::select(vec![1u64, 512, 4096]),
        most in prop::sample::select(vec![usize::MAX, 4096, 512]),
        buffer_len in prop::sample::select(vec![4096, 8192, BOUNCE_BUFFER_BYTES]),
    ) {
        let (start, len) = (start_sector * 512, sectors * 512);
        let before = pattern(DISK_BYTES, 3);
        let mut disk = before.clone();
        let mut memory = pattern(len, 77);
        let segments = slices(&mut memory, &cuts);
        let range = ByteRange { start: start as u64, end: (start + len) as u64 };
        let direction = if write { Direction::Write } else { Direction::Read };
        let alignment = Alignment { memory_bytes: usize::try_from(block).unwrap(), offset_bytes: block };
        let bounces = !alignment.suits(range, &segments);
        let mut transfer = Transfer::new(direction, range, segments, alignment);
        if bounces {
            transfer.use_bounce_buffer(AlignedBuffer::new(buffer_len, BUFFER_ALIGNMENT_BYTES));
        }
        carry_out(&mut transfer, &mut disk, most, alignment);
        prop_assert_eq!(transfer.moved_bytes() as usize, len);
        prop_assert_eq!(&memory, &if write { pattern(len, 77) } else { before[start..start + len].to_vec() });
        let mut expected = before;
        if write {
            expected[start..start + len].copy_from_slice(&memory);
        }
        prop_assert_eq!(disk, expected);
    }
}
