//! QEMU's own storage daemon: the peer that takes the same locks, and a second opinion on the harness itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::proc::{Exit, Proc};
use crate::wait::until;

/// A `qemu-storage-daemon`; killed when dropped.
#[derive(Debug)]
pub struct StorageDaemon {
    proc: Proc,
}

impl StorageDaemon {
    /// Opens `image` and exports it on `writer` (writable) and, where given, on `reader`.
    pub fn spawn(image: &Path, writer: &Path, reader: Option<&Path>) -> Self {
        let mut command = Command::new("qemu-storage-daemon");
        let file = format!("driver=file,node-name=file,filename={}", image.display());
        command.args(["--blockdev", &file, "--blockdev", "driver=raw,node-name=raw,file=file"]);
        command.args(["--export", &export("writer", writer, "writable=on")]);
        if let Some(reader) = reader {
            command.args(["--export", &export("reader", reader, "writable=off")]);
        }
        let log = writer.with_extension("log");
        Self { proc: Proc::spawn(&mut command, &log) }
    }

    /// Waits until it has opened the image and made the sockets.
    #[track_caller]
    pub fn wait_until_serving(mut self, sockets: &[PathBuf]) -> Self {
        until("qemu-storage-daemon to listen", || {
            if !self.proc.is_running() {
                panic!("qemu-storage-daemon ended: {:?}", self.proc.wait());
            }
            sockets.iter().all(|socket| socket.exists()).then_some(())
        });
        self
    }

    /// Waits for its end: for an image that must be refused.
    #[track_caller]
    pub fn wait(mut self) -> Exit {
        self.proc.wait()
    }
}

fn export(id: &str, socket: &Path, access: &str) -> String {
    let path = socket.display();
    format!("vhost-user-blk,id={id},node-name=raw,addr.type=unix,addr.path={path},{access},num-queues=4")
}
