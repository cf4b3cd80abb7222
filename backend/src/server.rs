//! Starts everything in the one right order, and stops it again.
//!
//! Order of the start: image open and locked, engines made, sockets bound, rights given up, threads running, and only then
//! are the sockets listened on: a front end that could connect too early might be lost for good (QEMU 7.2 does not come
//! back from a failed handshake). System calls are filtered before the first front end is heard.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use rustix::process::Resource;
use rustix::thread::{CpuSet, sched_getaffinity};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::activation::{Activation, CONTROL};
use crate::args::{Config, EndpointConfig, GuestConfig};
use crate::connections::Connections;
use crate::control::Control;
use crate::description::{announce, serial, static_status};
use crate::disk::Disk;
use crate::engine::{Engine, EngineKind};
use crate::error::StartError;
use crate::gate::Gate;
use crate::guest::Guest;
use crate::handover::{Giver, Takeover};
use crate::house::House;
use crate::image::Image;
use crate::interrupt::Interrupt;
use crate::operator::{Configured, Operator, check_writers};
use crate::places;
use crate::record::Recorder;
use crate::recovery::Recovery;
use crate::sandbox::{self, Sandbox};
use crate::session::Offer;
use crate::shared::Shared;
use crate::sigbus;
use crate::socket::{Endpoint, Listener, SocketAccess};
use crate::state::StateFile;
use crate::worker::{Mail, Worker, WorkerConfig};

/// Serves until SIGTERM or SIGINT; then every request taken is answered and the image synced.
///
/// # Errors
/// See [`StartError`]; before the first guest could connect, but for a failed last sync.
pub fn serve(config: &Config) -> Result<(), StartError> {
    // Nobody else gets at a socket between its making and its mode.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    raise_descriptor_limit();
    sigbus::install().map_err(system("cannot handle SIGBUS"))?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(system("cannot watch for signals"))?;
    check_cpus(&config.cpus)?;
    let mut activation = Activation::from_environment()?;
    let mut takeover = begin_takeover(config)?;
    let image = match &mut takeover {
        Some(takeover) => takeover.image(&config.image)?,
        None => Image::open(&config.image)?,
    };
    places::check_apart(config)?;
    let recorder = config.record.as_deref().map(make_record).transpose()?;
    let disk = Disk::new(image, config.unmap, config.has_durable_reads(), recorder);
    let configured = configured(config);
    places::check_folder("state file", &config.state)?;
    let state_file = StateFile::new(config.state.clone());
    let state = state_file.load()?;
    takeover.iter().try_for_each(|takeover| takeover.check_state(&state))?;
    check_writers(&configured, &state, &state_file, config.multi_writer)?;
    disk.set_poisoned(state.poisoned);
    let engines = make_engines(config, &disk)?;
    let engine_name = engines.first().map_or("", Engine::name);
    let gate = Gate::new(config.guests.len(), config.unordered).map_err(system("cannot make an eventfd"))?;
    let names = config.guests.iter().map(|guest| guest.name.clone()).collect();
    let recovery = match takeover {
        Some(_) => Recovery::of_takeover(&config.state, names),
        None => Recovery::load(&config.state, names),
    };
    let shared = Arc::new(Shared::new(disk, gate, recovery, config.guests.len()));

    let may = (config.multi_writer, config.may_seal);
    let operator = Operator::new(Arc::clone(&shared), configured, may, state_file, state);
    let operator = Arc::new(operator);
    // All paths are taken before anybody can connect: a front end is never let in and then left.
    let control_listener = bind_control(config, &mut activation, takeover.as_mut())?;
    let guests = bind_guests(config, &mut activation, takeover.as_mut())?;
    // The guests' threads and the one that hears operators.
    let interrupt = Interrupt::new(guests.len() + usize::from(control_listener.is_some()));
    let interrupt = interrupt.map_err(system("cannot make an eventfd"))?;
    activation.check_all_taken()?;
    let sandbox = give_up_rights(config).map_err(system("cannot give up rights; see --sandbox"))?;
    if takeover.is_none() {
        sync_before_first_read(&shared, &operator);
    }
    let syncer = start_syncer(&operator, &shared)?;
    let workers = start_workers(config, &shared, &operator, engines)?;
    if signals.pending().next().is_some() {
        return Ok(());
    }
    let endpoints: Vec<String> = config.guests.iter().map(|guest| guest.endpoint.to_string()).collect();
    let control = Control {
        fixed: static_status(config, &shared, engine_name, operator.state_file()),
        sandbox: OnceLock::new(),
        operator: &operator,
        shared: &shared,
        giver: control_listener.as_ref().map(|control| Giver {
            shared: &shared,
            operator: &operator,
            interrupt: &interrupt,
            guests: &guests,
            endpoints,
            control,
            is_recorded: config.record.is_some(),
            supervisor: std::env::var("NOTIFY_SOCKET").ok().or_else(|| takeover.as_ref()?.supervisor()),
        }),
        connections: Connections::default(),
    };
    let house = House {
        shared: &shared,
        operator: &operator,
        interrupt: &interrupt,
        guests: &guests,
        control: &control,
    };
    thread::scope(|scope| {
        // Before another process is told that it may go: a thread that cannot be made must not cost anybody his disk.
        let threads = house.start_threads(scope, control_listener.as_ref())?;
        guests.iter().try_for_each(|guest| guest.endpoint.listen()).map_err(system("cannot listen"))?;
        control_listener.iter().try_for_each(Listener::listen).map_err(system("cannot listen"))?;
        let sandbox = if config.sandbox { sandbox::filter_calls(sandbox) } else { sandbox };
        control.sandbox.get_or_init(|| sandbox);
        let fronts = match takeover {
            Some(takeover) => takeover.cross(&shared, &guests)?,
            None => guests.iter().map(|_| None).collect(),
        };
        // From here on there is no other process.
        guests.iter().for_each(|guest| guest.endpoint.keep());
        control_listener.iter().for_each(Listener::keep);
        shared.recovery.take_note();
        operator.keep_poison();
        announce(config, &shared, sandbox);
        let ended = threads.begin(fronts);
        let signal = signals.forever().next();
        log::info!("event=stopping signal={}", signal.unwrap_or(SIGTERM));
        house.stop(control_listener.as_ref(), &ended);
        Ok(())
    })?;
    for index in 0..workers.len() {
        shared.mailbox(index).send(Mail::Exit);
    }
    workers.into_iter().for_each(join);
    shared.syncer.stop();
    join(syncer);
    drop((guests, control_listener));
    last_sync(&shared, &operator)
}

