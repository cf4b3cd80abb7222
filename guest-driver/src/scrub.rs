//! A repair through the process that holds the writer.
//!
//! Invariant: commits wait only while something is mended, and never for the other side of the connection.

use crate::repair::Outcome;
use crate::verify::{Finding, Step, Totals, check};
use crate::{Error, RawDevice, Reader, Result, SharedWriter, wire};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How often the running writer says how far it is.
const STEP_INTERVAL: Duration = Duration::from_millis(100);

/// A finding as JSON.
#[must_use]
pub fn finding_json(finding: &Finding) -> Value {
    json!({ "path": finding.path, "place": finding.place, "fact": finding.fact })
}

/// Totals as JSON.
#[must_use]
pub fn totals_json(totals: &Totals) -> Value {
    json!({
        "records": totals.records, "data_bytes": totals.data_bytes, "entries": totals.entries,
        "findings": totals.findings, "wrong_hints": totals.wrong_hints,
    })
}

/// [`crate::repair`](fn@crate::repair) by the process at the other end of `stream`; `store` is the hexadecimal uuid of the store that is meant. The check before
/// reads at most `throttle` MiB a second.
///
/// # Errors
/// As [`crate::Writer::repair`], [`Error::File`] when the connection breaks, or what `report` returns.
pub fn repair_remotely(
    mut stream: UnixStream,
    store: &str,
    throttle: Option<u64>,
    progress: &mut dyn FnMut(Step),
    report: &mut dyn FnMut(Outcome) -> Result<()>,
) -> Result<Totals> {
    wire::write_frame(&mut stream, &json!({ "store": store, "scrub": { "throttle": throttle } }))?;
    loop {
        let frame = wire::read_frame(&mut stream)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        if let Some(finding) = frame.get("finding") {
            let path = finding["path"].as_str().map(str::to_owned);
            let finding = Finding { path, place: text(&finding["place"]), fact: text(&finding["fact"]) };
            report(Outcome { finding, is_mended: frame["mended"] == true })?;
        } else if let Some(totals) = frame.get("totals") {
            return Ok(Totals {
                records: number(&totals["records"]),
                data_bytes: number(&totals["data_bytes"]),
                entries: number(&totals["entries"]),
                findings: number(&totals["findings"]),
                wrong_hints: number(&totals["wrong_hints"]),
            });
        } else if let Some(step) = frame.get("index") {
            progress(Step::Index(number(&step[0]), number(&step[1])));
        } else if let Some(step) = frame.get("log") {
            progress(Step::Log(number(&step[0]), number(&step[1])));
        } else {
            return Err(wire::parse_error(&frame));
        }
    }
}

/// Serves [`repair_remotely`]: checks beside the commits first, and lets them wait only if there is something to mend.
pub(crate) fn serve(
    shared: &SharedWriter<RawDevice>,
    stream: &mut UnixStream,
    request: &Value,
) -> Result<()> {
    let answer = match check_and_repair(shared, stream, request["throttle"].as_u64()) {
        Ok(totals) => json!({ "totals": totals_json(&totals) }),
        Err(error @ Error::File { .. }) => return Err(error), // nobody listens any more
        Err(error) => wire::answer_error(&error),
    };
    wire::write_frame(stream, &answer)
}

fn check_and_repair(
    shared: &SharedWriter<RawDevice>,
    stream: &mut UnixStream,
    throttle: Option<u64>,
) -> Result<Totals> {
    let mut said = Some(Instant::now());
    let mut steps = stream.try_clone().map_err(wire::broken)?;
    let mut step = |step| {
        if said.is_some_and(|said| said.elapsed() >= STEP_INTERVAL) {
            let frame = match step {
                Step::Log(done, all) => json!({ "log": [done, all] }),
                Step::Index(done, all) => json!({ "index": [done, all] }),
            };
            // Only a hint: who does not read any more must not keep the writer.
            said = wire::write_frame(&mut steps, &frame).is_ok().then(Instant::now);
        }
    };
    let device = shared.exclusively(|writer| writer.device.try_clone())?;
    let reader = Reader::new(device.throttled(throttle), "device");
    let (totals, _) = check(&reader, None, &mut step, &mut |_| Ok(()))?;
    if totals.findings == 0 && totals.wrong_hints == 0 {
        return Ok(totals);
    }
    let mut outcomes = Vec::new();
    let totals = shared.exclusively(|writer| {
        writer.repair(&mut step, &mut |outcome| {
            outcomes.push(outcome);
            Ok(())
        })
    })?;
    for Outcome { finding, is_mended } in outcomes {
        wire::write_frame(stream, &json!({ "finding": finding_json(&finding), "mended": is_mended }))?;
    }
    Ok(totals)
}
