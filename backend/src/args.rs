//! The command line: every rule is checked here once, and what comes out is ready to use.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::control::ControlCommand;
use crate::engine::EngineKind;
use crate::error::StartError;
use crate::guest_args::{check_guests, parse_guest};
use crate::image::{CacheMode, ImageOptions};
use crate::limits::{
    DEFAULT_CTL_SECONDS, DEFAULT_POLL_US, MAX_CTL_SECONDS, MAX_POLL_US, MAX_QUEUE_SIZE, MAX_QUEUES,
    MAX_SEAL_COMMAND_RANGES,
};
use crate::role::{ReadMode, Role};
use crate::socket::SocketAccess;
use crate::throttle::Limits;
use crate::values::{parse_cpus, parse_range, parse_size};

/// Set to anything, it takes the order away.
const UNORDERED_VARIABLE: &str = "RECEIPTDISK_UNORDERED";

/// Serves one disk image to several virtual machines as vhost-user block devices, in one order.
#[derive(Debug, Parser)]
#[command(
    name = "receiptdisk-backend",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    convention: Convention,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve an image to guests until SIGTERM or SIGINT
    Serve(Box<Serve>),
    /// Ask or tell a running backend
    Ctl(Ctl),
}

#[derive(Debug, Args)]
struct Ctl {
    /// The backend's control socket
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Seconds to wait for the answer; the backend may carry the command out later
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = DEFAULT_CTL_SECONDS,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CTL_SECONDS)))]
    timeout: u32,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// Image, guests, who may write, whether the image is poisoned
    Status,
    /// Counters of each guest
    Stats,
    /// Refuse a guest's writes; returns when those accepted before have ended and are synced
    Fence { guest: String },
    /// End a fence
    Unfence { guest: String },
    /// Make a guest the one writer; every other writer becomes a standby
    Takeover { guest: String },
    /// Let an image be written again after a failed sync
    ClearPoison,
    /// List the sealed ranges, START-END in bytes, one a line
    Seals,
    /// Refuse writes, discards and write-zeroes to ranges, START-END in bytes (K, M, G, T: powers of 1024), from now on
    Seal {
        #[arg(required = true, value_name = "START-END")]
        ranges: Vec<String>,
    },
    /// Let ranges be written again
    Unseal {
        #[arg(required = true, value_name = "START-END")]
        ranges: Vec<String>,
    },
    /// Make the disk larger (K, M, G, T: powers of 1024) and tell every guest; a device is adopted at its size
    Resize { size: String },
}

/// QEMU's vhost-user backend program convention: one guest without a name of its own.
#[derive(Debug, Args)]
struct Convention {
    /// Listen on this socket (QEMU's convention for one guest)
    #[arg(long, value_name = "SOCKET")]
    socket_path: Option<PathBuf>,
    /// Use this open, listening socket instead
    #[arg(long, value_name = "N", conflicts_with = "socket_path")]
    fd: Option<i32>,
    /// The image
    #[arg(long, value_name = "FILE")]
    blk_file: Option<PathBuf>,
    /// Let the guest only read
    #[arg(long)]
    read_only: bool,
    /// Print what this backend can do, as JSON, and exit
    #[arg(long)]
    print_capabilities: bool,
}

#[derive(Debug, Args)]
struct Serve {
    /// Disk image: a regular file or a block device
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Make a fully allocated image of this size (K, M, G, T: powers of 1024) if FILE does not exist
    #[arg(long, value_name = "SIZE")]
    create: Option<String>,
    /// A guest: name=NAME,socket=PATH|connect=PATH[,access=rw|ro|standby][,reads=completed|durable][,iops=N[:BURST]][,bps=SIZE[:BURST]][,mode=0660][,group=GROUP]
    #[arg(long = "guest", value_name = "KEY=VALUE,...", required = true)]
    guests: Vec<String>,
    /// Allow several guests with access=rw
    #[arg(long)]
    multi_writer: bool,
    /// Virtqueues offered to each guest
    #[arg(long, value_name = "N", default_value_t = MAX_QUEUES)]
    queues: u16,
    /// Descriptors a virtqueue may have, a power of two
    #[arg(long, value_name = "N", default_value_t = MAX_QUEUE_SIZE)]
    queue_size: u16,
    /// Whether IO goes through the host's page cache
    #[arg(long, value_enum, default_value = "direct")]
    cache: CacheMode,
    /// How IO is done
    #[arg(long, value_enum, value_name = "ENGINE")]
    io_engine: Option<EngineKind>,
    /// Longest time in microseconds that a worker looks for news after work before it sleeps; 0 never looks
    #[arg(long, value_name = "N", default_value_t = DEFAULT_POLL_US)]
    poll_us: u32,
    /// Processors for the guests' workers, in turns, such as 2,4-6
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// Whether a guest's discard gives space back to the host
    #[arg(long, value_enum, default_value = "unmap")]
    discard: DiscardMode,
    /// Listen here for `ctl`
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Let `ctl seal` close ranges for good: write-once. What is sealed already stays so with and without this
    #[arg(long)]
    seal: bool,
    /// Take the place of the running backend that listens at --control: guests pause for a moment and stay connected
    #[arg(long, requires = "control")]
    replace: bool,
    /// Whether the process gives up, after its start, all rights and system calls that serving does not take
    #[arg(long, value_enum, default_value = "on")]
    sandbox: Switch,
    /// Log every write and sync here, in the format of dm-log-writes: for crash tests, slow
    #[arg(long, value_name = "LOG")]
    record: Option<PathBuf>,
    /// Where roles, fences, seals and poison are kept across restarts (default: FILE.receiptdisk)
    #[arg(long, value_name = "STATE")]
    state: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DiscardMode {
    /// Punch holes into the image
    Unmap,
    /// Keep the space allocated
    Ignore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    /// To debug the backend
    Off,
}

/// Where a guest's connections come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointConfig {
    /// Listen at a path.
    Listen(PathBuf),
    /// Listen on an open descriptor.
    ListenFd(i32),
    /// Connect to a path.
    Connect(PathBuf),
}