/// All that was answered becomes durable.
pub(crate) fn last_sync(shared: &Shared, operator: &Operator) -> Result<(), StartError> {
    shared.disk.finish_record().map_err(system("cannot write the log of --record"))?;
    if !shared.disk.is_poisoned() {
        let synced = shared.disk.sync();
        operator.keep_poison();
        synced.map_err(StartError::LastSync)?;
    }
    log::info!("event=stopped");
    Ok(())
}

pub(crate) fn system(doing: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::System { doing, error }
}

/// Workers can be pinned only to processors that this process may use.
fn check_cpus(cpus: &[usize]) -> Result<(), StartError> {
    let allowed =
        sched_getaffinity(None).map_err(|error| system("cannot ask for processors")(error.into()))?;
    match cpus.iter().find(|&&cpu| cpu >= CpuSet::MAX_CPU || !allowed.is_set(cpu)) {
        Some(cpu) => Err(StartError::Usage(format!("--cpus: processor {cpu} is not there or not allowed"))),
        None => Ok(()),
    }
}

fn make_record(path: &Path) -> Result<Recorder, StartError> {
    places::check_folder("log of --record", path)?;
    Recorder::create(path).map_err(|error| StartError::Record { path: path.into(), error })
}

/// One engine a guest; without io_uring where that is forbidden and was not asked for.
fn make_engines(config: &Config, disk: &Disk) -> Result<Vec<Engine>, StartError> {
    let mut wanted = config.engine;
    let mut engines = Vec::new();
    for guest in &config.guests {
        let file = disk.file(guest.role.looks_writable());
        let engine = match Engine::new(wanted, disk.image(), file) {
            Err(error) if wanted.is_some() => return Err(StartError::NoIoUring(error)),
            Err(error) => {
                log::warn!("event=no-io-uring error=\"{error}\" using=sync");
                wanted = Some(EngineKind::Sync);
                Engine::new(wanted, disk.image(), file).map_err(StartError::NoIoUring)?
            }
            Ok(engine) => engine,
        };
        engines.push(engine);
    }
    Ok(engines)
}

/// What a killed process before this one had written becomes durable before anybody reads it.
fn sync_before_first_read(shared: &Shared, operator: &Operator) {
    if !shared.disk.is_poisoned() && shared.disk.sync().is_err() {
        operator.keep_poison();
    }
}

fn configured(config: &Config) -> Vec<Configured> {
    let guest = |guest: &GuestConfig| Configured { name: guest.name.clone(), access: guest.role };
    config.guests.iter().map(guest).collect()
}

fn start_syncer(operator: &Arc<Operator>, shared: &Arc<Shared>) -> Result<JoinHandle<()>, StartError> {
    let (operator, shared) = (Arc::clone(operator), Arc::clone(shared));
    let builder = thread::Builder::new().name("syncer".into());
    let run = move || shared.run_syncer(|| operator.keep_poison());
    builder.spawn(run).map_err(system("cannot start a thread"))
}

