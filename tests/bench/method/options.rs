//! Options.

use std::path::PathBuf;

const HELP: &str = "\
tests/bench.sh method [OPTIONS] [PEER...]

  PEER             only these: receiptdisk, gateways, base64, raw, virtiofs, nfs, readers (default: all)
  --count N        receipts of each measurement and round (default $RECEIPTDISK_METHOD_COUNT or 500)
  --rounds N       the peers take turns so often (default 2)
  --bytes N        bytes of a receipt (default 102400)
  --threads N      concurrent requests of the second half of the measurements (default 8)
  --folder DIR     where the image and the shared folder lie (default: the system's temporary folder)
  --cache MODE     the backend's: direct (default) or page
  --json FILE      all figures
  --svg FILE       the chart";

const PEERS: [&str; 7] = ["receiptdisk", "gateways", "base64", "raw", "virtiofs", "nfs", "readers"];

/// See `HELP`.
#[derive(Debug)]
pub struct Options {
    pub count: u64,
    pub rounds: u64,
    pub bytes: u64,
    pub threads: u64,
    pub folder: PathBuf,
    pub cache: String,
    pub only: Vec<String>,
    pub json: Option<PathBuf>,
    pub svg: Option<PathBuf>,
}

impl Options {
    /// Ends the program where they make no sense.
    pub fn from_command_line() -> Self {
        let count = std::env::var("RECEIPTDISK_METHOD_COUNT").ok();
        let mut options = Self {
            count: count.map_or(500, |text| number(&text)),
            rounds: 2,
            bytes: 100 << 10,
            threads: 8,
            folder: std::env::temp_dir(),
            cache: "direct".to_owned(),
            only: Vec::new(),
            json: None,
            svg: None,
        };
        let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| refuse(&arg));
            match arg.as_str() {
                "--rounds" => options.rounds = number(&value()),
                "--count" => options.count = number(&value()),
                "--bytes" => options.bytes = number(&value()),
                "--threads" => options.threads = number(&value()),
                "--folder" => options.folder = value().into(),
                "--cache" => options.cache = value(),
                "--json" => options.json = Some(value().into()),
                "--svg" => options.svg = Some(value().into()),
                _ if PEERS.contains(&arg.as_str()) => options.only.push(arg),
                _ => refuse(&arg),
            }
        }
        options
    }

    /// Whether a peer, or `readers`, is asked for.
    pub fn wants(&self, key: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == key)
    }
}

fn number(text: &str) -> u64 {
    text.parse().ok().filter(|number| *number > 0).unwrap_or_else(|| refuse(text))
}

fn refuse(arg: &str) -> ! {
    let is_question = ["--help", "-h"].contains(&arg);
    if is_question {
        println!("{HELP}");
    } else {
        eprintln!("{arg}?\n\n{HELP}");
    }
    std::process::exit(if is_question { 0 } else { 2 })
}
