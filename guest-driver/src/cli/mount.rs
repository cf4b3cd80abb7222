//! `receipt mount`: starts `receipt-mount`, a program of its own so that this one stays small.

use super::args::Args;
use receipt_store::{Error, Result};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

const PROGRAM: &str = "receipt-mount";

/// Becomes `receipt-mount`: the one beside this program, else the one in PATH. Returns only where there is none.
pub fn run(args: &Args, rest: &[OsString]) -> Result<u8> {
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.with_file_name(PROGRAM);
    let program = if beside.is_file() { beside } else { PathBuf::from(PROGRAM) };
    let mut command = Command::new(&program);
    if let Some(device) = &args.device {
        command.arg("--device").arg(device);
    }
    let error = command.args(rest).exec();
    if error.kind() != std::io::ErrorKind::NotFound {
        return Err(Error::CannotOpen { name: program.display().to_string(), source: error });
    }
    Err(Error::Usage(format!(
        "the program {PROGRAM} is missing: neither in {} nor in PATH; build it with \
         `cargo build --release -p receipt --features mount --bin {PROGRAM}`",
        own.parent().unwrap_or(&own).display()
    )))
}
