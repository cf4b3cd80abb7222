//! Orders to the process that holds the writer, as JSON objects, and what it says while it carries them out: policy, holds, erasure, expiry, growth.
//!
//! `{"do": "policy", "class", "years" (a number, "forever" or "none"), "from_year_end"}`, `{"do": "hold", "prefix", "until" (day or none)}`,
//! `{"do": "release", "prefix"}`, `{"do": "erase", "path", "reason"}`, `{"do": "expire", "dry_run", "today", "compact", "pace"}`, `{"do": "grow"}`. Days are
//! counted since 1970.

use crate::expire::{ExpireEvent, ExpireOptions, WORK_PERCENT, WithWriter, expire};
use crate::pace::Pace;
use crate::policy::CLASS_COUNT;
use crate::{Error, Hold, RawDevice, Reader, ReceiptPath, Result, Term, Writer, day};
use serde_json::{Value, json};

fn bad(what: &str) -> Error {
    Error::Usage(format!("bad order: {what}"))
}

fn day_of(value: &Value) -> Result<Option<u32>> {
    match value.as_u64() {
        Some(number) => u32::try_from(number).map(Some).map_err(|_| bad("day")),
        None => Ok(None),
    }
}

fn no_writer<D>(_: &mut dyn FnMut(&mut Writer<D>) -> Result<()>) -> Result<()> {
    Err(bad("it needs a writer"))
}

/// Carries out an order, step by step, and says what happens; without a writer only a dry run.
///
/// # Errors
/// What the steps return; [`Error::Usage`] for an order that makes no sense.
pub fn perform(
    order: &Value,
    writer: Option<WithWriter<'_, RawDevice>>,
    reader: &Reader<RawDevice>,
    say: &mut dyn FnMut(Value) -> Result<()>,
) -> Result<()> {
    let mut none = no_writer;
    let writer = writer.unwrap_or(&mut none);
    let text = |name: &str| order[name].as_str().ok_or_else(|| bad(name));
    match text("do")? {
        "policy" => {
            let class = order["class"].as_u64().and_then(|n| usize::try_from(n).ok());
            let class = class.filter(|class| *class < CLASS_COUNT).ok_or_else(|| bad("class"))?;
            let term = term_of(text("years")?, order["from_year_end"] == true)?;
            writer(&mut |writer| {
                writer.change_policy(|policy| {
                    if let Some(old) = policy.terms.get_mut(class) {
                        *old = term;
                    }
                    Ok(())
                })?;
                Ok(())
            })?;
            say(json!({ "class": class, "term": term.to_string() }))
        }
        "hold" => {
            let (prefix, until_day) = (text("prefix")?.trim_start_matches('/'), day_of(&order["until"])?);
            let hold = Hold { prefix: prefix.as_bytes().to_vec(), until_day };
            writer(&mut |writer| writer.hold(&hold))?;
            say(json!({ "hold": prefix, "until": until_day.map(day::text) }))
        }
        "release" => {
            let prefix = text("prefix")?.trim_start_matches('/');
            writer(&mut |writer| writer.release(prefix.as_bytes()))?;
            say(json!({ "released": prefix }))
        }
        "erase" => {
            let (path, reason) = (ReceiptPath::new(text("path")?)?, text("reason")?);
            let mut erased = Vec::new();
            writer(&mut |writer| {
                erased = writer.erase(&path, reason)?;
                Ok(())
            })?;
            erased.iter().try_for_each(|one| {
                let locator = one.locator.to_string();
                say(json!({ "erased": path.as_str(), "locator": locator, "version": one.version, "seq": one.seq }))
            })
        }
        "grow" => {
            let mut grown = None;
            writer(&mut |writer| {
                grown = writer.grow()?;
                Ok(())
            })?;
            let unreachable_bytes = grown.map_or(0, |grown| grown.unreachable_bytes);
            let geometry = &reader.superblock_now()?.geometry;
            let size_bytes = geometry.segment_count * geometry.segment_bytes;
            say(
                json!({ "segments": geometry.segment_count, "size_bytes": size_bytes, "unreachable_bytes": unreachable_bytes }),
            )
        }
        "expire" => run_expire(order, writer, reader, say),
        other => Err(bad(other)),
    }
}

fn term_of(years: &str, is_from_year_end: bool) -> Result<Term> {
    Ok(match years {
        "none" => Term::None,
        "forever" => Term::Forever,
        years => {
            let number = years
                .parse()
                .map_err(|_| Error::Usage(format!("`{years}`: a number of years, `forever` or `none`")))?;
            match number {
                0 if !is_from_year_end => {
                    return Err(Error::Usage(
                        "0 years would end every term on its day of issue: `none` is for receipts without a term, and with --from-year-end 0 is the end of the year of issue"
                            .to_owned(),
                    ));
                }
                number if is_from_year_end => Term::YearEnd(number),
                number => Term::Years(number),
            }
        }
    })
}

fn run_expire(
    order: &Value,
    writer: WithWriter<'_, RawDevice>,
    reader: &Reader<RawDevice>,
    say: &mut dyn FnMut(Value) -> Result<()>,
) -> Result<()> {
    let options = ExpireOptions {
        is_dry_run: order["dry_run"] == true,
        today: day_of(&order["today"])?,
        compact_percent: order["compact"].as_u64().and_then(|n| u8::try_from(n).ok()).unwrap_or_default(),
        clock_day: day::day_of_ms(crate::clock_ms()),
        pace: Pace::new(order["pace"].as_u64().and_then(|n| u8::try_from(n).ok()).unwrap_or(WORK_PERCENT)),
    };
    let totals = expire(reader, writer, options, |event| {
        say(match event {
            ExpireEvent::Expired(path, seq) => json!({ "expired": path.as_str(), "seq": seq }),
            ExpireEvent::Retired { segment, moved } => json!({ "retired_segment": segment, "moved": moved }),
            ExpireEvent::Kept { segment, why } => json!({ "kept_segment": segment, "why": why }),
            ExpireEvent::Progress(done, all) => json!({ "progress": done, "of": all }),
        })
    })?;
    say(json!({
        "dry_run": options.is_dry_run, "expired_receipts": totals.expired, "moved_receipts": totals.moved,
        "freed_segments": totals.segments, "freed_bytes": totals.freed_bytes,
    }))
}
