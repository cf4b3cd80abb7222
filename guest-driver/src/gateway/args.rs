//! Arguments.

use clap::{Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The HTTP face of the two subsystems: the issuer stores receipts, the front end shows them. Plain HTTP: TLS is a proxy's work.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 ok, 1 other error, 2 usage, 5 corrupt, 7 busy or read-only. SIGTERM ends it when the running requests are done."
)]
pub struct Args {
    /// Which of the two.
    #[command(subcommand)]
    pub command: Command,
}

/// The two gateways.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// In the writing guest: PUT /receipts/PATH, POST /issue, GET /paths/ID, GET /?ID, GET /paths?since=SEQ, /health, /metrics.
    Issuer(Issuer),
    /// In a reading guest: GET /receipts/PATH, GET /receipts?id=ID, a page for people at /, /health, /metrics.
    Front(Front),
}

/// Options of the issuer.
#[derive(Debug, clap::Args)]
pub struct Issuer {
    #[command(flatten)]
    pub server: Server,
    /// Socket for `receipt put` and `receipt rm` of this machine.
    #[arg(long, value_name = "PATH", default_value = "/run/receipt.sock")]
    pub socket: PathBuf,
    /// Offer POST /issue, with the fonts in this folder (may be repeated).
    #[arg(long, value_name = "DIR")]
    pub font_dir: Vec<PathBuf>,
    /// Wait this long for more changes before each group commit.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub batch_wait_ms: u64,
}

/// Options of the front end.
#[derive(Debug, clap::Args)]
pub struct Front {
    #[command(flatten)]
    pub server: Server,
    /// Ask this issuer for the path of an id, `http://HOST:PORT`; without it ids are looked up on this machine's view of the disk.
    #[arg(long, value_name = "URL")]
    pub issuer: Option<String>,
}

/// Options of both.
#[derive(Debug, clap::Args)]
pub struct Server {
    /// Listen here; others reach this machine only by an address of its own, and nobody asks them who they are.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Block device or file; the default is the disk whose serial begins with `receiptdisk`.
    #[arg(long, value_name = "DEV")]
    pub device: Option<PathBuf>,
    /// Most connections; more are told 503 and closed.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_connections: u32,
    /// Most requests at a time; more are told 503.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_requests: u32,
    /// Memory for bodies and images on their way; requests wait for it.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(33..=65_536))]
    pub body_memory_mib: u32,
    /// A connection is closed when it brings no whole request header for this long.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub idle_timeout: u64,
    /// A request may take this long, its body included; so may a client that reads nothing of its answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub request_timeout: u64,
    /// Running requests have this long after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub shutdown_timeout: u64,
    /// Write no line a request to standard error.
    #[arg(long)]
    pub no_access_log: bool,
}

impl Server {
    /// How long a request may take.
    pub fn request_time(&self) -> Duration {
        Duration::from_secs(self.request_timeout)
    }
}
