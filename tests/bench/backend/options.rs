//! What to measure.

use std::path::PathBuf;

use receiptdisk_tests::backend_binary;

use crate::load::{LOADS, Load};
use crate::peers::{Peer, Place};

const HELP: &str = "\
tests/bench.sh backend [OPTION...]        peers take turns in each round; the table has medians
  --rounds N            rounds (5)
  --seconds S           seconds of each measurement, after a quarter of it to warm up (1)
  --place tmpfs|file    tmpfs with the page cache, or a file with direct IO (both)
  --folder DIR          where that file is made (the system's place for temporary files)
  --pin yes|no          backend on CPU 0 and load on CPU 1, or free (both)
  --load TEXT           loads whose name has this in it; 'beside' (what slow operations of another guest cost) and 'queues of' only so
  --peer TEXT           peers whose name has this in it
  --own NAME=PROGRAM[ OPTION...]     this backend once more: another build, other options of serve; - is the usual build
  --tracked NAME=PROGRAM[ OPTION...] the same, with what is in flight kept across a kill of the backend, as QEMU has it kept
  --socket NAME=PATH[,PATH]          a backend that runs already, with a disk of any kind behind each socket
  --json FILE, --svg FILE            where results and chart go
  --with FILE           results of an earlier run, to be judged and drawn with those of this one
Others' work on the same processors is counted: what took more than 5 % is measured again, up to three times.";

/// The choices of the command line.
pub struct Options {
    pub rounds: u64,
    pub seconds: f64,
    pub places: Vec<Place>,
    pub folder: PathBuf,
    pub pinned: Vec<bool>,
    pub loads: Vec<Load>,
    pub peers: Vec<Peer>,
    pub with: Vec<PathBuf>,
    pub json: Option<PathBuf>,
    pub svg: Option<PathBuf>,
}

impl Options {
    /// Reads them, or says what there is and ends.
    pub fn from_command_line() -> Self {
        let mut options = Self {
            rounds: 5,
            seconds: 1.0,
            places: vec![Place { name: "tmpfs", direct: false }, Place { name: "file", direct: true }],
            folder: std::env::temp_dir(),
            pinned: vec![true, false],
            loads: LOADS.into_iter().filter(|load| !load.is_extra()).collect(),
            peers: vec![Peer::own(), Peer::polling()],
            with: Vec::new(),
            json: None,
            svg: None,
        };
        options.peers.extend(["threads", "native", "io_uring"].map(|aio| Peer::StorageDaemon { aio }));
        options.peers.push(Peer::Fio);
        let mut wanted = Vec::new();
        // Cargo adds an argument of its own.
        let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
        while let Some(name) = args.next() {
            let Some(value) = args.next().filter(|_| name != "--help") else { usage() };
            options.set(&name, value, &mut wanted);
        }
        if !wanted.is_empty() {
            options.peers.retain(|peer| wanted.iter().any(|text: &String| peer.name().contains(text)));
        }
        options
    }

    fn set(&mut self, name: &str, value: String, wanted: &mut Vec<String>) {
        let number = || value.parse().unwrap_or_else(|_| usage());
        match (name, value.as_str()) {
            ("--rounds", _) => self.rounds = value.parse().unwrap_or_else(|_| usage()),
            ("--seconds", _) => self.seconds = number(),
            ("--place", place) => self.places.retain(|known| known.name == place),
            ("--folder", _) => self.folder = value.into(),
            ("--pin", "yes") => self.pinned = vec![true],
            ("--pin", "no") => self.pinned = vec![false],
            ("--load", text) => {
                self.loads = LOADS.into_iter().filter(|load| load.name.contains(text)).collect()
            }
            ("--peer", _) => wanted.push(value),
            ("--own", text) => self.peers.insert(1, own(text, false)),
            ("--tracked", text) => self.peers.insert(1, own(text, true)),
            ("--socket", text) => self.peers.push(running(text)),
            ("--with", _) => self.with.push(value.into()),
            ("--json", _) => self.json = Some(value.into()),
            ("--svg", _) => self.svg = Some(value.into()),
            _ => usage(),
        }
    }
}

fn own(text: &str, is_tracked: bool) -> Peer {
    let (name, line) = text.split_once('=').unwrap_or_else(|| usage());
    let mut words = line.split_whitespace().map(str::to_owned);
    let program = words.next().unwrap_or_else(|| usage());
    let program = if program == "-" { backend_binary() } else { program.into() };
    Peer::Own { name: name.into(), program, options: words.collect(), is_tracked }
}

fn running(text: &str) -> Peer {
    let (name, paths) = text.split_once('=').unwrap_or_else(|| usage());
    Peer::Running { name: name.into(), sockets: paths.split(',').map(PathBuf::from).collect() }
}

fn usage() -> ! {
    eprintln!("{HELP}");
    std::process::exit(2)
}
