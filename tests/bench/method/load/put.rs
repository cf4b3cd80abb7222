//! How a receipt leaves the issuer guest.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use receipt_store::{CommitLimits, OwnedChange, RawDevice, ReceiptPath, SharedWriter, Writer, WriterOptions};

use crate::http::Connection;
use crate::receipts::path;

/// A peer, and where it is.
pub enum Putter {
    /// On the shared disk; concurrent puts share commits.
    Receipt(Box<SharedWriter<RawDevice>>),
    /// Into a folder: written, synced, renamed, the folder synced.
    Files(PathBuf),
    /// To a gateway in this guest: address and what stands before the path. The id goes with it.
    Http(String, String),
    /// Kept in memory until it is asked for: nothing to do here.
    Memory,
}

/// A `Putter` of one thread.
pub enum Putting<'a> {
    Receipt(&'a SharedWriter<RawDevice>),
    Files(&'a Path),
    Http(Connection, &'a str),
    Memory,
}

impl Putter {
    /// As [`crate::get::Getter::open`].
    pub fn open(peer: &str, place: &str) -> Self {
        match peer {
            "receipt" | "ask" => {
                let device = receipt_store::discover::find_device().unwrap();
                let device = RawDevice::open_writer(&device).unwrap();
                let writer = Writer::open(device, &WriterOptions::default()).unwrap();
                Self::Receipt(Box::new(SharedWriter::new(writer, CommitLimits::default())))
            }
            "files" => {
                let folder = PathBuf::from(place);
                fs::create_dir_all(folder.join(path(0)).parent().unwrap()).unwrap();
                Self::Files(folder)
            }
            "http" => {
                let at = place.find('/').expect("ADDRESS/TARGET");
                Self::Http(place[..at].to_owned(), place[at..].to_owned())
            }
            "json" | "raw" => Self::Memory,
            _ => panic!("unknown peer {peer}"),
        }
    }

    /// Ends it as its owner would.
    pub fn close(&self) {
        if let Self::Receipt(writer) = self {
            writer.close().unwrap();
        }
    }

    /// For one thread.
    pub fn connect(&self) -> Putting<'_> {
        match self {
            Self::Receipt(writer) => Putting::Receipt(writer),
            Self::Files(folder) => Putting::Files(folder),
            Self::Http(address, target) => Putting::Http(Connection::open(address), target),
            Self::Memory => Putting::Memory,
        }
    }
}

impl Putting<'_> {
    /// Stores a receipt; durable when it returns, where the peer stores at all.
    pub fn put(&mut self, id: u64, data: &[u8]) {
        match self {
            Self::Receipt(writer) => {
                let path = ReceiptPath::new(&path(id)).unwrap();
                let put = OwnedChange::put(path, data.to_vec());
                writer.change(put).unwrap();
            }
            Self::Files(folder) => put_file(&folder.join(path(id)), data),
            Self::Http(connection, target) => {
                connection.put(&format!("{target}{}?id={id:08}", path(id)), data)
            }
            Self::Memory => {}
        }
    }
}

/// The way that survives a crash: whole under its name or not there.
fn put_file(path: &Path, data: &[u8]) {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).unwrap();
    file.write_all(data).unwrap();
    file.sync_all().unwrap();
    fs::rename(&temporary, path).unwrap();
    File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
}
