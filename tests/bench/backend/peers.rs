//! Who is compared: this backend in any build and with any options, qemu-storage-daemon, fio on the file, any socket.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use receiptdisk_tests::{Proc, backend_binary, until};
use rustix::net::sockopt::socket_peercred;
use serde_json::Value;

use crate::load::{Load, Shape};
use crate::report::Figures;

/// How results name the ones that goals speak of.
pub const OWN: &str = "receiptdisk";
pub const POLLING: &str = "receiptdisk --poll-us 1000";
pub const STORAGE_DAEMON: &str = "qemu-storage-daemon";
pub const FIO: &str = "fio on the file";

/// One competitor.
#[derive(Debug, Clone)]
pub enum Peer {
    /// This backend: the program and more options.
    Own { name: String, program: PathBuf, options: Vec<String>, is_tracked: bool },
    /// qemu-storage-daemon with this `aio=`.
    StorageDaemon { aio: &'static str },
    /// fio with io_uring straight on the file: what the host itself can do.
    Fio,
    /// A backend that runs already, with the sockets of its guests.
    Running { name: String, sockets: Vec<PathBuf> },
}

/// Where the image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub name: &'static str,
    /// Whether the host's page cache is bypassed.
    pub direct: bool,
}

/// A competitor at work; its process ends with it.
pub struct Served {
    pub sockets: Vec<PathBuf>,
    pid: u32,
    proc: Option<Proc>,
}

impl Peer {
    /// This backend with its defaults.
    pub fn own() -> Self {
        Self::Own { name: OWN.into(), program: backend_binary(), options: Vec::new(), is_tracked: false }
    }

    /// This backend looking for news for up to a millisecond.
    pub fn polling() -> Self {
        let options = ["--poll-us", "1000"].map(str::to_owned).to_vec();
        Self::Own { name: POLLING.into(), program: backend_binary(), options, is_tracked: false }
    }

    /// Whether it is measured with such a load.
    pub fn takes(&self, load: &Load) -> bool {
        match self {
            Self::Fio => load.guests == 1 && load.queues == 1,
            // With more requests under way there is hardly a pause to look around in.
            Self::Own { name, .. } => name != POLLING || load.depth == 1,
            Self::StorageDaemon { .. } | Self::Running { .. } => true,
        }
    }

    /// Whether its guests have it keep what is in flight across its end.
    pub fn is_tracked(&self) -> bool {
        matches!(self, Self::Own { is_tracked: true, .. })
    }

    /// As the tables name it.
    pub fn name(&self) -> String {
        match self {
            Self::Own { name, .. } | Self::Running { name, .. } => name.clone(),
            Self::StorageDaemon { aio } => format!("{STORAGE_DAEMON} aio={aio}"),
            Self::Fio => FIO.into(),
        }
    }

    /// Starts it on `image` for the guests of `load`, who may all write, with its files in `folder`.
    pub fn start(&self, image: &Path, place: Place, load: &Load, folder: &Path) -> Served {
        let guests = load.guests;
        let sockets: Vec<PathBuf> = (0..guests).map(|guest| folder.join(format!("{guest}.sock"))).collect();
        let mut command = match self {
            Self::Own { program, options, .. } => own(program, options, image, place, &sockets),
            Self::StorageDaemon { aio } => storage_daemon(aio, image, place, &sockets, load.queues),
            Self::Running { name, sockets } => {
                assert!(sockets.len() >= guests, "{name} has too few sockets for {guests} guests");
                let stream = UnixStream::connect(&sockets[0]).unwrap();
                let pid = socket_peercred(&stream).unwrap().pid.as_raw_nonzero().get().unsigned_abs();
                return Served { sockets: sockets[..guests].to_vec(), pid, proc: None };
            }
            Self::Fio => unreachable!("fio is no backend"),
        };
        until("the peer to listen", || {
            sockets.iter().for_each(|socket| drop(fs::remove_file(socket)));
            let mut proc = Proc::spawn(command.stdout(Stdio::null()), &folder.join("peer.log"));
            let listens = until("the peer to listen or end", || match sockets.iter().all(|s| s.exists()) {
                true => Some(true),
                false => (!proc.is_running()).then_some(false),
            });
            // The lock of a process that was killed may outlive it for a moment, and not every peer waits for it.
            assert!(listens || proc.stderr().contains("lock"), "{}: {}", self.name(), proc.stderr());
            let served = || Served { sockets: sockets.clone(), pid: proc.pid(), proc: Some(proc) };
            listens.then(served)
        })
    }
}

