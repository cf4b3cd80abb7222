//! `receipt-gateway`: the HTTP face of the two subsystems. The issuer stores receipts and answers paths, the front end answers images.

mod answer;
mod args;
mod body;
mod disk;
mod front;
mod ids;
mod issuer;
mod limits;
mod log;
mod metrics;
mod server;
mod stream;
mod target;

use clap::Parser;
use receipt_store::stop::StopSignals;
use receipt_store::{Error, Result};
use std::process::ExitCode;

fn main() -> ExitCode {
    let signals = StopSignals::block();
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print(); // nowhere to report a closed terminal
            return ExitCode::from(code);
        }
    };
    match run(&args, &signals) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("receipt-gateway: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &args::Args, signals: &StopSignals) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(limits::worker_threads())
        .max_blocking_threads(limits::BLOCKING_THREADS)
        .thread_stack_size(limits::THREAD_STACK_BYTES)
        .enable_all()
        .build()
        .map_err(|source| Error::File { name: "the threads of the gateway".to_owned(), source })?;
    let done = match &args.command {
        args::Command::Issuer(options) => issuer::run(options, &runtime, signals),
        args::Command::Front(options) => front::run(options, &runtime, signals),
    };
    // A read that a dead disk never answers must not keep the process.
    runtime.shutdown_timeout(limits::LAST_WAIT);
    done
}
