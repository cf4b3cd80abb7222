//! Writes that meet sealed ranges. They are looked at when their ranges are granted, so a write that waited for another one is
//! refused as well; who seals waits for those that were granted before.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use log::Level;

use super::Worker;
use crate::request::Status;
use crate::seals::Seals;
use crate::stats::Counter;

/// Somebody who waits for writes.
#[derive(Debug)]
pub(super) struct Sealing {
    /// Those that have not ended yet.
    left: Vec<usize>,
    reply: Sender<()>,
}

impl Worker {
    pub(super) fn set_seals(&mut self, seals: Arc<Seals>, reply: Sender<()>) {
        self.seals = seals;
        let is_touched = |token: &usize| self.requests[*token].kind.changes_disk() && self.is_sealed(*token);
        let left: Vec<usize> = self.requests.iter().map(|(token, _)| token).filter(is_touched).collect();
        if left.is_empty() {
            // An operator that does not wait has lost its connection.
            let _ = reply.send(());
        } else {
            self.sealings.push(Sealing { left, reply });
        }
    }

    pub(super) fn is_sealed(&self, token: usize) -> bool {
        self.seals.touch(self.requests[token].ranges.as_slice())
    }

    /// Answers a write to a sealed range.
    pub(super) fn refuse_sealed(&mut self, token: usize) {
        self.count(Counter::RefusedBySeal, 1);
        let guest = &self.config.guest;
        let at = self.requests[token].ranges.as_slice().first().map_or(0, |range| range.start);
        self.log.log(Level::Warn, format_args!("guest={guest} event=refused-by-seal offset_bytes={at}"));
        self.finish(token, Status::IoErr, 0);
    }

    /// A request has ended: it is waited for no longer.
    pub(super) fn note_ended(&mut self, token: usize) {
        self.sealings.retain_mut(|sealing| {
            sealing.left.retain(|left| *left != token);
            let is_over = sealing.left.is_empty();
            if is_over {
                let _ = sealing.reply.send(());
            }
            !is_over
        });
    }
}