fn own(program: &Path, options: &[String], image: &Path, place: Place, sockets: &[PathBuf]) -> Command {
    let mut command = Command::new(program);
    command.arg("serve").arg("--image").arg(image).args(["--multi-writer", "--cache"]);
    command.arg(if place.direct { "direct" } else { "page" });
    for (guest, socket) in sockets.iter().enumerate() {
        command.arg("--guest").arg(format!("name=guest{guest},socket={}", socket.display()));
    }
    command.args(options);
    command
}

fn storage_daemon(aio: &str, image: &Path, place: Place, sockets: &[PathBuf], queues: u16) -> Command {
    let mut command = Command::new("qemu-storage-daemon");
    // Linux's own asynchronous IO is offered for direct IO alone.
    let direct = if place.direct || aio == "native" { "on" } else { "off" };
    let image = image.display();
    command.arg("--blockdev").arg(format!(
        "driver=file,node-name=file,filename={image},aio={aio},cache.direct={direct},discard=unmap"
    ));
    command.args(["--blockdev", "driver=raw,node-name=raw,file=file"]);
    for (guest, socket) in sockets.iter().enumerate() {
        let path = socket.display();
        command.arg("--export").arg(format!(
            "vhost-user-blk,id=guest{guest},node-name=raw,addr.type=unix,addr.path={path},writable=on,num-queues={queues}"
        ));
    }
    command
}

impl Served {
    /// Processor time of all its threads so far, in nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap().flatten();
        let on_cpu = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        };
        tasks.filter_map(on_cpu).sum()
    }

    /// Whether somebody else has started it.
    pub fn is_foreign(&self) -> bool {
        self.proc.is_none()
    }

    /// Memory it has, in KiB, without that of its guests, which is shared memory.
    pub fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let kib = |line: &str| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        let own = status
            .lines()
            .filter_map(|line| line.strip_prefix("RssAnon:").or_else(|| line.strip_prefix("RssFile:")));
        own.map(kib).sum()
    }
}

/// Runs fio with the same load.
pub fn fio(load: &Load, image: &Path, place: Place, seconds: f64) -> Figures {
    let rw = match load.shape {
        Shape::Random { read_percent: 100 } => "randread",
        Shape::Random { read_percent: 0 } => "randwrite",
        Shape::Random { .. } => "randrw",
        Shape::Beside(_) => unreachable!("that takes two guests"),
        Shape::Sequential { read: true } => "read",
        Shape::Sequential { read: false } | Shape::Commit => "write",
    };
    let mut command = Command::new("fio");
    command.args(["--name=load", "--ioengine=io_uring", "--thread", "--time_based", "--output-format=json"]);
    command.arg(format!("--filename={}", image.display())).arg(format!("--rw={rw}"));
    command.arg(format!("--bs={}", load.len)).arg(format!("--iodepth={}", load.depth));
    command.arg(format!("--direct={}", u8::from(place.direct)));
    command.arg(format!("--runtime={}ms", seconds * 1e3)).arg(format!("--ramp_time={}ms", seconds * 250.0));
    match load.shape {
        Shape::Random { read_percent } => {
            command.args([format!("--rwmixread={read_percent}"), "--norandommap".into()])
        }
        Shape::Commit => command.arg("--fdatasync=1"),
        Shape::Sequential { .. } | Shape::Beside(_) => &mut command,
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    parse_fio(&report["jobs"][0], load.shape)
}

fn parse_fio(job: &Value, shape: Shape) -> Figures {
    let number = |value: &Value| value.as_f64().unwrap();
    let sides = ["read", "write"].map(|side| &job[side]);
    let iops: f64 = sides.iter().map(|side| number(&side["iops"])).sum();
    let busy = sides.iter().max_by(|a, b| number(&a["iops"]).total_cmp(&number(&b["iops"]))).unwrap();
    let cpu_us = (number(&job["usr_cpu"]) + number(&job["sys_cpu"])) / 100.0 / iops * 1e6;
    let percentile = |of: &Value, at: &str| of["percentile"][at].as_f64().unwrap_or(0.0) / 1e3;
    let percentiles_us = ["50.000000", "99.000000", "99.900000"].map(|at| {
        let flush = if shape == Shape::Commit { percentile(&job["sync"]["lat_ns"], at) } else { 0.0 };
        percentile(&busy["clat_ns"], at) + flush
    });
    Figures { iops, cpu_us, percentiles_us, least_share: 1.0, ..Figures::default() }
}
