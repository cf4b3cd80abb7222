//! The folders that other peers share: virtiofs of a folder of the host, NFS of a disk of the issuer guest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use receiptdisk_tests::{Guest, Proc, until};

use crate::peers::{EXPORT, FOLDER, IMPORT};

const DISK_BYTES: u64 = 4 << 30;

/// A kind of folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    Virtiofs,
    Nfs,
}

/// No user space is needed to export a file system by NFS 4: what `exportfs` and `mountd` would answer is written to the kernel's tables.
/// 9218 = any port, no subtree check, a number (0) as the identity of the file system.
const START_NFS_SERVER: &str = "\
    never=2147483647; mkdir -p EXPORT /var/lib/nfs/v4recovery; \
    for disk in /sys/block/vd*; do if [ \"$(cat $disk/serial)\" = own ]; then mount -t ext4 /dev/${disk##*/} EXPORT; fi; done; \
    grep -q ' EXPORT ' /proc/mounts && mount -t nfsd nfsd /proc/fs/nfsd && \
    echo '-2 -3 +4 +4.1 +4.2' > /proc/fs/nfsd/versions && echo 4 > /proc/fs/nfsd/threads && \
    echo Y > /proc/fs/nfsd/v4_end_grace && \
    echo nfsd 192.168.77.2 $never front > /proc/net/rpc/auth.unix.ip/channel && \
    echo front EXPORT $never 9218 65534 65534 0 > /proc/net/rpc/nfsd.export/channel && \
    printf 'front 1 \\\\x00000000 %s EXPORT\\n' $never > /proc/net/rpc/nfsd.fh/channel";

const MOUNT_NFS: &str = "mkdir -p IMPORT && mount -t nfs4 -o addr=192.168.77.1,clientaddr=192.168.77.2,vers=4.2,sec=sys \
    192.168.77.1:/ IMPORT";

impl Folder {
    /// That of a peer.
    pub fn of(key: &str) -> Option<Self> {
        match key {
            "virtiofs" => Some(Self::Virtiofs),
            "nfs" => Some(Self::Nfs),
            _ => None,
        }
    }

    /// In both guests.
    pub fn mount(self, issuer: &mut Guest, front: &mut Guest) {
        match self {
            Self::Virtiofs => {
                for guest in [issuer, front] {
                    guest.ok(&format!("mkdir -p {FOLDER} && mount -t virtiofs shared {FOLDER}"));
                }
            }
            Self::Nfs => {
                issuer.ok(&START_NFS_SERVER.replace("EXPORT", EXPORT));
                front.ok(&MOUNT_NFS.replace("IMPORT", IMPORT));
            }
        }
    }
}

/// A disk for one guest alone, with ext4 on it.
pub fn make_disk(path: &Path) -> PathBuf {
    File::create(path).unwrap().set_len(DISK_BYTES).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(path).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfs.ext4 of the package e2fsprogs is needed");
    path.to_owned()
}

/// The daemon of virtiofs: one a guest, as QEMU needs it.
pub fn virtiofsd(shared: &Path, socket: &Path) -> Proc {
    let places = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"];
    let program = places.iter().map(PathBuf::from).find(|path| path.exists());
    let program = program.expect("virtiofsd is installed by tests/bench.sh");
    let mut command = Command::new(program);
    command
        .arg(format!("--socket-path={}", socket.display()))
        .arg("-o")
        .arg(format!("source={}", shared.display()));
    command.args(["-o", "sandbox=chroot", "-o", "cache=auto"]);
    let proc = Proc::spawn(&mut command, &socket.with_extension("log"));
    until("virtiofsd to listen", || socket.exists().then_some(()));
    proc
}
