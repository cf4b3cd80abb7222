//! `receipt rm`.

use super::args::Args;
use super::sink::Sink;
use super::{complain, say};
use receipt_store::layout::BATCH_RECORDS_MAX;
use receipt_store::{OwnedChange, ReceiptPath, Result};

/// Removes the paths, up to 256 of them with one flush; what cannot be removed is named and the rest goes on.
pub fn run(args: &Args, paths: &[String]) -> Result<u8> {
    let paths: Vec<ReceiptPath> = paths.iter().map(|path| ReceiptPath::new(path)).collect::<Result<_>>()?;
    let mut writer = Sink::open(args)?;
    let mut first_code = 0;
    for chunk in paths.chunks(BATCH_RECORDS_MAX) {
        let changes: Vec<OwnedChange> =
            chunk.iter().map(|path| OwnedChange::Remove { path: path.clone() }).collect();
        for answer in writer.commit(&changes)? {
            match answer {
                Ok(removed) if args.json => {
                    let locator = &removed.locator;
                    let line = serde_json::json!({
                        "path": locator.path.as_str(), "seq": locator.seq, "version": removed.version,
                    });
                    say(&line.to_string())?;
                }
                Ok(removed) => say(removed.locator.path.as_str())?,
                Err(error) => {
                    let code = complain(args, &error);
                    first_code = if first_code == 0 { code } else { first_code };
                }
            }
        }
    }
    writer.close()?;
    Ok(first_code)
}
