//! Reads and writes on their way: the IOs of each, one after the other, and what becomes of it.

use std::io;

use log::Level;

use super::Worker;
use crate::crash::{self, Point};
use crate::engine::Completion;
use crate::execute::Work;
use crate::limits::BOUNCE_BUFFER_BYTES;
use crate::request::{Direction, Status};
use crate::role::ReadMode;
use crate::stats::Counter;
use crate::syncer::SlowOp;
use crate::transfer::{AlignedBuffer, BUFFER_ALIGNMENT_BYTES};

impl Worker {
    /// Carries on with a transfer: in line as far as that goes, then by the ring, or ends it when nothing is left.
    pub(super) fn submit_next(&mut self, token: usize) {
        loop {
            let Work::Transfer { transfer, .. } = &mut self.requests[token].work else {
                return;
            };
            let Some(io) = transfer.next_io() else {
                return self.finish_transfer(token, Status::Ok);
            };
            // SAFETY: the segments are the request's; its ring keeps the guest memory mapped.
            let Some(result) = (unsafe { self.engine.try_in_line(io) }) else {
                // SAFETY: the request stays at its place in `requests` until its completion was taken, and its
                // ring keeps the guest memory mapped until then.
                return unsafe { self.engine.submit(io, token) };
            };
            if !self.note_io(Completion { token, result }) {
                return;
            }
        }
    }

    /// Notes the outcome of one IO. True if the transfer goes on.
    fn note_io(&mut self, Completion { token, result }: Completion) -> bool {
        let Work::Transfer { transfer, .. } = &mut self.requests[token].work else {
            return false;
        };
        match usize::try_from(result) {
            Ok(0) => self.fail_transfer(token, &io::Error::other("the image ends before the disk does")),
            Ok(count) => {
                transfer.advance(count);
                crash::here(Point::IoDone);
                return true;
            }
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) && transfer.may_try_again() => {
                return true;
            }
            Err(_) => self.fail_transfer(token, &io::Error::from_raw_os_error(-result)),
        }
        false
    }

    /// Starts the transfers that wait for a bounce buffer, as long as there is one.
    pub(super) fn resume_waiting_for_buffer(&mut self) {
        while !self.waiting_for_buffer.is_empty()
            && let Some(buffer) = self.free_buffer()
            && let Some(token) = self.waiting_for_buffer.pop_front()
        {
            if let Work::Transfer { transfer, .. } = &mut self.requests[token].work {
                transfer.use_bounce_buffer(buffer);
            }
            self.submit_next(token);
        }
    }

    fn free_buffer(&mut self) -> Option<AlignedBuffer> {
        self.free_buffers.pop().or_else(|| {
            self.unmade_buffers = self.unmade_buffers.checked_sub(1)?;
            Some(AlignedBuffer::new(BOUNCE_BUFFER_BYTES, BUFFER_ALIGNMENT_BYTES))
        })
    }

    /// Carries on with the requests whose IO has ended. One pass: what that submits comes in the next round.
    pub(super) fn reap_completions(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.engine.take_completions(&mut completions);
        for completion in completions.drain(..) {
            if self.note_io(completion) {
                self.submit_next(completion.token);
            }
        }
        self.completions = completions;
    }

    fn fail_transfer(&mut self, token: usize, error: &io::Error) {
        let Work::Transfer { transfer, .. } = &self.requests[token].work else {
            return;
        };
        let (guest, op, at) = (&self.config.guest, transfer.direction(), transfer.offset_bytes());
        self.log.log(
            Level::Warn,
            format_args!("guest={guest} event=io-error op={op:?} offset_bytes={at} error=\"{error}\""),
        );
        self.finish_transfer(token, Status::IoErr);
    }

    /// Ends a transfer: all bytes are moved, or it failed.
    fn finish_transfer(&mut self, token: usize, status: Status) {
        let Work::Transfer { transfer, .. } = &mut self.requests[token].work else {
            return;
        };
        let (direction, touched) = (transfer.direction(), transfer.touched_range());
        let moved_bytes = transfer.moved_bytes();
        self.free_buffers.extend(transfer.take_bounce_buffer());
        let unsynced = match direction {
            // Failed writes count too: a part of them may be on the disk.
            Direction::Write => {
                let sequence = self.shared.disk.note_completed_write(touched);
                self.write_through.then_some(sequence)
            }
            Direction::Read if self.config.reads == ReadMode::Durable => {
                // From here on others may change what was read: it is in guest memory already.
                let unsynced = self.shared.disk.unsynced_sequence(touched);
                self.release_early(token);
                unsynced
            }
            Direction::Read => None,
        };
        match unsynced {
            Some(sequence) if status == Status::Ok => {
                self.count(Counter::WaitedForSync, 1);
                self.requests[token].work = Work::AwaitSlow { moved_bytes };
                self.shared.syncer.submit(self.waiter(token), SlowOp::SyncUpTo { sequence });
            }
            _ => self.finish(token, status, moved_bytes),
        }
    }
}
