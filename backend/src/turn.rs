//! Who may sync now: one at a time, whichever thread it is. Who waits comes before who only asks.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug, Default)]
pub struct Turns {
    state: Mutex<State>,
    free: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_taken: bool,
    waiting: usize,
}

/// The right to sync, of which there is one. Nobody syncs any more if it is not given back.
#[derive(Debug)]
#[must_use]
pub struct Turn(());

impl Turns {
    /// Waits for the turn. Blocks.
    pub fn wait(&self) -> Turn {
        let mut state = self.lock();
        state.waiting += 1;
        while state.is_taken {
            state = self.free.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        state.is_taken = true;
        Turn(())
    }

    /// The turn, if nobody has it or waits for it: one guest that flushes all the time must not keep it from the others.
    pub fn try_take(&self) -> Option<Turn> {
        let mut state = self.lock();
        if state.is_taken || state.waiting > 0 {
            return None;
        }
        state.is_taken = true;
        Some(Turn(()))
    }

    /// Lets the next one have it.
    pub fn give_back(&self, _turn: Turn) {
        let mut state = self.lock();
        assert!(state.is_taken, "there is one turn");
        state.is_taken = false;
        if state.waiting > 0 {
            self.free.notify_one();
        }
    }

    /// Threads that wait for it.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_comes_before_who_only_asks() {
        let turns = Turns::default();
        let turn = turns.try_take().unwrap();
        assert!(turns.try_take().is_none());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| turns.wait());
            while turns.waiting() == 0 {
                std::thread::yield_now();
            }
            turns.give_back(turn);
            // Now or a moment later it is the other thread's; in no case can it be had here.
            assert!(turns.try_take().is_none());
            turns.give_back(waits.join().unwrap());
        });
        turns.give_back(turns.try_take().unwrap());
    }
}
