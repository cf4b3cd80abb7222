//! Arguments.

use clap::{Parser, Subcommand};
use receipt_store::CommitLimits;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Stores and reads receipts by path on a disk that several virtual machines share.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 ok, 1 other error, 2 usage, 3 not found, 4 pending, 5 corrupt, 6 no space, 7 busy or read-only, 8 refused."
)]
pub struct Args {
    /// Block device or file; the default is the disk whose serial begins with `receiptdisk`.
    #[arg(long, global = true, value_name = "DEV")]
    pub device: Option<PathBuf>,
    /// One JSON object a line instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// Wait this long for another writing process, or for a pending receipt.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 0)]
    pub wait: u64,
    /// Socket of `receipt serve`; put, rm and scrub --repair go through it when the device is busy.
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/receipt.sock")]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Limits of a group commit.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Limits {
    /// Most changes in a group commit.
    #[arg(long, value_name = "N", default_value_t = 256)]
    batch_records: usize,
    /// Most bytes of data in a group commit.
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = super::size::parse)]
    batch_bytes: u64,
    /// Wait this long for more changes before each group commit.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    batch_wait_ms: u64,
}

impl From<Limits> for CommitLimits {
    fn from(limits: Limits) -> Self {
        let wait = Duration::from_millis(limits.batch_wait_ms);
        Self { records: limits.batch_records, bytes: limits.batch_bytes, wait }
    }
}

/// Commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make a store.
    Format {
        /// Bytes of a segment (K, M, G); the default suits the size of the device.
        #[arg(long, value_name = "SIZE", value_parser = super::size::parse)]
        segment_size: Option<u64>,
        /// Overwrite what is on the device.
        #[arg(long)]
        force: bool,
    },
    /// Store receipts; each path is printed as soon as it is durable.
    Put {
        /// Path of the receipt.
        #[arg(required_unless_present = "batch", conflicts_with = "batch")]
        path: Option<String>,
        /// File to store, `-` = standard input.
        #[arg(required_unless_present = "batch", conflicts_with = "batch")]
        file: Option<PathBuf>,
        /// Store every file of a folder, or of a list with lines `PATH<TAB>FILE` (`-` = standard input).
        #[arg(long, value_name = "DIR|MANIFEST")]
        batch: Option<PathBuf>,
        /// Put this before each path of the batch.
        #[arg(long, requires = "batch", value_name = "P")]
        prefix: Option<String>,
        /// Print locators: a get by locator is one read.
        #[arg(long)]
        locator: bool,
        /// Other data under a path becomes its next version.
        #[arg(long)]
        new_version: bool,
        /// Retention class, 1 to 31 (`receipt policy`); by default that of the version before, or 0: no term.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..32))]
        class: Option<u8>,
        /// Day of issue, from which the term counts; today by default.
        #[arg(long, value_name = "YYYY-MM-DD")]
        issued: Option<String>,
        /// Limits of a group commit of a batch.
        #[command(flatten)]
        limits: Limits,
    },
    /// Read a receipt; its hash is checked before the first byte is written.
    Get {
        /// Path or locator.
        #[arg(required_unless_present = "batch", conflicts_with = "batch")]
        path: Option<String>,
        /// File to write, `-` = standard output.
        #[arg(short, long, value_name = "FILE", default_value = "-")]
        output: PathBuf,
        /// An older version; 1 is the first.
        #[arg(long, value_name = "N", conflicts_with = "batch")]
        version: Option<u16>,
        /// Check the bytes against their BLAKE3 even where their checksum is right.
        #[arg(long)]
        hash: bool,
        /// Read every path or locator of a list, one a line (`-` = standard input), as the lines arrive.
        #[arg(long, value_name = "LIST", requires = "to")]
        batch: Option<PathBuf>,
        /// Folder for the receipts of the list, each under its path.
        #[arg(long, value_name = "DIR", requires = "batch")]
        to: Option<PathBuf>,
    },
    /// Hold the writer and make the changes of other put and rm commands; prints its socket when it is ready, ends on SIGTERM.
    Serve {
        /// Limits of a group commit.
        #[command(flatten)]
        limits: Limits,
    },
    /// Remove paths; each is printed as soon as its removal is durable. Refused before the end of the term and on hold. The log keeps the
    /// bytes until its segment is free.
    Rm {
        /// Paths.
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Say or change how long receipts are kept; a change counts for what is stored already, too.
    Policy {
        /// What to do with it; list is the default.
        #[command(subcommand)]
        command: Option<PolicyCommand>,
    },
    /// Keep every path with this prefix from being removed, whatever its term; without a prefix list the holds.
    Hold {
        /// Prefix of paths.
        prefix: Option<String>,
        /// Last day of the hold; otherwise it lasts until it is released.
        #[arg(long, value_name = "YYYY-MM-DD", requires = "prefix")]
        until: Option<String>,
    },
    /// End the hold with this prefix.
    Release {
        /// Prefix as it was given to `hold`.
        prefix: String,
    },
    /// Remove every receipt whose term is over, print its path, and free the room of segments that hold nothing else.
    Expire {
        /// Say what would go; change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Confirm the day: needed when the clock is more than 31 days after the last confirmed one.
        #[arg(long, value_name = "YYYY-MM-DD")]
        today: Option<String>,
        /// Copy what is kept out of segments of which so many percent can be freed; 0 = never.
        #[arg(long, value_name = "PERCENT", default_value_t = receipt_store::expire::COMPACT_PERCENT, value_parser = clap::value_parser!(u8).range(0..=100))]
        compact: u8,
        /// Work so many percent of the time and pause for the rest; 100 = no pauses.
        #[arg(long, value_name = "PERCENT", default_value_t = receipt_store::expire::WORK_PERCENT, value_parser = clap::value_parser!(u8).range(1..101))]
        pace: u8,
    },
    /// Zero the data of every version of a path, before its term if need be; the headers and the reason stay.
    Erase {
        /// Path.
        path: String,
        /// Why: it stays in the log.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Write the newest version of each receipt to DIR/receipts, and what is known of it to DIR/manifest.jsonl, or all of it into an archive.
    /// An export that was ended is gone on with when it is started again, unless it went to standard output.
    #[command(allow_missing_positional = true)]
    Export {
        /// Older versions, too, as far as they are still there.
        #[arg(long)]
        all_versions: bool,
        /// Only paths that begin with this.
        #[arg(default_value = "")]
        prefix: String,
        /// Folder; a name that ends with `.tar` is an archive, `-` one on standard output.
        #[arg(value_name = "DIR|TAR")]
        target: PathBuf,
    },
    /// Store the receipts of an export, hash, class and day of issue as they were, or all regular files of any folder or archive. What is stored already
    /// is left alone, so an import that was ended is just started again.
    Import {
        /// Folder or archive; `-` = an archive on standard input.
        #[arg(value_name = "DIR|TAR")]
        source: PathBuf,
        /// Before the paths of files that come from no export.
        #[arg(long, value_name = "P", default_value = "")]
        prefix: String,
        /// Their retention class.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..32))]
        class: Option<u8>,
        /// Their day of issue; `changed` = the day on which each file was changed last. Today by default.
        #[arg(long, value_name = "YYYY-MM-DD|changed")]
        issued: Option<String>,
    },
    /// Print the bytes of the disk that nobody needs to write any more, START-END, one range a line, for a host that seals them.
    Seals {
        /// Print those of retired segments instead, which may be unsealed, and with --json what lies there.
        #[arg(long)]
        retired: bool,
    },
    /// Take over what the device has grown by. Opening for writing does it, too, and `serve` once a second.
    Grow,
    /// Say what is known about a receipt.
    Stat {
        /// Path.
        path: String,
    },
    /// List paths, newest first. Reads one to two blocks for every 256 receipts or 4 MiB, never the receipts.
    Ls {
        /// Only paths that begin with this.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Say what the store is.
    Info,
    /// Check everything and change nothing: every record, every index entry, and all that is kept twice. Names each bad path, exit code 5.
    Verify {
        /// Check instead that the log has grown from this head note (`-` = standard input) to its end; reads headers only.
        #[arg(long, value_name = "NOTE")]
        from: Option<PathBuf>,
    },
    /// Check as verify does, at a limited speed if wanted, and with --repair mend what the log can mend.
    Scrub {
        /// Mend index entries, damaged slots, the segment table and the second superblock from the log; what stays is named, exit code 5.
        /// No receipt is changed or removed. Puts wait while a store is mended.
        #[arg(long)]
        repair: bool,
        /// Read at most so many MiB a second.
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
        throttle: Option<u64>,
    },
    /// Print the head note: one line to keep off this disk, for `verify --from`.
    Checkpoint,
    /// Print changes as they are acknowledged, one a line: SEQ<TAB>PATH, and `removed` after a removed one.
    Follow {
        /// Begin with this sequence, not with what comes now. To resume, give the last one that was printed plus 1.
        #[arg(long, value_name = "SEQ")]
        from: Option<u64>,
        /// Look this often.
        #[arg(long, value_name = "MS", default_value_t = 100)]
        poll_ms: u64,
        /// End when everything acknowledged so far is printed.
        #[arg(long)]
        once: bool,
    },
    /// Show the receipts as read-only files below DIR until SIGTERM; `receipt mount --help` tells more. Needs `receipt-mount`.
    #[command(disable_help_flag = true)]
    Mount {
        /// DIR and the options of `receipt-mount`.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "DIR")]
        rest: Vec<OsString>,
    },
}

impl Command {
    /// Whether the command is over when nobody reads what it prints. The others store, remove, write files or look for damage: one that stopped
    /// before its end must not say that all is done.
    pub fn only_shows(&self) -> bool {
        matches!(
            self,
            Self::Get { batch: None, .. }
                | Self::Stat { .. }
                | Self::Ls { .. }
                | Self::Follow { .. }
                | Self::Info
                | Self::Seals { .. }
        )
    }
}

/// What `receipt policy` does.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the terms of the classes and the holds.
    List,
    /// Give a class a term.
    Set {
        /// Class; 0 is that of receipts that were stored without one.
        #[arg(value_parser = clap::value_parser!(u8).range(0..32))]
        class: u8,
        /// Years, `forever`, or `none`: may be removed at any time and never expires.
        years: String,
        /// Count from the end of the year of issue.
        #[arg(long)]
        from_year_end: bool,
    },
}
