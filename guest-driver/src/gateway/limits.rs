//! Every limit of the gateways that is no option, in one place; docs/gateway.md has the table.

use std::time::Duration;

/// Threads for disk reads and drawing: as many of these block at a time, the rest waits.
pub const BLOCKING_THREADS: usize = 24;
/// Disk reads at a time.
pub const READS: usize = 16;
/// Looks at the state of the store at a time.
pub const LOOKS: usize = 2;
/// How long an image waits for memory.
pub const ROOM_TIME: Duration = Duration::from_secs(2);
/// Stack of each thread.
pub const THREAD_STACK_BYTES: usize = 1 << 20;
/// Bytes of the request line and all headers.
pub const HEADER_BYTES: usize = 16 << 10;
/// Headers of a request.
pub const HEADERS: usize = 64;
/// Read buffer of a connection.
pub const BUFFER_BYTES: usize = 64 << 10;
/// Bytes of a business id.
pub const ID_BYTES: usize = 512;
/// Bytes of a receipt record as JSON.
pub const RECORD_BYTES: u64 = 16 << 10;
/// Bytes of a body that is read and thrown away, so that the refusal of its request can be read.
pub const DRAINED_BYTES: u64 = 64 << 20;
/// How long that may take.
pub const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Puts that wait for a group commit.
pub const QUEUED_PUTS: usize = 1024;
/// Changes in one answer of the change feed.
pub const FEED_CHANGES: usize = 1000;
/// Records that one answer of the change feed looks at.
pub const FEED_RECORDS: usize = 4096;
/// Longest wait for changes.
pub const FEED_WAIT: Duration = Duration::from_secs(25);
/// Requests that wait for changes at a time.
pub const FEED_WAITERS: usize = 64;
/// How often a request that waits for changes looks for those that came by the socket.
pub const FEED_POLL: Duration = Duration::from_millis(200);
/// Places in the log that are remembered for requests that come back for more.
pub const FEED_PLACES: usize = 64;
/// Lists of paths at a time.
pub const LISTS: usize = 2;
/// Paths on one page of a list.
pub const LIST_PATHS: usize = 100;
/// Paths that a list may skip.
pub const LIST_SKIP: usize = 100_000;
/// Bytes of an answer of the issuer.
pub const ISSUER_ANSWER_BYTES: usize = 8 << 10;
/// How long the issuer may take to answer.
pub const ISSUER_TIME: Duration = Duration::from_secs(3);
/// Connections to the issuer that are kept.
pub const ISSUER_CONNECTIONS: usize = 16;
/// Log lines that wait to be written; what comes then is counted and left out.
pub const LOG_LINES: usize = 4096;
/// How long the last commit and the closing of the store may take when everything else has ended.
pub const CLOSING_TIME: Duration = Duration::from_secs(20);
/// Pause before the store is opened again after a device error; it doubles with every try.
pub const REOPEN_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest such pause.
pub const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(30);
/// After so long without a device error the pause is short again.
pub const REOPEN_QUIET: Duration = Duration::from_secs(60);
/// How long the process waits for its last threads.
pub const LAST_WAIT: Duration = Duration::from_secs(1);

/// Threads of the reactor.
pub fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(4)
}
