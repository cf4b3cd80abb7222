//! The control socket: one JSON object a line in, one out.
//!
//! ```text
//! {"command":"status"}                     {"ok":true,"result":{...}}
//! {"command":"fence","guest":"issuer"}     {"ok":false,"error":"no guest is named issuer"}
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::thread::{self, Scope};
use std::time::Duration;

use log::Level;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::connections::Connections;
use crate::handover::Giver;
use crate::interrupt::Interrupt;
use crate::limits::{CONTROL_ANSWER_SECONDS, CONTROL_CLIENT_SECONDS, MAX_CONTROL_LINE_BYTES};
use crate::log_limit::LogLimit;
use crate::operator::Operator;
use crate::order::ByteRange;
use crate::sandbox::Sandbox;
use crate::shared::Shared;
use crate::socket::Listener;
use crate::stats::Snapshot;
use crate::wire::{sleep_until_readable, wait_readable};

/// How long nobody is let in after that has failed.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// A command as it comes over the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum ControlCommand {
    Status,
    Stats,
    Fence { guest: String },
    Unfence { guest: String },
    Takeover { guest: String },
    ClearPoison,
    Resize { bytes: u64 },
    Seals,
    Seal { ranges: Vec<(u64, u64)> },
    Unseal { ranges: Vec<(u64, u64)> },
    Replace { protocol: u32 },
}

/// What does not change while the process runs.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct StaticStatus {
    pub version: &'static str,
    pub pid: u32,
    pub image: String,
    pub cache: &'static str,
    pub io_engine: &'static str,
    pub logical_block_bytes: u32,
    pub multi_writer: bool,
    pub state_file: String,
    #[serde(skip)]
    pub guests: Vec<StaticGuest>,
}

/// What does not change about a guest.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct StaticGuest {
    pub name: String,
    pub serial: String,
    pub endpoint: String,
    pub reads: &'static str,
}

/// Answers commands.
#[derive(Debug)]
pub struct Control<'a> {
    /// Says what does not change.
    pub fixed: StaticStatus,
    /// What is in force of the sandbox, once that is known.
    pub sandbox: OnceLock<Sandbox>,
    /// Carries out what changes something.
    pub operator: &'a Operator,
    /// Knows the counters.
    pub shared: &'a Shared,
    /// Gives everything to another process.
    pub giver: Option<Giver<'a>>,
    /// Connections at the moment.
    pub connections: Connections,
}

