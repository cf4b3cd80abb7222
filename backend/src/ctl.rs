//! `ctl`: asks a running backend over its control socket and prints the answer.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

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
    #[error("it is done, but standard output cannot be written: {0}")]
    Output(#[from] io::Error),
    #[error("{0}")]
    Refused(String),
}

/// Sends one command; prints the result for people, or as JSON.
///
/// # Errors
/// See [`CtlError`].
pub fn run(socket: &Path, command: &ControlCommand, as_json: bool) -> Result<(), CtlError> {
    let answer =
        ask(socket, command).map_err(|error| CtlError::Unreachable { path: socket.into(), error })?;
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

fn ask(socket: &Path, command: &ControlCommand) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "{}", serde_json::to_string(command)?)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer)
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
