//! `receipt-render`: electronic bank receipts from a CSV file as PNG pictures.

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use clap::Parser;

use receipt_store::render::Renderer;
use receipt_store::render::fonts::SYSTEM_FONT_DIR;
use receipt_store::render::record::ReceiptRecord;
use receipt_store::render::sample::sample;
use receipt_store::render::table;

/// Draws electronic bank receipts.
#[derive(Parser)]
#[command(name = "receipt-render", version)]
#[command(
    after_help = "With --csv, each receipt becomes DIR/YYYY/MM/DD/SERIAL.png and its path is printed.\n\
    With --sample, a CSV file of fictitious receipts is printed. The two work together:\n\n    \
    receipt-render --sample 100 > sample.csv && receipt-render --csv sample.csv --out receipts"
)]
struct Arguments {
    /// The receipts, one a line; the first line names the columns (see --sample 1)
    #[arg(long, value_name = "FILE", required_unless_present = "sample", requires = "out")]
    csv: Option<PathBuf>,
    /// The folder for the pictures
    #[arg(long, value_name = "DIR", requires = "csv")]
    out: Option<PathBuf>,
    /// Print a CSV file of N fictitious receipts, the same ones every time
    #[arg(long, value_name = "N", conflicts_with = "csv")]
    sample: Option<u32>,
    /// Look for fonts here too (may be repeated)
    #[arg(long, value_name = "DIR")]
    font_dir: Vec<PathBuf>,
}

/// Between two moments at which all threads wait for each other.
const RECEIPTS_PER_THREAD: usize = 8;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("receipt-render: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), String> {
    if let Some(count) = arguments.sample {
        return table::write_csv(sample(count), io::stdout().lock()).map_err(|error| error.to_string());
    }
    let (Some(csv), Some(out)) = (arguments.csv, arguments.out) else {
        return Err("--csv and --out are needed".to_owned());
    };
    let file = File::open(&csv).map_err(|error| format!("{}: {error}", csv.display()))?;
    let records =
        table::read_csv(BufReader::new(file)).map_err(|error| format!("{}: {error}", csv.display()))?;
    let mut font_folders = arguments.font_dir;
    font_folders.push(PathBuf::from(SYSTEM_FONT_DIR));
    let renderer = Renderer::new(&font_folders).map_err(|error| error.to_string())?;
    draw_all(&renderer, &records, &out)
}

/// Draws on all processors, a few receipts each at a time, so that the paths come out in the order of the file.
fn draw_all(renderer: &Renderer, records: &[ReceiptRecord], out: &Path) -> Result<(), String> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    for round in records.chunks(threads * RECEIPTS_PER_THREAD) {
        thread::scope(|scope| {
            let parts = round.chunks(RECEIPTS_PER_THREAD);
            let workers: Vec<_> =
                parts.map(|part| scope.spawn(move || draw_some(renderer, part, out))).collect();
            workers.into_iter().try_for_each(|worker| {
                worker.join().unwrap_or_else(|_| Err("a drawing thread ended early".to_owned()))
            })
        })?;
        for record in round {
            writeln!(io::stdout(), "{}", record.path()).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn draw_some(renderer: &Renderer, records: &[ReceiptRecord], out: &Path) -> Result<(), String> {
    for record in records {
        let path = record.path();
        let picture = renderer.render(record).map_err(|error| format!("{path}: {error}"))?;
        let file = out.join(&path);
        write_file(&file, &picture).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

fn write_file(file: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, content)
}
