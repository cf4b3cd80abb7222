//! Flushes. The first one is an `fdatasync` on the worker's own ring, which takes fewer wake-ups than a thread that is asked by mail and
//! answers by mail. Those that come while a sync runs, anybody's, go to the syncer and share the next one.

use std::io;

use super::Worker;
use crate::syncer::SlowOp;

impl Worker {
    /// Makes what has completed durable, for a flush that was kept.
    pub(super) fn flush(&mut self, token: usize) {
        if let Some(sync) = self.shared.disk.try_start_sync() {
            if self.engine.submit_sync(self.shared.disk.file(true)) {
                assert!(self.flush_by_ring.is_none(), "one sync runs at a time");
                self.flush_by_ring = Some((token, sync));
                return;
            }
            self.shared.disk.forget_sync(sync);
        }
        self.shared.syncer.submit(self.waiter(token), SlowOp::Flush);
    }

    /// Ends the flush whose sync the ring has carried out.
    pub(super) fn finish_sync(&mut self, result: i32) {
        let Some((token, sync)) = self.flush_by_ring.take() else {
            return;
        };
        if -result == libc::ECANCELED {
            // The kernel had no thread for it, and has not begun.
            self.shared.disk.forget_sync(sync);
            return self.shared.syncer.submit(self.waiter(token), SlowOp::Flush);
        }
        let made_durable = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) };
        match self.shared.disk.end_sync(sync, made_durable) {
            Ok(()) => self.finish_slow(token, &Ok(())),
            // The syncer has the failure kept before any guest is told of it; a poisoned disk is not synced again.
            Err(_) => self.shared.syncer.submit(self.waiter(token), SlowOp::Flush),
        }
    }
}
