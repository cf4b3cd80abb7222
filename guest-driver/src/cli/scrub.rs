//! `receipt verify` and `receipt scrub`: the same check; a scrub can be slowed down and can mend.

use super::args::Args;
use super::{Progress, device_path, open_reader, say, writer_options};
use receipt_store::repair::Outcome;
use receipt_store::scrub::{finding_json, repair_remotely, totals_json};
use receipt_store::verify::{Finding, Totals};
use receipt_store::{Error, RawDevice, Reader, Result, hex};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Checks everything and changes nothing.
pub fn verify(args: &Args, throttle: Option<u64>) -> Result<u8> {
    let path = device_path(args)?;
    let device = RawDevice::open_reader(&path)?.throttled(throttle);
    let reader = Reader::new(device, &path.display().to_string());
    let mut progress = Progress::beside_output("records");
    let mut step = |step| progress.step(step);
    let (totals, _) = receipt_store::verify::check(&reader, None, &mut step, &mut |finding| {
        say_finding(args, &finding, None)
    })?;
    progress.end();
    say_totals(args, &totals, None)
}

/// Mends what the log can mend, as the writer or through the process that is it.
pub fn repair(args: &Args, throttle: Option<u64>) -> Result<u8> {
    let path = device_path(args)?;
    let deadline = super::deadline(args);
    let mut progress = Progress::beside_output("records");
    let mut mended = 0;
    let mut report = |outcome: Outcome| {
        mended += u64::from(outcome.is_mended);
        say_finding(args, &outcome.finding, Some(outcome.is_mended))
    };
    let totals = loop {
        let name = match RawDevice::open_writer(&path) {
            Err(Error::Busy { name }) => name,
            device => {
                let device = device?.throttled(throttle);
                let options = writer_options(path.display().to_string());
                break receipt_store::repair(device, &options, &mut |step| progress.step(step), &mut report)?;
            }
        };
        if let Ok(stream) = UnixStream::connect(&args.socket) {
            let store = hex(&open_reader(args)?.superblock()?.uuid);
            break repair_remotely(stream, &store, throttle, &mut |step| progress.step(step), &mut report)?;
        }
        if Instant::now() >= deadline {
            return Err(Error::Busy { name });
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    progress.end();
    say_totals(args, &totals, Some(mended))
}

/// Prints a line for each finding, the path first where it is known.
fn say_finding(args: &Args, finding: &Finding, is_mended: Option<bool>) -> Result<()> {
    if args.json {
        let mut line = finding_json(finding);
        if let Some(is_mended) = is_mended {
            line["mended"] = is_mended.into();
        }
        return say(&line.to_string());
    }
    let name = finding.path.as_deref().unwrap_or("-");
    let end = if is_mended == Some(true) { "\tmended" } else { "" };
    say(&format!("{name}\t{}: {}{end}", finding.place, finding.fact))
}

/// Prints what was checked; exit code 5 when something is (still) wrong.
fn say_totals(args: &Args, totals: &Totals, mended: Option<u64>) -> Result<u8> {
    if args.json {
        let mut line = totals_json(totals);
        if let Some(mended) = mended {
            line["mended"] = mended.into();
        }
        say(&line.to_string())?;
    } else {
        let mended = mended.map_or_else(String::new, |mended| format!(", {mended} mended"));
        eprintln!(
            "{} records, {} bytes of data, {} index entries, {} findings{mended}",
            totals.records, totals.data_bytes, totals.entries, totals.findings
        );
    }
    Ok(if totals.findings == 0 { 0 } else { 5 })
}
