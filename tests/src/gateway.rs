//! A gateway on this host, as a guard.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::bins::gateway_binary;
use crate::proc::Proc;

/// A running gateway; killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    proc: Proc,
    address: SocketAddr,
}

impl Gateway {
    /// Starts the `issuer` or the `front` on a device, with more arguments, and waits until it listens: on a port of its own choice unless
    /// `--listen` is among them.
    #[track_caller]
    pub fn start(kind: &str, device: &Path, args: &[&str], log: &Path) -> Self {
        let mut command = Command::new(gateway_binary());
        command.arg(kind).arg("--no-access-log").arg("--device").arg(device).args(args);
        if !args.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut proc = Proc::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()), log);
        let mut line = String::new();
        BufReader::new(proc.child_mut().stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("the {kind} did not start: {}", proc.stderr()));
        Self { proc, address }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process.
    pub fn proc(&mut self) -> &mut Proc {
        &mut self.proc
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.proc.stderr()
    }
}
