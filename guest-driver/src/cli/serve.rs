//! `receipt serve`: holds the writer, and makes the changes of other writing commands.

use super::args::Args;
use super::{open_writing_device, say, writer_options};
use receipt_store::socket::Socket;
use receipt_store::stop::StopSignals;
use receipt_store::{CommitLimits, RawDevice, Result, SharedWriter, Writer, hex};
use rustix::process::{Signal, getpid, kill_process};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether the writer still works.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub fn run(args: &Args, limits: CommitLimits) -> Result<u8> {
    let signals = StopSignals::block();
    let (device, name) = open_writing_device(args)?;
    let writer = Writer::open(device, &writer_options(name))?;
    let store = hex(&writer.superblock().uuid);
    let mut socket = match Socket::listen(&args.socket) {
        Ok(socket) => socket,
        Err(error) => {
            writer.close()?;
            return Err(error);
        }
    };
    let shared = Arc::new(SharedWriter::new(writer, limits));
    socket.serve(shared.clone(), store);
    let name = args.socket.display().to_string();
    say(&if args.json { serde_json::json!({ "socket": name }).to_string() } else { name })?;
    let watched = shared.clone();
    std::thread::spawn(move || end_with(&watched));
    signals.wait();
    // No connection gets an acknowledgement that is not durable: closing waits for the commit that runs.
    let closed = shared.close();
    shared.failure().map_or(closed.map(|()| 0), Err)
}

/// Ends the program once its writer has stopped: nothing can be stored through it any more, and nobody else can open the device.
fn end_with(shared: &SharedWriter<RawDevice>) {
    while !shared.has_failed() {
        std::thread::sleep(LOOK_EVERY);
    }
    std::thread::sleep(LOOK_EVERY); // those who wait for an answer get it
    // Nobody to tell if it fails: then a signal from outside ends the program as before.
    let _ = kill_process(getpid(), Signal::TERM);
}
