//! A backend with an operator, on a disk of which the test owns every operation.

use std::path::PathBuf;

use crate::backend::{Backend, Serve};
use crate::ctl::Ctl;
use crate::disk::Scratch;
use crate::fault_disk::FaultDisk;
use crate::raw::{RawGuest, Setup};

/// See the module. It outlives the backend, which can be started again.
#[derive(Debug)]
pub struct FaultStand {
    // In this order: the process ends before its disk, and the disk before the folder.
    backend: Backend,
    disk: FaultDisk,
    scratch: Scratch,
}

impl FaultStand {
    /// Bytes of the disk.
    pub const SIZE: usize = 1 << 20;

    /// A zeroed disk, served as `configure` says and with a control socket.
    #[track_caller]
    pub fn serve(configure: impl FnOnce(Serve) -> Serve) -> Self {
        let scratch = Scratch::new();
        let disk = FaultDisk::new(&scratch.join("disk.img"), Self::SIZE);
        let backend = configure(command(&scratch)).start();
        Self { backend, disk, scratch }
    }

    /// The backend.
    pub fn backend(&mut self) -> &mut Backend {
        &mut self.backend
    }

    /// The disk.
    pub fn disk(&self) -> &FaultDisk {
        &self.disk
    }

    /// The operator.
    pub fn ctl(&self) -> Ctl {
        Ctl::new(self.scratch.join("ctl.sock"))
    }

    /// Where the backend keeps what the operator decided.
    pub fn state_file(&self) -> PathBuf {
        self.scratch.join("disk.img.receiptdisk")
    }

    /// Connects a guest made by hand and starts `queues` queues.
    #[track_caller]
    pub fn guest(&self, name: &str, queues: u16) -> RawGuest {
        let mut guest = RawGuest::connect(&self.backend.socket(name));
        guest.start(Setup { queues, size: 64, ..Setup::default() });
        guest
    }

    /// Connects a guest made by hand, nothing started.
    #[track_caller]
    pub fn raw(&self, name: &str) -> RawGuest {
        RawGuest::connect(&self.backend.socket(name))
    }

    /// A command line for the same disk.
    pub fn command(&self) -> Serve {
        command(&self.scratch)
    }

    /// Starts the backend again, after its end.
    #[track_caller]
    pub fn start_again(&mut self, configure: impl FnOnce(Serve) -> Serve) {
        self.backend = configure(command(&self.scratch)).start();
    }
}

impl Drop for FaultStand {
    fn drop(&mut self) {
        self.disk.let_go();
    }
}

fn command(scratch: &Scratch) -> Serve {
    Serve::image(&scratch.join("disk.img")).arg("--control").arg(scratch.join("ctl.sock"))
}
