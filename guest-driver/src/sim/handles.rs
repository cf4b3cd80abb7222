//! The handles of the disk: the writer's, which can be stopped and fenced, and a reader's, which goes through the past.

use super::state::Landing;
use super::{Rng, SECTOR_BYTES, Sim};
use crate::device::{BlockWrite, Device, DeviceResult, check_range};
use crate::error::{DeviceError, DeviceOp};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// The writer's handle.
#[derive(Debug)]
pub struct SimWriter {
    pub(super) sim: Sim,
    pub(super) session: u64,
}

impl SimWriter {
    /// Changes what a range of sectors holds; those that were never written stay zero.
    fn clear(
        &self,
        op: DeviceOp,
        offset_bytes: u64,
        len_bytes: u64,
        content: impl Fn(u64, u64) -> Option<[u8; SECTOR_BYTES]>,
    ) -> DeviceResult<()> {
        let mut state = self.sim.lock();
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        check_range(op, state.size_bytes, offset_bytes, len)?;
        state.begin(self.session, op).map_err(|why| failed(op, offset_bytes, len, why))?;
        let stop = state.sectors_before_stop().filter(|_| self.session == state.session);
        let number = state.counts.writes + (state.counts.discards << 32);
        let sectors =
            state.known_sectors(offset_bytes / SECTOR_BYTES as u64, len_bytes / SECTOR_BYTES as u64);
        for (done, sector) in (0_u64..).zip(sectors) {
            if stop.is_some_and(|stop| done >= stop) {
                break;
            }
            if let Some(bytes) = content(sector, state.tick) {
                let bytes = Arc::new(bytes);
                state.set(sector, bytes.clone());
                state.pending.push((number, sector, bytes));
            }
        }
        if stop.is_some() {
            state.session += 1;
            return Err(failed(op, offset_bytes, len, "the writer stops here"));
        }
        Ok(())
    }
}

fn failed(op: DeviceOp, offset_bytes: u64, len_bytes: usize, why: &'static str) -> DeviceError {
    DeviceError { op, offset_bytes, len_bytes, source: std::io::Error::other(why) }
}

impl Device for SimWriter {
    fn size_bytes(&self) -> u64 {
        self.sim.lock().size_bytes
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        let mut state = self.sim.lock();
        check_range(DeviceOp::Read, state.size_bytes, offset_bytes, buf.len())?;
        let len = buf.len();
        state
            .begin(self.session, DeviceOp::Read)
            .map_err(|why| failed(DeviceOp::Read, offset_bytes, len, why))?;
        let tick = state.tick;
        for (sector, bytes) in (offset_bytes / SECTOR_BYTES as u64..).zip(buf.chunks_exact_mut(SECTOR_BYTES))
        {
            match state.at(sector, tick) {
                Some(found) => bytes.copy_from_slice(found.as_slice()),
                None => bytes.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, offset_bytes: u64, bytes: &[u8]) -> DeviceResult<()> {
        self.write_many(&mut std::iter::once(BlockWrite { offset_bytes, bytes }))
    }

    fn write_many<'a>(&self, writes: &mut dyn Iterator<Item = BlockWrite<'a>>) -> DeviceResult<()> {
        let writes: Vec<BlockWrite<'a>> = writes.collect();
        let mut state = self.sim.lock();
        let mut landings = Vec::new();
        let mut stop = None;
        let mut done = Ok(());
        for write in writes {
            let (len, before) = (write.bytes.len(), landings.iter().map(Landing::sectors).sum::<u64>());
            let fail = |why| failed(DeviceOp::Write, write.offset_bytes, len, why);
            check_range(DeviceOp::Write, state.size_bytes, write.offset_bytes, len)?;
            match state.begin(self.session, DeviceOp::Write) {
                Ok(()) => landings.extend(state.landing(self.session, write)),
                Err(why) => done = done.and(Err(fail(why))), // the others land all the same
            }
            if self.session == state.session
                && let Some(sectors) = state.sectors_before_stop()
            {
                stop = Some(before + sectors);
                done = done.and(Err(fail("the writer stops here")));
                break;
            }
        }
        state.land(landings, stop);
        state.session += u64::from(stop.is_some());
        done
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        self.clear(DeviceOp::Write, offset_bytes, len_bytes, |_, _| Some([0; SECTOR_BYTES]))
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> DeviceResult<()> {
        self.clear(DeviceOp::Discard, offset_bytes, len_bytes, |sector, tick| {
            match Rng(sector ^ tick).below(4) {
                0 => None,
                1 => Some([0xdd; SECTOR_BYTES]),
                _ => Some([0; SECTOR_BYTES]),
            }
        })
    }

    fn flush(&self) -> DeviceResult<()> {
        let mut state = self.sim.lock();
        state.begin(self.session, DeviceOp::Flush).map_err(|why| failed(DeviceOp::Flush, 0, 0, why))?;
        for (_, sector, bytes) in std::mem::take(&mut state.pending) {
            state.durable.insert(sector, bytes);
        }
        Ok(())
    }
}

/// A reader's handle.
#[derive(Debug)]
pub struct SimReader {
    pub(super) sim: Sim,
    pub(super) tick: Cell<u64>,
    pub(super) end_tick: u64,
    pub(super) step_max: u64,
    pub(super) rng: RefCell<Rng>,
    pub(super) reads: Cell<u64>,
}

impl SimReader {
    /// Where the reader is in time.
    pub fn tick(&self) -> u64 {
        self.tick.get()
    }

    /// Reads so far.
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }
}

impl Device for SimReader {
    fn size_bytes(&self) -> u64 {
        self.sim.lock().size_bytes
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        let state = self.sim.lock();
        check_range(DeviceOp::Read, state.size_bytes, offset_bytes, buf.len())?;
        self.reads.set(self.reads.get() + 1);
        for (sector, bytes) in (offset_bytes / SECTOR_BYTES as u64..).zip(buf.chunks_exact_mut(SECTOR_BYTES))
        {
            let step = self.rng.borrow_mut().below(self.step_max + 1);
            self.tick.set((self.tick.get() + step).min(self.end_tick));
            match state.at(sector, self.tick.get()) {
                Some(found) => bytes.copy_from_slice(found.as_slice()),
                None => bytes.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        Err(failed(DeviceOp::Write, offset_bytes, buf.len(), "readers do not write"))
    }

    fn flush(&self) -> DeviceResult<()> {
        Err(failed(DeviceOp::Flush, 0, 0, "readers do not flush"))
    }
}