/// From here on only the folders of the state file and of the sockets matter.
fn give_up_rights(config: &Config) -> io::Result<Sandbox> {
    if !config.sandbox {
        return Ok(Sandbox::OFF);
    }
    let sockets = config.guests.iter().filter_map(|guest| match &guest.endpoint {
        EndpointConfig::Listen(path) | EndpointConfig::Connect(path) => Some(path),
        EndpointConfig::ListenFd(_) => None,
    });
    let files = sockets.chain(&config.control).chain([&config.state]);
    let mut folders: Vec<PathBuf> = files.map(|path| sandbox::folder_of(path)).collect();
    folders.sort();
    folders.dedup();
    sandbox::give_up_rights(&folders)
}

/// With `--replace`: the process that runs has said that it may be replaced by one with these arguments.
fn begin_takeover(config: &Config) -> Result<Option<Takeover>, StartError> {
    let Some(control) = config.control.as_deref().filter(|_| config.replace) else {
        return Ok(None);
    };
    let takeover = Takeover::begin(control)?;
    takeover.check(config)?;
    Ok(Some(takeover))
}

fn bind_control(
    config: &Config,
    activation: &mut Activation,
    takeover: Option<&mut Takeover>,
) -> Result<Option<Listener>, StartError> {
    if let (Some(takeover), Some(path)) = (takeover, &config.control) {
        return takeover.control(path).map(Some);
    }
    if let Some(fd) = activation.take(CONTROL) {
        return open_listener(fd).map(Some);
    }
    config.control.as_deref().map(|path| Listener::bind(path, SocketAccess::default())).transpose()
}

fn start_workers(
    config: &Config,
    shared: &Arc<Shared>,
    operator: &Operator,
    engines: Vec<Engine>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let seals = Arc::new(operator.seals());
    let start = |(index, (guest, engine)): (usize, (&GuestConfig, Engine))| {
        let worker = WorkerConfig {
            index,
            guest: guest.name.clone(),
            may_write: operator.standing(index).may_write(),
            seals: Arc::clone(&seals),
            reads: guest.reads,
            serial: serial(index, &guest.name),
            poll: config.poll,
            limits: guest.limits,
            cpu: (!config.cpus.is_empty()).then(|| config.cpus[index % config.cpus.len()]),
        };
        let shared = Arc::clone(shared);
        let builder = thread::Builder::new().name(format!("worker-{}", guest.name));
        builder.spawn(move || run_worker(worker, shared, engine)).map_err(system("cannot start a thread"))
    };
    config.guests.iter().zip(engines).enumerate().map(start).collect()
}

fn run_worker(config: WorkerConfig, shared: Arc<Shared>, engine: Engine) {
    let guest = config.guest.clone();
    if let Err(error) = Worker::new(config, shared, engine).and_then(Worker::run) {
        // Without it the guest would hang and nobody would know.
        log::error!("guest={guest} event=worker-failed error=\"{error}\"");
        std::process::exit(1);
    }
}

fn bind_guests(
    config: &Config,
    activation: &mut Activation,
    mut takeover: Option<&mut Takeover>,
) -> Result<Vec<Guest>, StartError> {
    let mut bind = |(worker, guest): (usize, &GuestConfig)| {
        let endpoint = match &guest.endpoint {
            EndpointConfig::Connect(path) => Endpoint::Connect(path.clone()),
            EndpointConfig::Listen(path) => {
                Endpoint::Listen(match (&mut takeover, activation.take(&guest.name)) {
                    (Some(takeover), _) => takeover.listener(worker, path)?,
                    (None, Some(fd)) => open_listener(fd)?,
                    (None, None) => Listener::bind(path, guest.access)?,
                })
            }
            EndpointConfig::ListenFd(fd) => Endpoint::Listen(open_listener(*fd)?),
        };
        let offer = Offer { role: guest.role, queues: config.queues, queue_size: config.queue_size };
        Ok(Guest { name: guest.name.clone(), endpoint, offer, worker })
    };
    config.guests.iter().enumerate().map(&mut bind).collect()
}

/// A listening socket that the parent process has left open as descriptor `fd`.
fn open_listener(fd: i32) -> Result<Listener, StartError> {
    let bad = || StartError::Usage(format!("descriptor {fd}: not an open, listening unix socket"));
    let target = std::fs::read_link(format!("/proc/self/fd/{fd}")).map_err(|_| bad())?;
    if fd <= 2 || !target.to_string_lossy().starts_with("socket:") {
        return Err(bad());
    }
    // SAFETY: the descriptor is open (checked above) and the parent handed it over for this use;
    // nothing else in this process owns it.
    let socket = UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    Listener::from_open(socket).map_err(|_| bad())
}

/// Guests bring descriptors along, up to one a memory region.
fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
        log::debug!("event=descriptor-limit-not-raised error=\"{error}\"");
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        log::error!("event=thread-panicked");
    }
}
