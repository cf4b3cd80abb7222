//! The guest that others must not hurt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::SECTOR;
use crate::disk::pattern;
use crate::raw::{RawGuest, Request, status};
use crate::wait::until;

/// Bytes of each of its requests.
const LEN: usize = 8 * SECTOR;

/// Writes, flushes and reads back on a thread of its own, as fast as it can, until it is dropped. An answer that is wrong or
/// does not come fails the test.
#[derive(Debug)]
pub struct Polite {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Polite {
    /// Uses the sectors from `first` on, which are nobody else's; `guest` has a queue.
    pub fn start(mut guest: RawGuest, first: u64) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, count) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let round = count.load(Ordering::Relaxed);
                let (sector, data) = (first + round % 64 * 8, pattern(round, 0, LEN));
                assert_eq!(guest.request(&Request::write(sector, &data)).status, status::OK);
                if round.is_multiple_of(16) {
                    assert_eq!(guest.request(&Request::flush()).status, status::OK);
                }
                let read = guest.request(&Request::read(sector, LEN));
                assert_eq!(read.status, status::OK);
                assert!(read.data == data, "round {round}: not what was written");
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, rounds, thread: Some(thread) }
    }

    /// Asserts that it goes on: some more of its rounds end well.
    #[track_caller]
    pub fn assert_goes_on(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        until("the polite guest to go on", || {
            let thread = self.thread.as_ref().unwrap();
            assert!(!thread.is_finished(), "the polite guest was hurt");
            (self.rounds.load(Ordering::Relaxed) > before + 3).then_some(())
        });
    }
}

impl Drop for Polite {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the polite guest was hurt");
        }
    }
}
