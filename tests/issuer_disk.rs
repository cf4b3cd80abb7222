//! The issuer on a disk that fails: it says so, loses nothing, and goes on by itself when the disk works again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use receipt_store::device::DeviceResult;
use receipt_store::{Device, FormatOptions, RawDevice, Reader, ReceiptPath, Writer, WriterOptions, format};
use receiptdisk_tests::{Answer, Client, DiskOp, FaultDisk, Gateway, Scratch, until};

const DISK_BYTES: usize = 32 << 20;
const ALL: std::ops::Range<u64> = 0..u64::MAX;

/// The process ends before its disk.
struct Issuer {
    gateway: Gateway,
    disk: FaultDisk,
    path: PathBuf,
    _scratch: Scratch,
}

impl Issuer {
    fn start() -> Self {
        let scratch = Scratch::new();
        let path = scratch.join("disk");
        let disk = FaultDisk::new(&path, DISK_BYTES);
        let options = FormatOptions { segment_bytes: Some(1 << 20), ..FormatOptions::default() };
        format(&RawDevice::open_writer(&path).unwrap(), &options).unwrap();
        let socket = scratch.join("socket");
        let args = ["--socket", socket.to_str().unwrap()];
        let gateway = Gateway::start("issuer", &path, &args, &scratch.join("log"));
        Self { gateway, disk, path, _scratch: scratch }
    }

    fn send(&self, method: &str, target: &str, body: &[u8]) -> Answer {
        Client::connect(self.gateway.address()).send(method, target, &[], body)
    }

    fn put(&self, path: &str) -> Answer {
        self.send("PUT", &format!("/receipts/{path}"), path.as_bytes())
    }

    fn health(&self) -> String {
        self.send("GET", "/health", b"").json()["status"].as_str().unwrap().to_owned()
    }

    fn wait_for(&self, status: &str) {
        until("the health of the issuer", || (self.health() == status).then_some(()));
    }
}

#[test]
fn the_issuer_opens_the_store_again_when_the_disk_works_again() {
    let mut issuer = Issuer::start();
    issuer.put("before").expect(201);
    for (round, op) in [DiskOp::Sync, DiskOp::Write].into_iter().enumerate() {
        issuer.disk.fail(op, ALL, libc::EIO);
        assert_eq!(issuer.put(&format!("failed/{round}")).expect(500).code(), "device");
        assert_eq!(issuer.health(), "stopped");
        assert_eq!(issuer.put(&format!("refused/{round}")).expect(503).code(), "not_writable");
        // It tries, in vain, and says why.
        let tries = || issuer.gateway.log().matches("cannot be opened again: device").count();
        until("a try to open the store", || (tries() > round).then_some(()));
        assert_eq!(issuer.health(), "stopped");
        issuer.disk.heal();
        issuer.wait_for("ok");
        issuer.put(&format!("after/{round}")).expect(201);
        // Stored or not: to repeat it is right.
        let repeated = issuer.put(&format!("failed/{round}"));
        assert!([200, 201].contains(&repeated.status), "{}", repeated.text());
        assert_eq!(issuer.put("before").expect(200).json()["new"], false);
    }
    assert_eq!(issuer.gateway.log().matches("open for writing again").count(), 2, "{}", issuer.gateway.log());
    // A disk that grows later is still noticed.
    issuer.disk.grow(2 * DISK_BYTES);
    until("the store to grow", || issuer.gateway.log().contains(" more\n").then_some(()));
    let metrics = issuer.send("GET", "/metrics", b"").text();
    assert!(metrics.contains("\nreceipt_gateway_reopened_total 2\n"), "{metrics}");
    issuer.gateway.proc().signal(rustix::process::Signal::TERM);
    assert_eq!(issuer.gateway.proc().wait().code, Some(0), "the store was closed in order");
    let reader = Reader::new(RawDevice::open_reader(&issuer.path).unwrap(), "disk");
    for path in ["before", "after/0", "after/1", "failed/0", "failed/1"] {
        let receipt = reader.get(&ReceiptPath::new(path).unwrap()).unwrap();
        assert_eq!(receipt.data(), path.as_bytes());
    }
}

/// The disk as another machine has it: no locks, and its flush does not fail.
struct OtherMachine(File);

impl Device for OtherMachine {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES as u64
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        self.0.read_exact_at(buf, offset_bytes).unwrap();
        Ok(())
    }

    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        self.0.write_all_at(buf, offset_bytes).unwrap();
        Ok(())
    }

    fn flush(&self) -> DeviceResult<()> {
        Ok(())
    }
}

#[test]
fn an_issuer_whose_store_was_taken_over_meanwhile_does_not_open_it_again() {
    let issuer = Issuer::start();
    issuer.put("before").expect(201);
    issuer.disk.fail(DiskOp::Sync, ALL, libc::EIO);
    issuer.put("failed").expect(500);
    let machine = OtherMachine(File::options().read(true).write(true).open(&issuer.path).unwrap());
    let writer = Writer::open(&machine, &WriterOptions::default()).unwrap();
    issuer.disk.heal();
    until("the issuer to notice", || {
        issuer.gateway.log().contains("cannot be opened again: fenced").then_some(())
    });
    assert_eq!(issuer.health(), "fenced");
    assert_eq!(issuer.put("refused").expect(503).code(), "not_writable");
    writer.close().unwrap();
    assert_eq!(issuer.gateway.log().matches("open for writing again").count(), 0);
}
