//! Reads and writes on their way: the IOs of each, one after the other, and what becomes of it.

use std::io;
use std::os::fd::AsRawFd;

use log::Level;

use super::Worker;
use crate::engine::Completion;
use crate::execute::Work;
use crate::limits::BOUNCE_BUFFER_BYTES;
use crate::request::{Direction, Status};
use crate::role::ReadMode;
use crate::stats::Counter;
use crate::syncer::SlowOp;
use crate::transfer::{AlignedBuffer, BUFFER_ALIGNMENT_BYTES};

impl Worker {
    /// Submits the next IO of a transfer, or ends it when nothing is left.
    pub(super) fn submit_next(&mut self, token: usize) {
        let Work::Transfer { transfer, .. } = &mut self.requests[token].work else {
            return;
        };
        let Some(io) = transfer.next_io() else {
            return self.finish_transfer(token, Status::Ok);
        };
        let file = self.shared.disk.file(self.config.access.looks_writable());
        // SAFETY: the request stays at its place in `requests` until its completion was taken, its
        // ring keeps the guest memory mapped until then, and the disk outlives the worker.
        unsafe { self.engine.submit(file.as_raw_fd(), io, token) };
    }

    pub(super) fn submit_bounced(&mut self, token: usize, buffer: AlignedBuffer) {
        if let Work::Transfer { transfer, .. } = &mut self.requests[token].work {
            transfer.use_bounce_buffer(buffer);
        }
        self.submit_next(token);
    }

    pub(super) fn free_buffer(&mut self) -> Option<AlignedBuffer> {
        self.free_buffers.pop().or_else(|| {
            self.unmade_buffers = self.unmade_buffers.checked_sub(1)?;
            Some(AlignedBuffer::new(BOUNCE_BUFFER_BYTES, BUFFER_ALIGNMENT_BYTES))
        })
    }

    pub(super) fn hand_on_buffer(&mut self, buffer: AlignedBuffer) {
        match self.waiting_for_buffer.pop_front() {
            Some(token) => self.submit_bounced(token, buffer),
            None => self.free_buffers.push(buffer),
        }
    }

    /// Carries on with the requests whose IO has ended. One pass: what that submits comes in the next round.
    pub(super) fn reap_completions(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.engine.take_completions(&mut completions);
        for completion in completions.drain(..) {
            self.io_done(completion);
        }
        self.completions = completions;
        self.engine.flush_submissions();
    }

    pub(super) fn io_done(&mut self, completion: Completion) {
        let Completion { token, result } = completion;
        let Work::Transfer { transfer, .. } = &mut self.requests[token].work else {
            return;
        };
        match usize::try_from(result) {
            Ok(0) => self.fail_transfer(token, &io::Error::other("the image ends before the disk does")),
            Ok(count) => {
                transfer.advance(count);
                self.submit_next(token);
            }
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => self.submit_next(token),
            Err(_) => self.fail_transfer(token, &io::Error::from_raw_os_error(-result)),
        }
    }

    pub(super) fn fail_transfer(&mut self, token: usize, error: &io::Error) {
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
    pub(super) fn finish_transfer(&mut self, token: usize, status: Status) {
        let Work::Transfer { transfer, .. } = &mut self.requests[token].work else {
            return;
        };
        let (direction, touched) = (transfer.direction(), transfer.touched_range());
        let moved_bytes = transfer.moved_bytes();
        if let Some(buffer) = transfer.take_bounce_buffer() {
            self.hand_on_buffer(buffer);
        }
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
