//! A store in a file, and gateways on it.

use crate::child::die_with_parent;
use crate::client::{Answer, Client};
use receipt_store::device::DeviceResult;
use receipt_store::{Device, FormatOptions, RawDevice, Reader, format};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The store.
pub struct Stand {
    dir: tempfile::TempDir,
    runs: AtomicU64,
}

/// A running gateway; killed by its pid when dropped.
pub struct Gateway {
    child: Child,
    pub address: SocketAddr,
    log: PathBuf,
}

impl Stand {
    /// A store of 64 MiB whose receipts may have almost 1 MiB.
    pub fn new() -> Self {
        Self::with(64 << 20, 1 << 20)
    }

    pub fn with(size_bytes: u64, segment_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stand = Self { dir, runs: AtomicU64::new(0) };
        File::create(stand.disk()).unwrap().set_len(size_bytes).unwrap();
        let device = RawDevice::open_writer(&stand.disk()).unwrap();
        let options = FormatOptions { segment_bytes: Some(segment_bytes), ..FormatOptions::default() };
        format(&device, &options).unwrap();
        stand
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn disk(&self) -> PathBuf {
        self.path("disk")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    pub fn reader(&self) -> Reader<RawDevice> {
        Reader::new(RawDevice::open_reader(&self.disk()).unwrap(), "disk")
    }

    pub fn issuer(&self, args: &[&str]) -> Gateway {
        let socket = self.socket().display().to_string();
        self.start("issuer", &[&["--socket", &socket], args].concat())
    }

    pub fn front(&self, issuer: &Gateway, args: &[&str]) -> Gateway {
        let url = format!("http://{}", issuer.address);
        self.start("front", &[&["--issuer", &url], args].concat())
    }

    pub fn start(&self, kind: &str, args: &[&str]) -> Gateway {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let log = self.path(&format!("{kind}-{run}.log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_receipt-gateway"));
        command.arg(kind).arg("--device").arg(self.disk());
        if !args.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut child = die_with_parent(&mut command).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").and_then(|address| address.parse().ok());
        let address =
            address.unwrap_or_else(|| panic!("{line:?} {}", std::fs::read_to_string(&log).unwrap()));
        Gateway { child, address, log }
    }

    /// Runs `receipt` on this store.
    pub fn receipt(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_receipt"));
        command.arg("--device").arg(self.disk()).arg("--socket").arg(self.socket());
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }
}

impl Gateway {
    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// One request on a connection of its own.
    pub fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.client().send(method, target, headers, body)
    }

    pub fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[], b"")
    }

    pub fn put(&self, target: &str, body: &[u8]) -> Answer {
        self.send("PUT", target, &[], body)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").expect(200).text();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("receipt_gateway_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        until("the gateway to end", || self.child.try_wait().unwrap())
    }

    /// SIGTERM and its end.
    pub fn stop(mut self) -> ExitStatus {
        self.terminate();
        self.wait()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of {} ---\n{}---", self.address, self.log());
        }
    }
}

/// Waits for a condition.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The file as a device without any lock, as another machine has it. Once armed, it takes one write and then only flushes: what a
/// machine that dies between the records of a commit and its pages leaves.
pub struct OtherMachine {
    file: File,
    size_bytes: u64,
    /// Writes that are left.
    pub writes: AtomicU64,
}

impl OtherMachine {
    pub fn new(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let size_bytes = file.metadata().unwrap().len();
        Self { file, size_bytes, writes: AtomicU64::new(u64::MAX) }
    }
}

impl Device for OtherMachine {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> DeviceResult<()> {
        self.file.read_exact_at(buf, offset_bytes).unwrap();
        Ok(())
    }

    fn write(&self, offset_bytes: u64, buf: &[u8]) -> DeviceResult<()> {
        let left = self.writes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_err() {
            return Err(receipt_store::error::DeviceError {
                op: receipt_store::error::DeviceOp::Write,
                offset_bytes,
                len_bytes: buf.len(),
                source: std::io::ErrorKind::BrokenPipe.into(),
            });
        }
        self.file.write_all_at(buf, offset_bytes).unwrap();
        Ok(())
    }

    fn flush(&self) -> DeviceResult<()> {
        Ok(())
    }
}
