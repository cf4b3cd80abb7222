use super::*;

const CAPACITY: u64 = 1 << 20;

/// Host memory that plays the guest's; parts of it become a chain.
struct Buffers(Vec<Vec<u8>>);

impl Buffers {
    fn slices(&mut self) -> Vec<HostSlice> {
        // SAFETY: the vectors are not touched while the slices are in use.
        self.0.iter_mut().map(|part| unsafe { HostSlice::of_buffer(part.as_mut_ptr(), part.len()) }).collect()
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn erase_segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Parses a request with these parts; the buffers live as long as the test's closure runs.
fn parse(
    readable: &[Vec<u8>],
    writable_lens: &[usize],
    look: impl FnOnce(Result<Operation, Status>),
) -> Option<()> {
    let mut readable = Buffers(readable.to_vec());
    let mut writable = Buffers(writable_lens.iter().map(|len| vec![0; *len]).collect());
    let mut chain = Chain { readable: readable.slices(), writable: writable.slices(), ..Chain::default() };
    let request = Request::parse(&mut chain, CAPACITY)?;
    assert_eq!(request.status.len(), 1);
    look(request.operation);
    Some(())
}

fn refusal(readable: &[Vec<u8>], writable_lens: &[usize]) -> Status {
    let mut status = Status::Ok;
    parse(readable, writable_lens, |operation| status = operation.err().unwrap_or(Status::Ok)).unwrap();
    status
}

fn transfer_range(readable: &[Vec<u8>], writable_lens: &[usize]) -> (Direction, ByteRange, usize) {
    let mut found = None;
    parse(readable, writable_lens, |operation| {
        let Ok(Operation::Transfer { direction, range, segments }) = operation else {
            panic!("{operation:?}")
        };
        found = Some((direction, range, crate::memory::total_len(&segments)));
    })
    .unwrap();
    found.unwrap()
}

#[test]
fn finds_the_parts_however_they_are_cut() {
    let whole = (Direction::Read, ByteRange { start: 1024, end: 2048 }, 1024);
    let head = header(VIRTIO_BLK_T_IN, 2);
    assert_eq!(transfer_range(std::slice::from_ref(&head), &[1024, 1]), whole);
    assert_eq!(transfer_range(std::slice::from_ref(&head), &[1025]), whole);
    assert_eq!(transfer_range(&[head[..8].to_vec(), head[8..].to_vec()], &[1, 511, 512, 1]), whole);
    let bytes: Vec<Vec<u8>> = head.iter().map(|b| vec![*b]).collect();
    assert_eq!(transfer_range(&bytes, &[1024, 0, 1, 0]), whole);

    let joined = [header(VIRTIO_BLK_T_OUT, 0), vec![7; 512]].concat();
    assert_eq!(transfer_range(&[joined], &[1]), (Direction::Write, ByteRange { start: 0, end: 512 }, 512));
}

#[test]
fn checks_every_number_against_the_disk() {
    let last = CAPACITY / SECTOR_BYTES - 1;
    for sector in [last, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55] {
        let writable = if sector == last { 1025 } else { 513 };
        assert_eq!(refusal(&[header(VIRTIO_BLK_T_IN, sector)], &[writable]), Status::IoErr, "{sector}");
    }
    for len in [1, 511, 513] {
        assert_eq!(refusal(&[header(VIRTIO_BLK_T_OUT, 0), vec![0; len]], &[1]), Status::IoErr, "{len}");
    }
    assert_eq!(transfer_range(&[header(VIRTIO_BLK_T_IN, last)], &[513]).1.end, CAPACITY);
}

#[test]
fn refuses_what_has_no_header_wrong_direction_or_unknown_type() {
    assert_eq!(refusal(&[vec![0; 15]], &[513]), Status::IoErr);
    assert_eq!(refusal(&[header(VIRTIO_BLK_T_IN, 0), vec![0; 512]], &[1]), Status::IoErr);
    assert_eq!(refusal(&[header(VIRTIO_BLK_T_OUT, 0)], &[513]), Status::IoErr);
    for kind in [2, 3, 5, 9, 14, 99, u32::MAX] {
        assert_eq!(refusal(&[header(kind, 0)], &[1]), Status::Unsupported, "{kind}");
    }
    assert!(parse(&[header(VIRTIO_BLK_T_IN, 0)], &[], |_| ()).is_none());
    assert!(parse(&[header(VIRTIO_BLK_T_IN, 0)], &[0, 0], |_| ()).is_none());
}

#[test]
fn a_flush_needs_nothing_but_its_type() {
    parse(&[header(VIRTIO_BLK_T_FLUSH, u64::MAX), vec![0; 100]], &[9], |operation| {
        assert!(matches!(operation, Ok(Operation::Flush)));
    })
    .unwrap();
}

#[test]
fn checks_every_erase_segment() {
    let discard = |data: Vec<u8>| refusal(&[header(VIRTIO_BLK_T_DISCARD, u64::MAX), data], &[1]);
    let zeroes = |data: Vec<u8>| refusal(&[header(VIRTIO_BLK_T_WRITE_ZEROES, u64::MAX), data], &[1]);
    assert_eq!(discard(erase_segment(0, 8, 0)), Status::Ok);
    assert_eq!(discard([erase_segment(0, 8, 0), erase_segment(2047, 2, 0)].concat()), Status::IoErr);
    assert_eq!(discard(erase_segment(u64::MAX, 8, 0)), Status::IoErr);
    assert_eq!(discard(erase_segment(0, u32::MAX, 0)), Status::IoErr);
    assert_eq!(discard(erase_segment(0, 8, 1)), Status::Unsupported);
    assert_eq!(zeroes(erase_segment(0, 8, 1)), Status::Ok);
    assert_eq!(zeroes(erase_segment(0, 8, 2)), Status::Unsupported);
    for len in [0, 15, 17, 16 * 17] {
        assert_eq!(discard(vec![0; len]), Status::IoErr, "{len}");
    }
}

#[test]
fn empty_erase_segments_vanish() {
    let data = [erase_segment(4, 0, 0), erase_segment(8, 8, 1)].concat();
    parse(&[header(VIRTIO_BLK_T_WRITE_ZEROES, 0), data], &[1], |operation| {
        let Ok(Operation::Erase { kind: Erase::WriteZeroes, ranges }) = operation else { panic!() };
        assert_eq!(ranges, [EraseRange { range: ByteRange { start: 4096, end: 8192 }, unmap: true }]);
    })
    .unwrap();
}

/// Numbers on both sides of every edge: of the disk, of what times 512 still fits, of 64 bits.
fn edges() -> Vec<u64> {
    let at = [
        0,
        1,
        CAPACITY / SECTOR_BYTES,
        1 << 32,
        1 << 54,
        1 << 55,
        1 << 63,
        u64::MAX / SECTOR_BYTES,
        u64::MAX,
    ];
    let around = |edge: u64| (0..=3).flat_map(move |by| [edge.wrapping_sub(by), edge.wrapping_add(by)]);
    at.into_iter().flat_map(around).collect()
}

#[test]
fn ranges_agree_with_wider_arithmetic_at_every_edge() {
    for start in edges() {
        for count in edges() {
            for capacity in edges().into_iter().map(|sectors| sectors.saturating_mul(SECTOR_BYTES)) {
                let wide = |number: u64| u128::from(number) * u128::from(SECTOR_BYTES);
                let end = wide(start) + wide(count);
                let found = byte_range(start, count, capacity);
                if end <= u128::from(capacity) {
                    let range = found.unwrap();
                    assert_eq!((u128::from(range.start), u128::from(range.end)), (wide(start), end));
                } else {
                    assert_eq!(found, Err(Status::IoErr), "{start} + {count} on {capacity}");
                }
            }
        }
    }
}