impl<'a> Control<'a> {
    /// Serves connections, each on a thread of `scope`, until the process stops. `thread` is its own number.
    pub fn serve<'s>(
        &'s self,
        listener: &Listener,
        interrupt: &Interrupt,
        thread: usize,
        scope: &'s Scope<'s, '_>,
    ) where
        'a: 's,
    {
        let mut log = LogLimit::default();
        loop {
            match wait_readable(listener.as_fd(), interrupt) {
                Ok(true) => {}
                Ok(false) if interrupt.is_stopping() => return,
                Ok(false) => {
                    interrupt.park(thread, || Ok(None));
                    continue;
                }
                Err(error) => log::warn!("event=control-failed error=\"{error}\""),
            }
            match listener.accept() {
                Ok(Some(stream)) => self.start_connection(stream, scope, &mut log),
                Ok(None) => {}
                // Out of descriptors or the like: it passes, and who connects stays where he is meanwhile.
                Err(error) => {
                    log.log(Level::Warn, format_args!("event=control-failed error=\"{error}\""));
                    sleep_until_readable(interrupt.event(), PAUSE_AFTER_ERROR);
                }
            }
        }
    }

    /// Nobody is heard while there are too many already, or no thread is to be had.
    fn start_connection<'s>(&'s self, stream: UnixStream, scope: &'s Scope<'s, '_>, log: &mut LogLimit)
    where
        'a: 's,
    {
        let Some((number, stream)) = self.connections.add(stream) else { return };
        let serve = move || {
            if let Err(error) = self.serve_connection(&stream) {
                log::debug!("event=control-client-gone error=\"{error}\"");
            }
            self.connections.remove(number);
        };
        if let Err(error) = thread::Builder::new().name("operator".into()).spawn_scoped(scope, serve) {
            self.connections.remove(number);
            log.log(Level::Warn, format_args!("event=control-failed error=\"{error}\""));
        }
    }

    fn serve_connection(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(CONTROL_CLIENT_SECONDS)))?;
        stream.set_write_timeout(Some(Duration::from_secs(CONTROL_ANSWER_SECONDS)))?;
        let mut lines = BufReader::new(stream);
        loop {
            let mut line = String::new();
            if lines.by_ref().take(MAX_CONTROL_LINE_BYTES).read_line(&mut line)? == 0 {
                return Ok(());
            }
            let answer = match serde_json::from_str(&line) {
                Ok(ControlCommand::Replace { protocol }) => match self.start_replacement(stream, protocol) {
                    Ok(giver) => return self.replace(giver, stream),
                    Err(error) => failure(&error),
                },
                Ok(command) => self.answer(&command),
                Err(error) => failure(&format!("not a command: {error}")),
            };
            let mut writer = stream;
            writer.write_all(format!("{answer}\n").as_bytes())?;
        }
    }

    fn answer(&self, command: &ControlCommand) -> Value {
        let done = match command {
            ControlCommand::Status => return success(self.status()),
            ControlCommand::Stats => return success(self.stats()),
            ControlCommand::Fence { guest } => self.operator.fence(guest),
            ControlCommand::Unfence { guest } => self.operator.unfence(guest),
            ControlCommand::Takeover { guest } => self.operator.take_over(guest),
            ControlCommand::ClearPoison => self.operator.clear_poison(),
            ControlCommand::Resize { bytes } => self.operator.resize(*bytes),
            ControlCommand::Seals => return success(self.seals()),
            ControlCommand::Seal { ranges } => self.operator.seal(&byte_ranges(ranges)),
            ControlCommand::Unseal { ranges } => self.operator.unseal(&byte_ranges(ranges)),
            // A conversation of its own.
            ControlCommand::Replace { .. } => return failure("not here"),
        };
        match done {
            Ok(()) => {
                log::info!("event=operator command='{}'", shown(command));
                success(Value::Null)
            }
            Err(error) => {
                log::warn!("event=operator command='{}' error=\"{error}\"", shown(command));
                failure(&error.to_string())
            }
        }
    }

    fn start_replacement(&self, stream: &UnixStream, protocol: u32) -> Result<&Giver<'a>, String> {
        let giver = self.giver.as_ref().ok_or("there is no control socket to hand over")?;
        giver.check(stream, protocol).map(|()| giver).map_err(|error| {
            log::warn!("event=not-replaced error=\"{error}\"");
            error.to_string()
        })
    }

    /// The end of this process, unless the new one does not make it.
    fn replace(&self, giver: &Giver<'_>, mut stream: &UnixStream) -> io::Result<()> {
        stream.write_all(format!("{}\n", success(Value::Null)).as_bytes())?;
        if let Err(error) = giver.give(stream) {
            log::warn!("event=not-replaced error=\"{error}\" guests go on here");
        }
        Ok(())
    }

    fn status(&self) -> Value {
        let guest = |(index, guest): (usize, &StaticGuest)| {
            let standing = self.operator.standing(index);
            json!({
                "name": guest.name, "serial": guest.serial, "endpoint": guest.endpoint, "reads": guest.reads,
                "access": standing.access, "fenced": standing.fenced,
                "connected": self.shared.stats(index).snapshot().connected,
            })
        };
        let guests: Vec<Value> = self.fixed.guests.iter().enumerate().map(guest).collect();
        let mut status = json!(self.fixed);
        status["sandbox"] = json!(self.sandbox.get());
        status["capacity_bytes"] = json!(self.shared.disk.image().capacity_bytes());
        status["poisoned"] = json!(self.shared.disk.is_poisoned());
        status["syncs"] = json!(self.shared.disk.syncs());
        status["recovery"] = json!(self.shared.recovery.report());
        let seals = self.operator.seals();
        status["may_seal"] = json!(self.operator.may_seal());
        status["sealed_ranges"] = json!(seals.ranges().len());
        status["sealed_bytes"] = json!(seals.len_bytes());
        status["guests"] = json!(guests);
        status
    }

    fn seals(&self) -> Value {
        let text = |range: &ByteRange| format!("{}-{}", range.start, range.end);
        json!(self.operator.seals().ranges().iter().map(text).collect::<Vec<_>>())
    }

    fn stats(&self) -> Value {
        #[derive(Serialize)]
        struct Named<'n> {
            name: &'n str,
            #[serde(flatten)]
            counters: Snapshot,
        }
        let guests: Vec<Value> = self
            .fixed
            .guests
            .iter()
            .enumerate()
            .map(|(index, guest)| {
                json!(Named { name: &guest.name, counters: self.shared.stats(index).snapshot() })
            })
            .collect();
        json!({ "syncs": self.shared.disk.syncs(), "guests": guests })
    }
}

/// A command in the log: as it came, on one line.
fn shown(command: &ControlCommand) -> String {
    serde_json::to_string(command).unwrap_or_default()
}

fn byte_ranges(pairs: &[(u64, u64)]) -> Vec<ByteRange> {
    pairs.iter().map(|(start, end)| ByteRange { start: *start, end: *end }).collect()
}

fn success(result: Value) -> Value {
    json!({ "ok": true, "result": result })
}

fn failure(error: &str) -> Value {
    json!({ "ok": false, "error": error })
}
