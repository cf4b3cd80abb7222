//! QEMU's control socket (QMP): a command and its answer, events in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::wait::{SAFETY_NET, listening};

/// A connection to it.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
    /// Events that came and were not asked for yet.
    events: Vec<Value>,
}

impl Qmp {
    /// Waits until QEMU listens.
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        let stream = listening(|| UnixStream::connect(socket));
        stream.set_read_timeout(Some(SAFETY_NET)).unwrap();
        let answers = BufReader::new(stream.try_clone().unwrap());
        let mut qmp = Self { stream, answers, events: Vec::new() };
        assert!(qmp.line()["QMP"].is_object(), "no greeting");
        qmp.ok("qmp_capabilities", &json!({}));
        qmp
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&mut self, command: &str, arguments: &Value) -> Value {
        self.run(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Runs a command.
    ///
    /// # Errors
    /// The reason that QEMU gives.
    #[track_caller]
    pub fn run(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        writeln!(self.stream, "{}", json!({"execute": command, "arguments": arguments})).unwrap();
        loop {
            let line = self.line();
            match (line.get("return"), line.get("error")) {
                (Some(value), _) => return Ok(value.clone()),
                (_, Some(error)) => return Err(error["desc"].as_str().unwrap().to_owned()),
                _ => self.events.push(line),
            }
        }
    }

    /// Waits for the event of this name.
    #[track_caller]
    pub fn wait_for(&mut self, event: &str) -> Value {
        loop {
            if let Some(at) = self.events.iter().position(|line| line["event"] == event) {
                return self.events.swap_remove(at);
            }
            let line = self.line();
            self.events.push(line);
        }
    }

    #[track_caller]
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}
