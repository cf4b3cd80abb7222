//! Places at which a test can have the process killed: `RECEIPTDISK_CRASH_AT=POINT:COUNT` kills it when it is at that
//! point for the COUNT-th time, `POINT:COUNT:stop` stops it there until it is told to go on (SIGCONT). In builds without
//! debug assertions there is nothing of it.

/// A place between two steps in the life of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Heads were taken and marked as in flight.
    Marked,
    /// A request was granted its ranges; its IO has not begun.
    Granted,
    /// IOs were handed to the kernel.
    Submitted,
    /// An IO has ended.
    IoDone,
    /// A used entry was written that the used index does not show.
    UsedEntry,
    /// The used index shows a batch; its marks are not cleared.
    UsedIndex,
    /// The marks of a batch are cleared; the region has the old used index.
    Cleared,
    /// All of a batch is done but for the signal and the release of its ranges.
    Published,
    /// Requests of an earlier process were begun again.
    Replayed,
    /// The process that takes over has the image and the sockets.
    Offered,
    /// It has made all it needs; guests still run.
    Prepared,
    /// It has what belongs to the guests, who pause.
    Given,
    /// It has mapped their memory and knows their rings, none of which runs.
    Restored,
    /// It has said so, and takes no request yet.
    Taken,
}

/// Kills the process if a test wants that here and now.
#[cfg(not(debug_assertions))]
#[inline]
pub fn here(_point: Point) {}

#[cfg(debug_assertions)]
pub use self::armed::here;

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Point;

    const VARIABLE: &str = "RECEIPTDISK_CRASH_AT";

    struct Armed {
        point: String,
        passes_left: AtomicU64,
        signal: i32,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    /// Kills the process if a test wants that here and now.
    pub fn here(point: Point) {
        let Some(armed) = ARMED.get_or_init(read_variable) else { return };
        if armed.point == format!("{point:?}") && armed.passes_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: the call takes a number and touches no memory.
            unsafe { libc::raise(armed.signal) };
            // Nothing more happens here, even if the signal takes a moment.
            if armed.signal == libc::SIGKILL {
                std::thread::sleep(std::time::Duration::MAX);
            }
        }
    }

    fn read_variable() -> Option<Armed> {
        let text = std::env::var(VARIABLE).ok()?;
        let mut parts = text.split(':');
        let (point, count) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
        let signal = if parts.next() == Some("stop") { libc::SIGSTOP } else { libc::SIGKILL };
        Some(Armed { point, passes_left: AtomicU64::new(count), signal })
    }
}
