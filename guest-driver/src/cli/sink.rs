//! Where changes go: the writer of this process, or the one of the process that holds the device.

use super::args::Args;
use super::{device_path, open_reader, writer_options};
use receipt_store::{Change, Error, OwnedChange, RawDevice, Result, Stored, Writer, hex, wire};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A writer here or elsewhere.
pub enum Sink {
    /// This process holds the device.
    Own(Box<Writer<RawDevice>>),
    /// `receipt serve` does; the store that is meant.
    Running(UnixStream, String),
}

impl Sink {
    /// Opens the device, or connects to the process that holds it; waits for any other as long as `--wait` says.
    pub fn open(args: &Args) -> Result<Self> {
        let path = device_path(args)?;
        let deadline = super::deadline(args);
        loop {
            let name = match RawDevice::open_writer(&path) {
                Err(Error::Busy { name }) => name,
                device => {
                    let options = writer_options(path.display().to_string());
                    return Ok(Self::Own(Box::new(Writer::open(device?, &options)?)));
                }
            };
            if let Ok(stream) = UnixStream::connect(&args.socket) {
                let store = hex(&open_reader(args)?.superblock()?.uuid);
                return Ok(Self::Running(stream, store));
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy { name });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes changes: one group commit.
    pub fn commit(&mut self, changes: &[OwnedChange]) -> Result<Vec<Result<Stored>>> {
        match self {
            Self::Own(writer) => {
                let changes: Vec<Change<'_>> = changes.iter().map(OwnedChange::borrow).collect();
                writer.commit_changes(&changes)
            }
            Self::Running(stream, store) => {
                wire::write_frame(stream, &wire::request(store, changes))?;
                for change in changes {
                    if let OwnedChange::Put { data, .. } = change {
                        stream.write_all(data).map_err(wire::broken)?;
                    }
                }
                let value = wire::read_frame(stream)?;
                let answers = value["answers"].as_array().map(Vec::as_slice).unwrap_or_default();
                if answers.len() != changes.len() {
                    return Err(Error::Usage("the running writer did not answer every change".to_owned()));
                }
                Ok(answers.iter().map(wire::parse_answer).collect())
            }
        }
    }

    /// Ends the writer of this process.
    pub fn close(self) -> Result<()> {
        match self {
            Self::Own(writer) => writer.close(),
            Self::Running(..) => Ok(()),
        }
    }
}
