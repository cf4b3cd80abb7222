//! Waiting for conditions.

use std::io;
use std::os::fd::AsFd;
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
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < SAFETY_NET, "waited {SAFETY_NET:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `fd` is readable or hung up; false when the safety net ran out.
pub fn readable(fd: impl AsFd) -> bool {
    let limit = Timespec {
        tv_sec: SAFETY_NET.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    loop {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(ready) => return ready > 0,
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
