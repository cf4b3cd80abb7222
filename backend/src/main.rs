//! receiptdisk-backend: see the library.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use receiptdisk_backend::args::{Action, Cli};
use receiptdisk_backend::ctl::{self, CtlError};
use receiptdisk_backend::error::StartError;
use receiptdisk_backend::server::serve;

/// Exit status of bad usage and of everything that keeps the backend from starting.
const EXIT_USAGE: u8 = 2;

/// What QEMU's vhost-user backend convention wants to know (`docs/interop/vhost-user.rst`).
const CAPABILITIES: &str = r#"{"type":"block","features":["read-only","blk-file"]}"#;

fn main() -> ExitCode {
    let log = env_logger::Env::default().default_filter_or("info,virtio_queue=off");
    env_logger::Builder::from_env(log).format_target(false).init();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            let _ = error.print(); // whoever closed it has seen enough
            return ExitCode::SUCCESS;
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return fail("error: ctl: a command is missing, such as status; see ctl --help");
        }
        Err(error) => return fail(&one_line(&error.to_string())),
    };
    match cli.into_action() {
        Ok(Action::PrintCapabilities) => {
            let told = writeln!(std::io::stdout(), "{CAPABILITIES}");
            if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(Action::Serve(config)) => match serve(&config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error @ StartError::LastSync(_)) => {
                eprintln!("receiptdisk-backend: error: {error}");
                ExitCode::FAILURE
            }
            Err(error) => fail(&format!("error: {error}")),
        },
        Ok(Action::Ctl { socket, commands, as_json, patience }) => {
            match commands.iter().try_for_each(|command| ctl::run(&socket, command, as_json, patience)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(
                    error @ (CtlError::Refused(_)
                    | CtlError::Output(_)
                    | CtlError::Silent { .. }
                    | CtlError::Gone(_)),
                ) => {
                    eprintln!("receiptdisk-backend: error: {error}");
                    ExitCode::FAILURE
                }
                Err(error) => fail(&format!("error: {error}")),
            }
        }
        Err(error) => fail(&format!("error: {error}")),
    }
}

/// What is wrong, without the usage text that follows.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    format!("{}; see --help", words.join(" "))
}

fn fail(line: &str) -> ExitCode {
    eprintln!("receiptdisk-backend: {line}");
    ExitCode::from(EXIT_USAGE)
}