impl fmt::Display for EndpointConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(path) => write!(f, "socket={}", path.display()),
            Self::ListenFd(fd) => write!(f, "fd={fd}"),
            Self::Connect(path) => write!(f, "connect={}", path.display()),
        }
    }
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfig {
    /// Unique name.
    pub name: String,
    /// Where its connections come from.
    pub endpoint: EndpointConfig,
    /// Who may connect.
    pub access: SocketAccess,
    /// What it may do.
    pub role: Role,
    /// What its reads promise.
    pub reads: ReadMode,
    /// What it may do a second.
    pub limits: Limits,
}

/// Everything `serve` needs.
#[derive(Debug)]
pub struct Config {
    /// The image.
    pub image: ImageOptions,
    /// Whether a guest's discard gives space back.
    pub unmap: bool,
    /// The guests, at least one.
    pub guests: Vec<GuestConfig>,
    /// Virtqueues for each.
    pub queues: u16,
    /// Descriptors in each virtqueue at most.
    pub queue_size: u16,
    /// The engine that was asked for, if any.
    pub engine: Option<EngineKind>,
    /// How long a worker looks for news before it sleeps, at most.
    pub poll: Duration,
    /// Processors that the workers are pinned to in turns; empty for any.
    pub cpus: Vec<usize>,
    /// Whether several guests may write.
    pub multi_writer: bool,
    /// Whether an operator may seal ranges.
    pub may_seal: bool,
    /// Where to listen for `ctl`.
    pub control: Option<PathBuf>,
    /// Whether to take the place of the backend that listens there.
    pub replace: bool,
    /// Where decisions are kept.
    pub state: PathBuf,
    /// Where to log every write and sync, if anywhere.
    pub record: Option<PathBuf>,
    /// Whether requests go without an order, to show what the tests find then.
    pub unordered: bool,
    /// Whether rights and system calls are given up after the start.
    pub sandbox: bool,
}

