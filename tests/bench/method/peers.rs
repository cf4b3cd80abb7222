//! The ways of passing a receipt from one guest to the other, as the load program knows them.

use crate::measure::Phase;
use crate::options::Options;

/// Address of the issuer's server, of the front end's, and of the end of "issued -> readable".
pub const ISSUER: &str = "192.168.77.1:8080";
pub const FRONT: &str = "127.0.0.1:8080";
pub const SHOW: &str = "192.168.77.2:9000";
/// Where the shared folder of virtiofs is mounted in both guests.
pub const FOLDER: &str = "/mnt";
/// Where the issuer guest's own disk is mounted, which it exports by NFS, and where the front guest mounts that.
pub const EXPORT: &str = "/export";
pub const IMPORT: &str = "/import";

/// One way.
#[derive(Debug, Clone)]
pub struct Peer {
    /// On the command line.
    pub key: &'static str,
    /// For tables.
    pub name: &'static str,
    /// What the load program calls it, and where: to put, to get.
    pub put: Option<(&'static str, String)>,
    pub get: Option<(&'static str, String)>,
    /// Command of a server in the issuer guest, and in the front guest.
    pub issuer: Option<String>,
    pub front: Option<String>,
    /// The front end's own server, for a get as a customer's browser makes it.
    pub customer: Option<(&'static str, String)>,
    /// How "issued -> readable" stores, and how it reads.
    pub issue: Option<[(&'static str, String); 2]>,
}

impl Peer {
    /// What can be measured.
    pub fn phases(&self) -> Vec<Phase> {
        let mut phases = Vec::new();
        if self.put.is_some() {
            phases.extend([Phase::Put(1), Phase::Put(8)]);
        }
        if self.get.is_some() {
            phases.extend([Phase::Get(1), Phase::Get(8)]);
        }
        if self.customer.is_some() {
            phases.extend([Phase::Customer(1), Phase::Customer(8)]);
        }
        if self.issue.is_some() {
            phases.push(Phase::Issue);
        }
        phases
    }
}

/// All that are asked for.
pub fn peers(options: &Options) -> Vec<Peer> {
    let bytes = options.bytes;
    let serve = || Some(format!("method-load serve {ISSUER} {bytes}"));
    let front = |peer: &str, place: &str| Some(format!("method-load front {peer} {place} {FRONT} {bytes}"));
    let customer = || ("http", format!("{FRONT}/"));
    let disk = || "-".to_owned();
    let gateways = || {
        let issuer = format!("receipt-gateway issuer --listen {ISSUER} --no-access-log");
        (
            Some(issuer),
            Some(format!("receipt-gateway front --listen {FRONT} --issuer http://{ISSUER} --no-access-log")),
        )
    };
    let put_there = || ("http", format!("{ISSUER}/receipts/"));
    let all = vec![
        Peer {
            key: "receiptdisk",
            name: "receiptdisk, library",
            put: Some(("receipt", disk())),
            get: Some(("receipt", disk())),
            issuer: None,
            front: front("receipt", "-"),
            customer: Some(customer()),
            issue: Some([("receipt", disk()), ("receipt", disk())]),
        },
        Peer {
            key: "receiptdisk",
            name: "receiptdisk, library, by locator",
            put: None,
            get: Some(("locator", disk())),
            issuer: None,
            front: None,
            customer: None,
            issue: None,
        },
        Peer {
            key: "receiptdisk",
            name: "receiptdisk, path asked over HTTP",
            put: None,
            get: Some(("ask", ISSUER.to_owned())),
            issuer: serve(),
            front: front("ask", ISSUER),
            customer: Some(customer()),
            issue: Some([("receipt", disk()), ("ask", ISSUER.to_owned())]),
        },
        Peer {
            key: "gateways",
            name: "both gateways, by path",
            put: Some(put_there()),
            get: None,
            issuer: gateways().0,
            front: gateways().1,
            customer: Some(("http", format!("{FRONT}/receipts/"))),
            issue: Some([put_there(), ("http", format!("{FRONT}/receipts/"))]),
        },
        Peer {
            key: "gateways",
            name: "both gateways, by id (asks the issuer)",
            put: None,
            get: None,
            issuer: gateways().0,
            front: gateways().1,
            customer: Some(("http", format!("{FRONT}/receipts?id="))),
            issue: Some([put_there(), ("http", format!("{FRONT}/receipts?id="))]),
        },
        Peer {
            key: "base64",
            name: "base64 in JSON over HTTP",
            put: None,
            get: Some(("json", ISSUER.to_owned())),
            issuer: serve(),
            front: front("json", ISSUER),
            customer: Some(customer()),
            issue: Some([("json", disk()), ("json", ISSUER.to_owned())]),
        },
        Peer {
            key: "raw",
            name: "raw bytes over HTTP",
            put: None,
            get: Some(("raw", ISSUER.to_owned())),
            issuer: serve(),
            front: front("raw", ISSUER),
            customer: Some(customer()),
            issue: Some([("raw", disk()), ("raw", ISSUER.to_owned())]),
        },
        Peer {
            key: "virtiofs",
            name: "virtiofs folder, fsync",
            put: Some(("files", FOLDER.to_owned())),
            get: Some(("files", FOLDER.to_owned())),
            issuer: None,
            front: front("files", FOLDER),
            customer: Some(customer()),
            issue: Some([("files", FOLDER.to_owned()), ("files", FOLDER.to_owned())]),
        },
        Peer {
            key: "nfs",
            name: "NFS 4.2 of the issuer's disk, fsync",
            put: Some(("files", EXPORT.to_owned())),
            get: Some(("files", IMPORT.to_owned())),
            issuer: None,
            front: front("files", IMPORT),
            customer: Some(customer()),
            issue: Some([("files", EXPORT.to_owned()), ("files", IMPORT.to_owned())]),
        },
    ];
    all.into_iter().filter(|peer| options.wants(peer.key)).collect()
}
