//! `receipt serve`: holds the writer, and makes the changes of other writing commands.

use super::args::Args;
use super::{open_writing_device, say, writer_options};
use receipt_store::socket::Socket;
use receipt_store::stop::StopSignals;
use receipt_store::{CommitLimits, Result, SharedWriter, Writer, hex};
use std::sync::Arc;

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
    signals.wait();
    // No connection gets an acknowledgement that is not durable: closing waits for the commit that runs.
    shared.close().map(|()| 0)
}
