//! `receiptdisk-backend ctl`, as an operator types it.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::bins::backend_binary;
use crate::child::die_with_parent;

/// An operator of the backend that listens on a control socket.
#[derive(Debug, Clone)]
pub struct Ctl {
    socket: PathBuf,
}

impl Ctl {
    /// The operator at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Runs a command to its end: what it answers, or why it did not.
    ///
    /// # Errors
    /// The reason that the backend gives.
    pub fn run(&self, command: &[&str]) -> Result<Value, String> {
        Self::answer(&self.start(command).wait_with_output().unwrap())
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&self, command: &[&str]) -> Value {
        self.run(command).unwrap_or_else(|error| panic!("ctl {command:?}: {error}"))
    }

    /// Starts a command that may take long; [`Ctl::answer`] reads its output.
    pub fn start(&self, command: &[&str]) -> Child {
        let mut ctl = Command::new(backend_binary());
        ctl.arg("ctl").arg("--control").arg(&self.socket).arg("--json").args(command);
        die_with_parent(&mut ctl).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What a command that has ended answered.
    ///
    /// # Errors
    /// The reason that the backend gives.
    #[track_caller]
    pub fn answer(output: &Output) -> Result<Value, String> {
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match (output.status.success(), &answer["error"]) {
            (true, Value::Null) => Ok(answer),
            (false, Value::String(error)) => Err(error.clone()),
            _ => panic!("neither an answer nor an error: {output:?}"),
        }
    }

    /// What `ctl status` says of a guest.
    #[track_caller]
    pub fn guest(&self, name: &str) -> Value {
        named(&self.ok(&["status"]), name)
    }

    /// What `ctl stats` counts for a guest.
    #[track_caller]
    pub fn stats(&self, name: &str) -> Value {
        named(&self.ok(&["stats"]), name)
    }
}

#[track_caller]
fn named(answer: &Value, name: &str) -> Value {
    let guests = answer["guests"].as_array().expect("a list of guests");
    guests.iter().find(|guest| guest["name"] == name).expect("the guest is listed").clone()
}
