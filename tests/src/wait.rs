//! Waiting for conditions.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long anything may take before the test counts as hung. Nothing is timed with it.
pub const SAFETY_NET: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value.
///
/// # Panics
/// When the safety net runs out; `what` says what was waited for.
#[track_caller]
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    // In small pieces: a test that is stopped for a while, and all it waits for with it, has not waited meanwhile.
    const LONGEST: Duration = Duration::from_millis(100);
    let mut waited = Duration::ZERO;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(waited < SAFETY_NET, "waited {SAFETY_NET:?} for {what}");
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        waited += start.elapsed().min(LONGEST);
    }
}

/// Waits until `fd` is readable or hung up; false when the safety net ran out.
pub fn readable(fd: impl AsFd) -> bool {
    first_readable(&[fd.as_fd()]).is_some()
}

/// Waits until one of `fds` is readable or hung up; its index, or `None` when the safety net ran out.
pub fn first_readable(fds: &[BorrowedFd<'_>]) -> Option<usize> {
    let limit = Timespec { tv_sec: SAFETY_NET.as_secs().cast_signed(), tv_nsec: 0 };
    loop {
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut polled, Some(&limit)) {
            Ok(_) => return polled.iter().position(|fd| !fd.revents().is_empty()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// Waits out the moment before somebody listens: calls `connect` until it fails for another reason or not at all.
///
/// # Panics
/// When it fails for another reason.
#[track_caller]
pub fn listening<T>(mut connect: impl FnMut() -> io::Result<T>) -> T {
    until("somebody to listen", || match connect() {
        Ok(value) => Some(value),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => None,
            _ => panic!("connecting: {error}"),
        },
    })
}
