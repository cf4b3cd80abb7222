//! `ctl`: asks a running backend over its control socket and prints the answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde_json::{Value, json};
use thiserror::Error;

use crate::control::ControlCommand;

/// Why there is no answer.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum CtlError {
    #[error("control socket {path}: {error}; does a backend with --control {path} run?")]
    Unreachable { path: PathBuf, error: io::Error },
    #[error("control socket {0}: the answer is not understood")]
    BadAnswer(PathBuf),
    #[error(
        "control socket {path}: no answer within {seconds} seconds; the backend is stopped, or busy: it may still carry the command out (--timeout waits longer)"
    )]
    Silent { path: PathBuf, seconds: u64 },
    #[error("control socket {0}: the backend has ended, or another one has taken its place; ask again")]
    Gone(PathBuf),
    #[error("it is done, but standard output cannot be written: {0}")]
    Output(#[from] io::Error),
    #[error("{0}")]
    Refused(String),
}

/// Sends one command and waits at most `patience` for the answer; prints the result for people, or as JSON.
///
/// # Errors
/// See [`CtlError`].
pub fn run(
    socket: &Path,
    command: &ControlCommand,
    as_json: bool,
    patience: Duration,
) -> Result<(), CtlError> {
    let answer = ask(socket, command, Instant::now() + patience).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            CtlError::Silent { path: socket.into(), seconds: patience.as_secs() }
        }
        _ => CtlError::Unreachable { path: socket.into(), error },
    })?;
    if answer.is_empty() {
        return Err(CtlError::Gone(socket.into()));
    }
    let answer: Value = serde_json::from_str(&answer).map_err(|_| CtlError::BadAnswer(socket.into()))?;
    if answer["ok"] != Value::Bool(true) {
        let error = answer["error"].as_str().ok_or_else(|| CtlError::BadAnswer(socket.into()))?;
        if as_json {
            say(&format!("{}\n", json!({ "error": error })))?;
        }
        return Err(CtlError::Refused(error.to_owned()));
    }
    match &answer["result"] {
        Value::Null if as_json => say("{}\n"),
        result if as_json => say(&format!("{result}\n")),
        result => say(&for_people(result)),
    }
}

/// Writes to standard output; whoever has closed it has seen enough.
fn say(text: &str) -> Result<(), CtlError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CtlError::Output(error)),
        _ => Ok(()),
    }
}

/// The answer's line, without the end of the line; empty if the backend hangs up.
fn ask(socket: &Path, command: &ControlCommand, deadline: Instant) -> io::Result<String> {
    let mut stream = connect(socket, deadline)?;
    stream.set_write_timeout(Some(left(deadline)))?;
    writeln!(stream, "{}", serde_json::to_string(command)?)?;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"\n") {
        stream.set_read_timeout(Some(left(deadline)))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error),
        }
    }
    String::from_utf8(answer).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Waits at most until `deadline` where others wait to be let in.
fn connect(socket: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&stream, Timeout::Send, Some(left(deadline)))?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(socket)?)?;
    Ok(stream.into())
}

/// No time at all would mean for ever.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// One `key: value` a line; a list of guests becomes a table, any other list a line each.
fn for_people(result: &Value) -> String {
    let fields = match result {
        Value::Object(fields) => fields,
        Value::Array(lines) => return lines.iter().map(|line| format!("{}\n", plain(line))).collect(),
        _ => return String::new(),
    };
    let mut text = String::new();
    for (key, value) in fields.iter().filter(|(key, _)| *key != "guests") {
        text.push_str(&format!("{key}: {}\n", plain(value)));
    }
    if let Some(Value::Array(guests)) = fields.get("guests") {
        text.push_str(&table(guests));
    }
    text
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Columns in the order of the keys, but the name first.
fn table(rows: &[Value]) -> String {
    let Some(Value::Object(first)) = rows.first() else {
        return String::new();
    };
    let mut keys: Vec<&String> = first.keys().collect();
    keys.sort_by_key(|key| *key != "name");
    let mut cells: Vec<Vec<String>> = vec![keys.iter().map(|key| (*key).clone()).collect()];
    cells.extend(rows.iter().map(|row| keys.iter().map(|key| plain(&row[key.as_str()])).collect()));
    let width = |column: usize| cells.iter().map(|row: &Vec<String>| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..keys.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let padded: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    cells.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_get_lines_and_a_table() {
        let result = json!({ "syncs": 3, "image": "a b", "guests": [
            { "access": "rw", "name": "issuer" }, { "access": "standby", "name": "b" },
        ]});
        let text = "image: a b\nsyncs: 3\nname    access\nissuer  rw\nb       standby\n";
        assert_eq!(for_people(&result), text);
        assert_eq!(for_people(&json!(["0-4096", "8192-16384"])), "0-4096\n8192-16384\n");
    }
}