impl Config {
    /// Whether any guest's reads wait for syncs.
    #[must_use]
    pub fn has_durable_reads(&self) -> bool {
        self.guests.iter().any(|guest| guest.reads == ReadMode::Durable)
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Action {
    /// Serve guests.
    Serve(Box<Config>),
    /// Send commands to a running backend.
    Ctl {
        /// Its control socket.
        socket: PathBuf,
        /// The commands, in their order.
        commands: Vec<ControlCommand>,
        /// Whether to print JSON.
        as_json: bool,
        /// How long to wait for the answer to each.
        patience: Duration,
    },
    /// Print the capabilities.
    PrintCapabilities,
}

impl Cli {
    /// Checks everything that can be checked without touching the system.
    ///
    /// # Errors
    /// One line that says which argument is wrong.
    pub fn into_action(self) -> Result<Action, StartError> {
        match self.command {
            Some(Command::Serve(serve)) => serve.into_config().map(|config| Action::Serve(Box::new(config))),
            Some(Command::Ctl(ctl)) => ctl.into_action(),
            None if self.convention.print_capabilities => Ok(Action::PrintCapabilities),
            None => self.convention.into_config().map(|config| Action::Serve(Box::new(config))),
        }
    }
}

impl Ctl {
    fn into_action(self) -> Result<Action, StartError> {
        let commands = match self.command {
            CtlCommand::Status => vec![ControlCommand::Status],
            CtlCommand::Stats => vec![ControlCommand::Stats],
            CtlCommand::Fence { guest } => vec![ControlCommand::Fence { guest }],
            CtlCommand::Unfence { guest } => vec![ControlCommand::Unfence { guest }],
            CtlCommand::Takeover { guest } => vec![ControlCommand::Takeover { guest }],
            CtlCommand::ClearPoison => vec![ControlCommand::ClearPoison],
            CtlCommand::Resize { size } => {
                vec![ControlCommand::Resize { bytes: parse_size("resize", &size)? }]
            }
            CtlCommand::Seals => vec![ControlCommand::Seals],
            CtlCommand::Seal { ranges } => in_turns(&ranges, |ranges| ControlCommand::Seal { ranges })?,
            CtlCommand::Unseal { ranges } => in_turns(&ranges, |ranges| ControlCommand::Unseal { ranges })?,
        };
        let patience = Duration::from_secs(self.timeout.into());
        Ok(Action::Ctl { socket: self.control, commands, as_json: self.json, patience })
    }
}

/// As many commands as it takes: a line on the control socket is short.
fn in_turns(
    ranges: &[String],
    command: impl Fn(Vec<(u64, u64)>) -> ControlCommand,
) -> Result<Vec<ControlCommand>, StartError> {
    let ranges = ranges.iter().map(|text| parse_range(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(ranges.chunks(MAX_SEAL_COMMAND_RANGES).map(|some| command(some.to_vec())).collect())
}

impl Convention {
    fn into_config(self) -> Result<Config, StartError> {
        let Some(path) = self.blk_file else {
            return Err(usage("nothing to do: try 'serve --help', or --socket-path with --blk-file"));
        };
        let endpoint = match (self.socket_path, self.fd) {
            (Some(path), _) => EndpointConfig::Listen(path),
            (None, Some(fd)) => EndpointConfig::ListenFd(fd),
            (None, None) => return Err(usage("--blk-file needs --socket-path or --fd")),
        };
        let role = if self.read_only { Role::ReadOnly } else { Role::ReadWrite };
        let (access, reads) = (SocketAccess::default(), ReadMode::Completed);
        let limits = Limits::default();
        let guests = vec![GuestConfig { name: "guest".into(), endpoint, access, role, reads, limits }];
        check_guests(&guests, false)?;
        Ok(Config {
            state: default_state(&path),
            image: ImageOptions {
                path,
                create_bytes: None,
                writable: !self.read_only,
                cache: CacheMode::Direct,
            },
            unmap: true,
            guests,
            queues: MAX_QUEUES,
            queue_size: MAX_QUEUE_SIZE,
            engine: None,
            poll: Duration::from_micros(DEFAULT_POLL_US.into()),
            cpus: Vec::new(),
            multi_writer: false,
            may_seal: false,
            control: None,
            replace: false,
            record: None,
            unordered: false,
            sandbox: true,
        })
    }
}

impl Serve {
    fn into_config(self) -> Result<Config, StartError> {
        let guests = self.guests.iter().map(|text| parse_guest(text)).collect::<Result<Vec<_>, _>>()?;
        check_guests(&guests, self.multi_writer)?;
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return Err(usage(&format!("--queues {}: 1 to {MAX_QUEUES} are possible", self.queues)));
        }
        if !self.queue_size.is_power_of_two() || self.queue_size > MAX_QUEUE_SIZE {
            let size = self.queue_size;
            return Err(usage(&format!(
                "--queue-size {size}: a power of two up to {MAX_QUEUE_SIZE} is possible"
            )));
        }
        if self.seal && self.control.is_none() {
            return Err(usage("--seal needs --control SOCKET: `ctl seal` says what to seal"));
        }
        if self.poll_us > MAX_POLL_US {
            return Err(usage(&format!("--poll-us {}: up to {MAX_POLL_US} are possible", self.poll_us)));
        }
        let state = self.state.unwrap_or_else(|| default_state(&self.image));
        let image = ImageOptions {
            path: self.image,
            create_bytes: self.create.as_deref().map(|text| parse_size("--create", text)).transpose()?,
            writable: guests.iter().any(|guest| guest.role.looks_writable()),
            cache: self.cache,
        };
        Ok(Config {
            multi_writer: self.multi_writer,
            may_seal: self.seal,
            record: self.record,
            unordered: std::env::var_os(UNORDERED_VARIABLE).is_some(),
            control: self.control,
            replace: self.replace,
            state,
            image,
            unmap: self.discard == DiscardMode::Unmap,
            sandbox: self.sandbox == Switch::On,
            guests,
            queues: self.queues,
            queue_size: self.queue_size,
            engine: self.io_engine,
            poll: Duration::from_micros(self.poll_us.into()),
            cpus: self.cpus.as_deref().map(parse_cpus).transpose()?.unwrap_or_default(),
        })
    }
}

/// The state file beside the image.
fn default_state(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".receiptdisk");
    name.into()
}

fn usage(text: &str) -> StartError {
    StartError::Usage(text.into())
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
