//! `receipt checkpoint`, `verify --from` and `follow`.

use super::args::Args;
use super::{file_error, open_reader, say, show};
use receipt_store::follow::Event;
use receipt_store::note::Note;
use receipt_store::record::FLAG_MOVED;
use receipt_store::{Error, Result, hex};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

pub fn checkpoint(args: &Args) -> Result<u8> {
    let note = open_reader(args)?.note()?;
    say_note(args, &note, None)?;
    Ok(0)
}

fn say_note(args: &Args, note: &Note, checked: Option<u64>) -> Result<()> {
    if args.json {
        let mut line = serde_json::json!({
            "note": note.to_string(), "uuid": hex(&note.uuid), "seq": note.seq, "hash": hex(&note.hash),
        });
        if let Some(checked) = checked {
            line["records"] = checked.into();
        }
        return say(&line.to_string());
    }
    say(&note.to_string())
}

/// Checks the chain from a note to the head and prints the note of the head.
pub fn verify_from(args: &Args, file: &Path) -> Result<u8> {
    let mut text = String::new();
    let limit = 1 << 12; // a note has one line
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.map_err(|error| file_error(file, error))?;
    let Some(note) = Note::parse(&text) else {
        return Err(Error::Usage(format!(
            "{} holds no head note (`receipt checkpoint` prints one)",
            file.display()
        )));
    };
    let mut progress = super::Progress::new("records");
    let (records, head) =
        open_reader(args)?.verify_from(&note, |done, all| progress.show(done, Some(all)))?;
    progress.end();
    if !args.json {
        eprintln!("{records} records since the note, all in the chain");
    }
    say_note(args, &head, Some(records))?;
    Ok(0)
}

/// Prints changes as they are acknowledged: `SEQ<TAB>PATH`, and a third field `removed` for a removal.
pub fn follow(args: &Args, from: Option<u64>, poll_ms: u64, once: bool) -> Result<u8> {
    let reader = open_reader(args)?;
    let mut follower = reader.follow(from)?;
    loop {
        // Silent when there is nothing new; a line while it catches up with much.
        let mut progress = super::Progress::beside_output("changes");
        let mut done = 0;
        reader.poll(&mut follower, |event| {
            done += 1;
            progress.show(done, None);
            say_event(args, &event)
        })?;
        progress.end();
        if once {
            return Ok(0);
        }
        std::thread::sleep(Duration::from_millis(poll_ms.max(1)));
    }
}

fn say_event(args: &Args, event: &Event) -> Result<()> {
    let (path, seq) = (&event.stat.path, event.stat.header.seq);
    if args.json {
        let mut line = show::stat_json(&event.stat);
        line["removed"] = event.is_removal.into();
        line["moved"] = (event.stat.header.flags & FLAG_MOVED != 0).into();
        return say(&line.to_string());
    }
    let is_copy = event.stat.header.flags & FLAG_MOVED != 0;
    let what = if event.is_removal {
        "\tremoved"
    } else if is_copy {
        "\tmoved"
    } else {
        ""
    };
    say(&format!("{seq}\t{path}{what}"))
}
