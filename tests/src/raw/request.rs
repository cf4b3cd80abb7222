//! A virtio-blk request (virtio 1.2, 5.2.6) and the way it is cut into descriptors.

/// Request types.
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Status bytes.
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod status {
    pub const OK: u8 = 0;
    pub const IOERR: u8 = 1;
    pub const UNSUPP: u8 = 2;
    /// Not a status: what stands there before the device answers.
    pub const NONE: u8 = 0xaa;
}

/// Flags of a DISCARD or WRITE_ZEROES segment.
#[derive(Debug, Clone, Copy, Default)]
pub struct SegmentFlags(pub u32);

impl SegmentFlags {
    /// The blocks may be given back.
    pub const UNMAP: Self = Self(1);
}

/// The bytes that the device reads, the number of bytes that it writes, and where each side is cut.
#[derive(Debug, Clone)]
pub struct Request {
    pub(super) readable: Vec<u8>,
    pub(super) writable: usize,
    readable_cuts: Vec<usize>,
    writable_cuts: Vec<usize>,
    pub(super) is_indirect: bool,
    pub(super) skew: usize,
}

impl Request {
    /// A request of any type: header, `out`, then `input` bytes and the status from the device. Cut as Linux cuts it:
    /// header, data, status.
    pub fn new(kind: u32, sector: u64, out: &[u8], input: usize) -> Self {
        let mut readable = [kind.to_le_bytes(), [0; 4]].concat();
        readable.extend(sector.to_le_bytes());
        readable.extend(out);
        let readable_cuts = vec![16];
        let writable_cuts = if input == 0 { vec![] } else { vec![input] };
        Self { readable, writable: input + 1, readable_cuts, writable_cuts, is_indirect: false, skew: 0 }
    }

    /// Reads `len` bytes.
    pub fn read(sector: u64, len: usize) -> Self {
        Self::new(kind::IN, sector, &[], len)
    }

    /// Writes `data`.
    pub fn write(sector: u64, data: &[u8]) -> Self {
        Self::new(kind::OUT, sector, data, 0)
    }

    /// Makes what was written durable.
    pub fn flush() -> Self {
        Self::new(kind::FLUSH, 0, &[], 0)
    }

    /// Asks for the serial.
    pub fn get_id() -> Self {
        Self::new(kind::GET_ID, 0, &[], 20)
    }

    /// Discards `(sector, sectors)` ranges.
    pub fn discard(ranges: &[(u64, u32)]) -> Self {
        Self::new(kind::DISCARD, 0, &segments(ranges, SegmentFlags::default()), 0)
    }

    /// Zeroes `(sector, sectors)` ranges.
    pub fn write_zeroes(ranges: &[(u64, u32)], flags: SegmentFlags) -> Self {
        Self::new(kind::WRITE_ZEROES, 0, &segments(ranges, flags), 0)
    }

    /// Cuts what the device reads into pieces of these lengths; what is left is the last piece.
    pub fn cut_readable(mut self, lengths: &[usize]) -> Self {
        self.readable_cuts = lengths.to_vec();
        self
    }

    /// Cuts what the device writes, the status byte included, in the same way.
    pub fn cut_writable(mut self, lengths: &[usize]) -> Self {
        self.writable_cuts = lengths.to_vec();
        self
    }

    /// Puts the descriptors into a table of their own.
    pub fn indirect(mut self) -> Self {
        self.is_indirect = true;
        self
    }

    /// Begins every piece `bytes` past an aligned address.
    pub fn skew(mut self, bytes: usize) -> Self {
        self.skew = bytes;
        self
    }

    /// All that the device reads.
    pub fn readable(&self) -> &[u8] {
        &self.readable
    }

    /// Bytes that the device may write, the status byte included.
    pub fn writable_len(&self) -> usize {
        self.writable
    }

    /// Lengths of the readable pieces.
    pub(super) fn readable_pieces(&self) -> Vec<usize> {
        pieces(self.readable.len(), &self.readable_cuts)
    }

    /// Lengths of the writable pieces.
    pub(super) fn writable_pieces(&self) -> Vec<usize> {
        pieces(self.writable, &self.writable_cuts)
    }
}

/// The body of a DISCARD or WRITE_ZEROES request.
fn segments(ranges: &[(u64, u32)], flags: SegmentFlags) -> Vec<u8> {
    let segment = |(sector, count): &(u64, u32)| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.0.to_le_bytes());
        bytes
    };
    ranges.iter().flat_map(segment).collect()
}

fn pieces(total: usize, cuts: &[usize]) -> Vec<usize> {
    let cut: usize = cuts.iter().sum();
    let rest = total.checked_sub(cut).expect("cuts within the request");
    let rest = (rest > 0).then_some(rest);
    cuts.iter().copied().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_leave_the_rest_as_the_last_piece() {
        let request = Request::write(0, &[7; 512]).cut_readable(&[8, 8, 1]);
        assert_eq!(request.readable_pieces(), [8, 8, 1, 511]);
        assert_eq!(request.writable_pieces(), [1]);
        assert_eq!(Request::read(0, 512).cut_writable(&[]).writable_pieces(), [513]);
    }

    #[test]
    fn a_segment_is_sector_count_flags() {
        let request = Request::write_zeroes(&[(3, 5)], SegmentFlags::UNMAP);
        assert_eq!(request.readable[16..], [3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0]);
    }
}
