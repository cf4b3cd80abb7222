//! How a receipt comes into the front guest.

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use receipt_store::{Locator, RawDevice, Reader, ReceiptPath};

use crate::http::Connection;
use crate::receipts::path;

/// A peer, and where it is.
pub enum Getter {
    /// From the shared disk, by path: the library alone.
    Receipt(Arc<Reader<RawDevice>>),
    /// As `Receipt`, by locator. The number is that of the first receipt.
    Locator(Arc<Reader<RawDevice>>, u64, Vec<Locator>),
    /// As `Receipt`, after asking the issuer for the path over HTTP.
    Ask(Arc<Reader<RawDevice>>, String),
    /// Base64 in JSON over HTTP.
    Json(String),
    /// The bytes over HTTP.
    Raw(String),
    /// From a folder.
    Files(PathBuf),
    /// From an HTTP server in this guest: address, and what stands before the path or id.
    Http(String, String),
}

/// A `Getter` of one thread.
pub enum Getting<'a> {
    Receipt(&'a Reader<RawDevice>),
    Locator(&'a Reader<RawDevice>, u64, &'a [Locator]),
    Ask(&'a Reader<RawDevice>, Connection),
    Json(Connection),
    Raw(Connection),
    Files(&'a PathBuf),
    Http(Connection, &'a str),
}

fn reader() -> Arc<Reader<RawDevice>> {
    let device = receipt_store::discover::find_device().unwrap();
    Arc::new(Reader::new(RawDevice::open_reader(&device).unwrap(), "disk"))
}

impl Getter {
    /// `place` is an address, a folder, or for `http` an address and the start of the target. Locators are looked up here.
    pub fn open(peer: &str, place: &str, ids: std::ops::Range<u64>) -> Self {
        match peer {
            "receipt" => Self::Receipt(reader()),
            "locator" => {
                let (reader, first) = (reader(), ids.start);
                let find = |id| reader.stat(&ReceiptPath::new(&path(id)).unwrap()).unwrap().locator();
                let locators = ids.map(find).collect();
                Self::Locator(reader, first, locators)
            }
            "ask" => Self::Ask(reader(), place.to_owned()),
            "json" => Self::Json(place.to_owned()),
            "raw" => Self::Raw(place.to_owned()),
            "files" => Self::Files(place.into()),
            "http" => {
                let at = place.find('/').expect("ADDRESS/TARGET");
                Self::Http(place[..at].to_owned(), place[at..].to_owned())
            }
            _ => panic!("unknown peer {peer}"),
        }
    }

    /// For one thread.
    pub fn connect(&self) -> Getting<'_> {
        match self {
            Self::Receipt(reader) => Getting::Receipt(reader),
            Self::Locator(reader, first, locators) => Getting::Locator(reader, *first, locators),
            Self::Ask(reader, address) => Getting::Ask(reader, Connection::open(address)),
            Self::Json(address) => Getting::Json(Connection::open(address)),
            Self::Raw(address) => Getting::Raw(Connection::open(address)),
            Self::Files(folder) => Getting::Files(folder),
            Self::Http(address, target) => Getting::Http(Connection::open(address), target),
        }
    }
}

impl Getting<'_> {
    /// Gets a receipt and hands its bytes to `take`.
    pub fn get<T>(&mut self, id: u64, take: impl FnOnce(&[u8]) -> T) -> T {
        let from_disk = |reader: &Reader<RawDevice>, path: &str, take: &mut dyn FnMut(&[u8])| {
            take(reader.get(&ReceiptPath::new(path).unwrap()).unwrap().data());
        };
        let (mut take, mut taken) = (Some(take), None);
        let mut once = |data: &[u8]| taken = take.take().map(|take| take(data));
        match self {
            Self::Receipt(reader) => from_disk(reader, &path(id), &mut once),
            Self::Locator(reader, first, locators) => {
                let locator = &locators[usize::try_from(id - *first).unwrap()];
                once(reader.get_locator(locator).unwrap().data());
            }
            Self::Ask(reader, connection) => {
                from_disk(reader, &connection.get_path(&format!("/?{id:08}")), &mut once);
            }
            Self::Json(connection) => {
                let text = connection.get(&format!("/json/{id}"));
                let message: Message<'_> = serde_json::from_slice(&text).unwrap();
                once(&STANDARD.decode(message.image).unwrap());
            }
            Self::Raw(connection) => once(&connection.get(&format!("/raw/{id}"))),
            Self::Files(folder) => once(&std::fs::read(folder.join(path(id))).unwrap()),
            Self::Http(connection, target) if target.ends_with('=') => {
                once(&connection.get(&format!("{target}{id:08}")))
            }
            Self::Http(connection, target) => once(&connection.get(&format!("{target}{}", path(id)))),
        }
        taken.expect("every peer hands its bytes over")
    }
}

/// What the issuer answers today: the picture in a field of JSON.
#[derive(serde::Deserialize, serde::Serialize)]
pub struct Message<'a> {
    pub id: u64,
    pub image: &'a str,
}
