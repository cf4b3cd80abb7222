//! `receipt stat`, `ls` and `info`.

use super::args::Args;
use super::{Progress, open_reader, say};
use receipt_store::control::Control;
use receipt_store::{Device, ReceiptPath, Result, Stat, Superblock, day, hex};
use serde_json::{Value, json};

/// What `stat` and `get --json` say.
pub fn stat_json(stat: &Stat) -> Value {
    let header = &stat.header;
    json!({
        "path": stat.path.as_str(), "locator": stat.locator().to_string(), "size_bytes": header.data_len,
        "blake3": hex(&header.data_hash), "seq": header.seq, "version": header.version,
        "recorded_at_ms": header.recorded_at_ms, "class": header.class,
        "issued_day": header.issued_day, "issued": day::text(header.issued_day), "epoch": header.epoch,
        "block": header.block, "blocks": header.blocks, "generation": header.generation,
    })
}

/// Shape of a store.
pub fn shape(name: &str, superblock: &Superblock) -> Value {
    let geometry = &superblock.geometry;
    json!({
        "device": name, "uuid": hex(&superblock.uuid), "format": "RS1", "created_at_ms": superblock.created_at_ms,
        "segment_bytes": geometry.segment_bytes, "segments": geometry.segment_count,
        "data_segments": geometry.data_segment_count(),
        "size_bytes": geometry.segment_bytes * geometry.segment_count,
    })
}

/// Prints a JSON object as it is, or one `name: value` a line.
fn say_object(args: &Args, object: &Value) -> Result<()> {
    if args.json {
        return say(&object.to_string());
    }
    for (name, value) in object.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        say(&format!("{name}: {value}"))?;
    }
    Ok(())
}

pub fn stat(args: &Args, path: &str) -> Result<u8> {
    let stat = open_reader(args)?.stat(&ReceiptPath::new(path)?)?;
    say_object(args, &stat_json(&stat))?;
    Ok(0)
}

pub fn list(args: &Args, prefix: &str) -> Result<u8> {
    let mut progress = Progress::beside_output("paths");
    let mut done = 0;
    open_reader(args)?.list(prefix, |locator| {
        done += 1;
        progress.show(done, None);
        if args.json {
            let line =
                json!({ "path": locator.path.as_str(), "locator": locator.to_string(), "seq": locator.seq });
            say(&line.to_string())
        } else {
            say(locator.path.as_str())
        }
    })?;
    Ok(0)
}

pub fn seals(args: &Args, is_retired: bool) -> Result<u8> {
    let reader = open_reader(args)?;
    let spans = if is_retired {
        let retired = reader.retired_segments()?;
        if args.json {
            for one in retired {
                let day = one.newest_issue_day.map(receipt_store::day::text);
                let line =
                    json!({ "range": one.span.to_string(), "receipts": one.receipts, "newest_issued": day });
                say(&line.to_string())?;
            }
            return Ok(0);
        }
        receipt_store::sealed::join_spans(retired.into_iter().map(|one| one.span).collect())
    } else {
        reader.sealed_spans()?
    };
    for span in spans {
        say(&if args.json { json!({ "range": span.to_string() }).to_string() } else { span.to_string() })?;
    }
    Ok(0)
}

pub fn info(args: &Args) -> Result<u8> {
    let reader = open_reader(args)?;
    let superblock = &*reader.superblock()?;
    let control = Control::read(reader.device(), superblock)?;
    let name = super::device_path(args)?.display().to_string();
    let mut object = shape(&name, superblock);
    let usage = reader.usage()?;
    let lease = control.lease.as_ref();
    object["free_segments"] = json!(usage.free_segments);
    object["free_bytes"] = json!(usage.free_segments * superblock.geometry.segment_bytes);
    object["receipts"] = json!(usage.live);
    let fill = reader.index_fill()?;
    object["live_bytes"] = json!(fill.live_bytes);
    let used_bytes = usage.used_segments * superblock.geometry.segment_bytes;
    object["dead_bytes"] = json!(used_bytes.saturating_sub(fill.live_bytes));
    object["index_percent"] = json!(fill.percent);
    object["index_grows_from_bytes"] = json!(superblock.geometry.index_growth_bytes());
    object["last_seq"] = json!(control.head.published_seq);
    object["epoch"] = json!(lease.map(|lease| lease.epoch));
    object["writer_is_open"] = json!(!control.is_closed());
    object["writer_guest"] = json!(lease.map(|lease| lease.guest_name.clone()));
    object["device_bytes"] = json!(reader.device().size_bytes());
    object["direct_io"] = json!(reader.device().is_direct());
    say_object(args, &object)?;
    Ok(0)
}
