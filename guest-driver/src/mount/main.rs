//! `receipt-mount`: the receipts of the shared disk as read-only files, for programs that know files only. `receipt mount` starts it.

mod filesystem;
mod nodes;
mod tree;
mod view;

use clap::Parser;
use filesystem::ReceiptFilesystem;
use fuser::{Config, Session, SessionACL};
use receipt_store::path::ID_PREFIX;
use receipt_store::stop::StopSignals;
use receipt_store::{Error, RawDevice, Reader, Result};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{getegid, geteuid};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use view::{Limits, View};

/// Where `/dev/fuse` answers for a program that has ended.
const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
/// How long files that are still open are served after SIGTERM.
const OPEN_FILES_GRACE: Duration = Duration::from_secs(5);

/// Shows the receipts of the shared disk as read-only files below DIR until SIGTERM. Prints DIR when it is ready.
#[derive(Debug, Parser)]
#[command(version, name = "receipt mount", bin_name = "receipt mount")]
struct Args {
    /// An empty folder.
    dir: PathBuf,
    /// Block device or file; the default is the disk whose serial begins with `receiptdisk`.
    #[arg(long, value_name = "DEV")]
    device: Option<PathBuf>,
    /// Other users may read, too.
    #[arg(long)]
    allow_other: bool,
    /// Requests served at the same time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Names kept for listings, about 100 bytes each; a folder with more cannot be listed.
    #[arg(long, value_name = "N", default_value_t = 500_000)]
    names_max: usize,
    /// Bytes of open receipts kept in memory (MiB); beyond that a read fetches and verifies the whole receipt again.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    open_max_mib: usize,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print(); // nowhere to report a closed terminal
            return ExitCode::from(code);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("receipt mount: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let signals = StopSignals::block();
    let device = match &args.device {
        Some(path) => path.clone(),
        None => receipt_store::discover::find_device()?,
    };
    let name = device.display().to_string();
    let limits = Limits { names: args.names_max, pinned_bytes: args.open_max_mib.saturating_mul(1 << 20) };
    let view = View::open(Reader::new(RawDevice::open_reader(&device)?, &name), &name, ID_PREFIX, limits)?;
    let dir = mount_point(&args.dir)?;
    let channel = open_fuse()?;
    attach(&channel, &dir, &name, args.allow_other)?;
    let served = serve(view, channel, &dir, args, signals);
    let _ = unmount(&dir, UnmountFlags::DETACH); // gone already, unless serving has failed
    served.map_err(|source| Error::File { name: dir.display().to_string(), source })
}

/// The folder, without what a killed `receipt mount` may have left on it.
fn mount_point(dir: &Path) -> Result<PathBuf> {
    let error = |source| Error::File { name: dir.display().to_string(), source };
    if let Err(gone) = std::fs::metadata(dir)
        && gone.raw_os_error() == Some(libc::ENOTCONN)
    {
        unmount(dir, UnmountFlags::DETACH).map_err(|errno| error(errno.into()))?;
    }
    let dir = dir.canonicalize().map_err(error)?;
    if !dir.is_dir() {
        return Err(error(io::Error::from_raw_os_error(libc::ENOTDIR)));
    }
    let kind = rustix::fs::statfs(&dir).map_err(|errno| error(errno.into()))?.f_type;
    if u64::try_from(kind).is_ok_and(|kind| kind == FUSE_SUPER_MAGIC) {
        return Err(Error::Usage(format!("{} is a FUSE file system already", dir.display())));
    }
    Ok(dir)
}

fn open_fuse() -> Result<OwnedFd> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let hint = "/dev/fuse (it comes with the kernel's module `fuse`: modprobe fuse)";
        Error::CannotOpen { name: hint.to_owned(), source: errno.into() }
    })
}

fn attach(channel: &OwnedFd, dir: &Path, source: &str, allow_other: bool) -> Result<()> {
    let mut options = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        channel.as_raw_fd(),
        geteuid().as_raw(),
        getegid().as_raw()
    );
    if allow_other {
        options.push_str(",allow_other");
    }
    let options = std::ffi::CString::new(options).unwrap_or_default();
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(source, dir, "fuse.receipt", flags, options.as_c_str()).map_err(|errno| {
        let name = match errno {
            rustix::io::Errno::PERM => format!("cannot mount on {} (it needs root)", dir.display()),
            _ => format!("cannot mount on {}", dir.display()),
        };
        Error::File { name, source: errno.into() }
    })
}

/// Serves until the file system is unmounted, by SIGTERM or by `umount`.
fn serve(
    view: View<RawDevice>,
    channel: OwnedFd,
    dir: &Path,
    args: &Args,
    signals: StopSignals,
) -> io::Result<()> {
    let mut config = Config::default();
    config.n_threads = Some(usize::from(args.threads));
    config.clone_fd = true;
    // The kernel keeps other users out, unless it was told otherwise.
    let session = Session::from_fd(ReceiptFilesystem::new(view), channel, SessionACL::All, config)?;
    let mounted_on = dir.to_owned();
    std::thread::spawn(move || {
        signals.wait();
        if unmount(&mounted_on, UnmountFlags::empty()).is_err() {
            // Somebody stands in it or reads from it: no new files, and a while for the open ones.
            let _ = unmount(&mounted_on, UnmountFlags::DETACH);
        }
        std::thread::sleep(OPEN_FILES_GRACE);
        std::process::exit(0);
    });
    writeln!(io::stdout(), "{}", dir.display())?;
    session.run()
}
