//! The issuer: holds the writer, stores what is put, answers paths.

mod committer;
mod draw;
mod feed;
mod paths;
mod put;
mod reopen;

use super::answer::{Fault, Reply, json_reply, text_reply};
use super::disk::{Disk, Memory, device_path};
use super::log::Log;
use super::metrics::Text;
use super::server::{Answered, App, Asked, Common, Server, listen, only_get, serve};
use super::{args, limits};
use committer::Committer;
use draw::Painter;
use feed::Feed;
use hyper::StatusCode;
use hyper::body::Incoming;
use receipt_store::control::Control;
use receipt_store::socket::Socket;
use receipt_store::stop::StopSignals;
use receipt_store::{CommitLimits, RawDevice, Result, SharedWriter, hex};
use reopen::{Reopener, Store};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// The issuer's parts.
#[derive(Debug)]
pub struct Issuer {
    disk: Arc<Disk>,
    shared: Arc<SharedWriter<RawDevice>>,
    committer: Committer,
    feed: Feed,
    painter: Option<Arc<Painter>>,
    memory: Memory,
    request_time: Duration,
    /// Of which the body may take so much.
    body_time: Duration,
    data_bytes_max: u64,
    store: String,
    /// Who this process is in the lease.
    writer_uuid: [u8; 16],
    reopened: Arc<AtomicU64>,
    common: Arc<Common>,
    log: Log,
}

/// Runs the issuer until a signal.
pub fn run(args: &args::Issuer, runtime: &tokio::runtime::Runtime, signals: &StopSignals) -> Result<()> {
    let path = device_path(args.server.device.as_deref())?;
    // All that may be wrong with the host's configuration, before the store is opened for writing.
    let painter = Painter::load(&args.font_dir)?.map(Arc::new);
    let listener = listen(args.server.listen)?;
    let openings = Store::new(&path)?;
    let (writer, writer_uuid) = (openings.open()?, openings.writer_uuid());
    let mut socket = match Socket::listen(&args.socket) {
        Ok(socket) => socket,
        Err(error) => return writer.close().and(Err(error)),
    };
    let uuid = writer.superblock().uuid;
    let store = hex(&uuid);
    let data_bytes_max = writer.data_bytes_max();
    let wait = Duration::from_millis(args.batch_wait_ms);
    let shared = Arc::new(SharedWriter::new(writer, CommitLimits { wait, ..CommitLimits::default() }));
    socket.serve(shared.clone(), store.clone());
    let (log, log_thread) = Log::start();
    let common = Arc::new(Common::default());
    let (stop, stopped) = watch::channel(false);
    let (committer, committer_thread) = Committer::start(shared.clone());
    let reopener = Reopener::start(openings, uuid, shared.clone(), log.clone());
    let issuer = Issuer {
        disk: Arc::new(Disk::open(&path)?),
        shared: shared.clone(),
        feed: Feed::new(committer.commits(), stopped.clone()),
        committer,
        painter,
        memory: Memory::new(args.server.body_memory_mib),
        request_time: args.server.request_time(),
        body_time: args.server.request_time() * 3 / 4,
        data_bytes_max,
        store,
        writer_uuid,
        reopened: reopener.count(),
        common: common.clone(),
        log: log.clone(),
    };
    let server = Server::new(App::Issuer(Arc::new(issuer)), &args.server, log, common);
    serve(server, listener, runtime, (&stop, stopped), signals)?;
    // Requests that were cut may have left changes behind; they end first, then the store is closed, then the socket goes.
    let _ = committer_thread.join();
    drop(reopener);
    let closed = shared.close();
    drop(socket);
    let _ = log_thread.join();
    closed
}

impl Issuer {
    /// Answers a request.
    pub async fn answer(&self, asked: &Asked, body: &mut Incoming) -> Answered {
        let path = asked.uri.path();
        if let Some(path) = path.strip_prefix("/receipts/") {
            ("put", self.put(asked, path, body).await)
        } else if path == "/issue" {
            ("issue", self.issue(asked, body).await)
        } else if path == "/paths" {
            ("feed", self.changes(asked).await)
        } else if let Some(id) = path.strip_prefix("/paths/") {
            ("path", self.stat_of(asked, id).await)
        } else if let ("/", Some(id)) = (path, asked.uri.query()) {
            ("path", self.path_of(asked, id).await)
        } else if path == "/health" {
            ("health", self.health(asked).await)
        } else if path == "/metrics" {
            ("metrics", self.metrics(asked))
        } else {
            ("other", Err(Fault::not_found("nothing here: PUT /receipts/PATH, POST /issue, GET /paths/ID")))
        }
    }

    /// Whether receipts can be stored: 200, or 503 with the reason.
    async fn health(&self, asked: &Asked) -> std::result::Result<Reply, Fault> {
        only_get(asked)?;
        let control = self
            .disk
            .look(|reader| Control::read(reader.device(), &*reader.superblock()?))
            .await
            .map_err(|fault| Fault::unavailable("device", fault.message))?;
        let lease_epoch = control.lease.as_ref().map_or(0, |lease| lease.epoch);
        // Its own openings that failed have newer epochs, too.
        let is_own = control.lease.is_none_or(|lease| lease.writer_uuid == self.writer_uuid);
        let status = match () {
            () if lease_epoch > self.shared.epoch() && !is_own => "fenced",
            () if self.shared.has_failed() => "stopped",
            () => "ok",
        };
        let code = if status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = json!({
            "status": status, "writable": status == "ok", "store": self.store, "epoch": self.shared.epoch(),
            "lease_epoch": lease_epoch, "seq": control.head.published_seq, "issue": self.painter.is_some(),
        });
        Ok(json_reply(code, &body))
    }

    fn metrics(&self, asked: &Asked) -> std::result::Result<Reply, Fault> {
        only_get(asked)?;
        let mut text = Text::default();
        self.common.write(&mut text, &self.log);
        text.single("commits_total", "counter", "Group commits.", self.shared.commits());
        let writable = u8::from(!self.shared.has_failed());
        text.single("writable", "gauge", "1, or 0 while the writer has stopped after an error.", writable);
        let reopened = self.reopened.load(Ordering::Relaxed);
        text.single("reopened_total", "counter", "Openings of the store after a device error.", reopened);
        Ok(text_reply(StatusCode::OK, "text/plain; version=0.0.4", text.0))
    }
}

const _: () = assert!(limits::QUEUED_PUTS >= 256, "a group commit takes 256 changes");
