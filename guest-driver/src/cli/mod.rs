//! The command line: arguments to library calls, answers to text or JSON, errors to exit codes.

#[cfg(feature = "archive")]
mod archive;
pub mod args;
mod below;
mod chain;
mod get;
mod life;
mod lines;
mod mount;
mod progress;
mod put;
mod queue;
mod remove;
mod scrub;
mod serve;
mod show;
mod sink;
pub mod size;

use args::{Args, Command};
use progress::Progress;
use receipt_store::{Error, FormatOptions, RawDevice, Reader, Result, WriterOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Runs a command; returns its exit code.
pub fn run(args: &Args) -> u8 {
    match dispatch(args) {
        Ok(code) => code,
        Err(error) => complain(args, &error),
    }
}

fn dispatch(args: &Args) -> Result<u8> {
    match &args.command {
        Command::Format { segment_size, force } => format(args, *segment_size, *force),
        Command::Put { .. } => put::run(args),
        Command::Get { .. } => get::run(args),
        Command::Serve { limits } => serve::run(args, (*limits).into()),
        Command::Rm { paths } => remove::run(args, paths),
        Command::Policy { .. }
        | Command::Hold { .. }
        | Command::Release { .. }
        | Command::Expire { .. }
        | Command::Erase { .. }
        | Command::Grow => life::run(args),
        Command::Stat { path } => show::stat(args, path),
        Command::Ls { prefix } => show::list(args, prefix),
        #[cfg(feature = "archive")]
        Command::Export { all_versions, prefix, target } => {
            archive::export::run(args, *all_versions, prefix, target)
        }
        #[cfg(feature = "archive")]
        Command::Import { .. } => archive::import::run(args),
        #[cfg(not(feature = "archive"))]
        Command::Export { .. } | Command::Import { .. } => Err(Error::Usage(
            "this `receipt` is the small one: build it with `--features archive` to export and import"
                .to_owned(),
        )),
        Command::Seals { retired } => show::seals(args, *retired),
        Command::Info => show::info(args),
        Command::Verify { from: None } => scrub::verify(args, None),
        Command::Scrub { repair: false, throttle } => scrub::verify(args, *throttle),
        Command::Scrub { repair: true, throttle } => scrub::repair(args, *throttle),
        Command::Verify { from: Some(note) } => chain::verify_from(args, note),
        Command::Checkpoint => chain::checkpoint(args),
        Command::Mount { rest } => mount::run(args, rest),
        Command::Follow { from, poll_ms, once } => chain::follow(args, *from, *poll_ms, *once),
    }
}

/// Prints one line for an error; returns its exit code.
fn complain(args: &Args, error: &Error) -> u8 {
    if let Error::File { name, source } = error
        && name == STDOUT
        && source.kind() == std::io::ErrorKind::BrokenPipe
        && args.command.only_shows()
    {
        return 0; // whoever read our output has seen enough
    }
    let code = error.exit_code();
    let hint = match error {
        Error::Busy { .. } if args.wait == 0 => "; --wait SECONDS waits for it",
        _ => "",
    };
    if args.json {
        let line = serde_json::json!({ "error": format!("{error}{hint}"), "exit_code": code });
        eprintln!("{line}");
    } else {
        eprintln!("receipt: {error}{hint}");
    }
    code
}

/// What is wrong with the arguments, without the help that follows, as the one line that `--json` promises.
pub fn usage_as_json(text: &str, code: u8) -> String {
    let words: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let text = words.join(" ");
    let error = text.strip_prefix("error: ").unwrap_or(&text);
    serde_json::json!({ "error": error, "exit_code": code }).to_string()
}

const STDOUT: &str = "standard output";

/// Prints one line, flushed.
fn say(line: &str) -> Result<()> {
    write_stdout(line.as_bytes(), b"\n")
}

fn write_stdout(bytes: &[u8], end: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let done = out.write_all(bytes).and_then(|()| out.write_all(end)).and_then(|()| out.flush());
    done.map_err(|source| Error::File { name: STDOUT.to_owned(), source })
}

fn file_error(name: &std::path::Path, source: std::io::Error) -> Error {
    Error::File { name: name.display().to_string(), source }
}

fn device_path(args: &Args) -> Result<PathBuf> {
    match &args.device {
        Some(path) => Ok(path.clone()),
        None => receipt_store::discover::find_device(),
    }
}

fn open_reader(args: &Args) -> Result<Reader<RawDevice>> {
    let path = device_path(args)?;
    Ok(Reader::new(RawDevice::open_reader(&path)?, &path.display().to_string()))
}

/// When `--wait` is over; a wait beyond the clock's end is one of a day.
fn deadline(args: &Args) -> Instant {
    let now = Instant::now();
    now.checked_add(Duration::from_secs(args.wait)).unwrap_or(now + Duration::from_secs(86_400))
}

/// Opens the device for writing, waiting for another process as long as `--wait` says.
fn open_writing_device(args: &Args) -> Result<(RawDevice, String)> {
    let path = device_path(args)?;
    let deadline = deadline(args);
    loop {
        match RawDevice::open_writer(&path) {
            Err(Error::Busy { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            answer => return Ok((answer?, path.display().to_string())),
        }
    }
}

fn writer_options(name: String) -> WriterOptions {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let guest_name = host.trim().to_owned();
    WriterOptions { name, guest_name, ..WriterOptions::default() }
}

fn format(args: &Args, segment_bytes: Option<u64>, force: bool) -> Result<u8> {
    let (device, name) = open_writing_device(args)?;
    let options = FormatOptions { segment_bytes, force, ..FormatOptions::default() };
    let mut progress = Progress::new("bytes");
    let superblock = receipt_store::format_with_progress(&device, &options, &mut |done, all| {
        progress.show(done, Some(all));
    })?;
    progress.end();
    let shape = show::shape(&name, &superblock);
    if args.json {
        say(&shape.to_string())?;
    } else {
        let (count, bytes) = (superblock.geometry.segment_count, superblock.geometry.segment_bytes);
        say(&format!(
            "{name}: store {} with {count} segments of {bytes} bytes",
            receipt_store::hex(&superblock.uuid)
        ))?;
    }
    Ok(0)
}
