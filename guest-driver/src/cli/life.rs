//! `receipt policy`, `hold`, `release`, `expire`, `erase` and `grow`: here, or by the process that holds the writer.
//!
//! Orders and events are JSON objects, so that both ways say the same.

use super::args::{Args, Command, PolicyCommand};
use super::progress::Progress;
use super::{device_path, open_reader, say, writer_options};
use receipt_store::orders::perform;
use receipt_store::policy::Retention;
use receipt_store::{Error, RawDevice, Result, Term, Writer, day, hex, wire};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The order of a command line.
fn order(command: &Command) -> Result<Value> {
    let date = |text: &Option<String>| text.as_deref().map(day::parse).transpose();
    Ok(match command {
        Command::Policy { command: Some(PolicyCommand::Set { class, years, from_year_end }) } => {
            json!({ "do": "policy", "class": class, "years": years, "from_year_end": from_year_end })
        }
        Command::Hold { prefix: Some(prefix), until } => {
            let until = date(until)?;
            refuse_past(until)?;
            json!({ "do": "hold", "prefix": prefix, "until": until })
        }
        Command::Release { prefix } => json!({ "do": "release", "prefix": prefix }),
        Command::Expire { dry_run, today, compact, pace } => {
            json!({ "do": "expire", "dry_run": dry_run, "today": date(today)?, "compact": compact, "pace": pace })
        }
        Command::Grow => json!({ "do": "grow" }),
        Command::Erase { path, reason } => json!({ "do": "erase", "path": path, "reason": reason }),
        _ => return Err(Error::Usage("no order".to_owned())),
    })
}

/// A hold that is over when it is made keeps nothing: a slip of the pen.
fn refuse_past(until: Option<u32>) -> Result<()> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let today = u32::try_from(since_1970.as_secs() / (day::DAY_MS / 1000)).unwrap_or(u32::MAX);
    match until.filter(|until| *until < today) {
        Some(until) => {
            Err(Error::Usage(format!("--until {} is over: today is {}", day::text(until), day::text(today))))
        }
        None => Ok(()),
    }
}

/// Runs a command; a list of policy and holds needs no writer.
pub fn run(args: &Args) -> Result<u8> {
    match &args.command {
        Command::Policy { command: None | Some(PolicyCommand::List) }
        | Command::Hold { prefix: None, .. } => {
            return list(args);
        }
        Command::Expire { dry_run: true, .. } => {
            let reader = open_reader(args)?;
            let mut printer = Printer::new(args);
            return perform(&order(&args.command)?, None, &reader, &mut |event| printer.print(event))
                .and_then(|()| printer.end());
        }
        _ => {}
    }
    let order = order(&args.command)?;
    let path = device_path(args)?;
    let deadline = super::deadline(args);
    let mut printer = Printer::new(args);
    loop {
        let name = match RawDevice::open_writer(&path) {
            Err(Error::Busy { name }) => name,
            device => {
                let mut writer = Writer::open(device?, &writer_options(path.display().to_string()))?;
                let reader = open_reader(args)?;
                let done = perform(&order, Some(&mut |step| step(&mut writer)), &reader, &mut |event| {
                    printer.print(event)
                });
                return done.and(writer.close()).and_then(|()| printer.end());
            }
        };
        if let Ok(mut stream) = UnixStream::connect(&args.socket) {
            let store = hex(&open_reader(args)?.superblock()?.uuid);
            wire::write_frame(&mut stream, &json!({ "store": store, "order": order }))?;
            return follow(&mut stream, &mut printer);
        }
        if Instant::now() >= deadline {
            return Err(Error::Busy { name });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Prints what the running writer does.
fn follow(stream: &mut UnixStream, printer: &mut Printer<'_>) -> Result<u8> {
    loop {
        let frame = wire::read_frame(stream)?;
        if let Some(text) = frame["error"].as_str() {
            let exit_code = frame["exit_code"].as_u64().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Err(Error::Remote { text: text.to_owned(), exit_code });
        }
        if frame["done"] == true {
            return printer.end();
        }
        printer.print(frame)?;
    }
}

/// Policy and holds, one a line.
fn list(args: &Args) -> Result<u8> {
    let reader = open_reader(args)?;
    let retention = Retention::read(reader.device(), &*reader.superblock()?)?;
    let policy = &retention.policy;
    if args.json {
        say(
            &json!({ "confirmed_day": (policy.confirmed_day > 0).then(|| day::text(policy.confirmed_day)) })
                .to_string(),
        )?;
    } else if policy.confirmed_day > 0 {
        say(&format!("today is not before {}", day::text(policy.confirmed_day)))?;
    }
    for (class, term) in
        policy.terms.iter().enumerate().filter(|(class, term)| *class == 0 || **term != Term::None)
    {
        if args.json {
            say(&json!({ "class": class, "term": term.to_string() }).to_string())?;
        } else {
            say(&format!("class {class}: {term}"))?;
        }
    }
    for (_, hold) in &retention.holds {
        let (prefix, until) = (String::from_utf8_lossy(&hold.prefix), hold.until_day.map(day::text));
        if args.json {
            say(&json!({ "hold": prefix, "until": until }).to_string())?;
        } else {
            say(&format!("hold {prefix}: until {}", until.as_deref().unwrap_or("it is released")))?;
        }
    }
    Ok(0)
}

/// Prints events: as they are with `--json`, otherwise paths to standard output and the rest to standard error.
struct Printer<'a> {
    args: &'a Args,
    progress: Progress,
}

impl<'a> Printer<'a> {
    fn new(args: &'a Args) -> Self {
        Self { args, progress: Progress::new("segments") }
    }

    fn print(&mut self, event: Value) -> Result<()> {
        if let Some(done) = event["progress"].as_u64() {
            self.progress.show(done, event["of"].as_u64());
            return Ok(());
        }
        if self.args.json {
            return say(&event.to_string());
        }
        for name in ["expired", "erased"] {
            if let Some(path) = event[name].as_str() {
                return say(path);
            }
        }
        self.progress.end();
        let object = event.as_object().into_iter().flatten();
        let words: Vec<String> = object
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                format!("{}: {value}", name.replace('_', " "))
            })
            .collect();
        eprintln!("{}", words.join(", "));
        Ok(())
    }

    fn end(&mut self) -> Result<u8> {
        self.progress.end();
        Ok(0)
    }
}
