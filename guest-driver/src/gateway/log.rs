//! Log lines on standard error, from a thread of their own: a full pipe must not stop the reactor.

use super::limits::LOG_LINES;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Where lines go.
#[derive(Clone, Debug)]
pub struct Log {
    lines: SyncSender<String>,
    dropped: Arc<AtomicU64>,
}

impl Log {
    /// Starts the thread; it ends when the last clone has gone.
    pub fn start() -> (Self, std::thread::JoinHandle<()>) {
        let (lines, receiver) = sync_channel(LOG_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        (Self { lines, dropped }, std::thread::spawn(move || write(&receiver)))
    }

    /// Writes a line when there is room for it.
    pub fn say(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were left out.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write(lines: &Receiver<String>) {
    let mut text = Vec::new();
    while let Ok(line) = lines.recv() {
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
        for line in lines.try_iter().take(64) {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        let _ = std::io::stderr().write_all(&text); // nowhere to report a closed log
        text.clear();
    }
}
