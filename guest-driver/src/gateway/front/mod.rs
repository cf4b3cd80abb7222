//! The front end: answers images from this machine's view of the disk, and asks the issuer only where a path is.

mod image;
mod list;
mod pages;
mod range;
mod upstream;

use super::answer::{Fault, Reply, json_reply, text_reply};
use super::args;
use super::disk::{Disk, Memory, Outcome, device_path};
use super::ids::{Id, is_reserved};
use super::limits::LISTS;
use super::log::Log;
use super::metrics::Text;
use super::server::{Answered, App, Asked, Common, Server, listen, only_get, serve};
use super::target::{Query, Wanted};
use hyper::StatusCode;
use receipt_store::control::Control;
use receipt_store::stop::StopSignals;
use receipt_store::{Error, Result, hex};
use serde_json::json;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use upstream::Upstream;

/// The front end's parts.
#[derive(Debug)]
pub struct Front {
    disk: Arc<Disk>,
    memory: Memory,
    /// Lists at a time: they read much, and must not keep images waiting.
    lists: Semaphore,
    /// Who knows the paths of ids; `None` = this machine's view of the disk.
    upstream: Option<Upstream>,
    common: Arc<Common>,
    log: Log,
}

/// Runs the front end until a signal.
pub fn run(args: &args::Front, runtime: &tokio::runtime::Runtime, signals: &StopSignals) -> Result<()> {
    let path = device_path(args.server.device.as_deref())?;
    let disk = Arc::new(Disk::open(&path)?);
    let upstream = args.issuer.as_deref().map(|url| Upstream::new(url, disk.clone())).transpose()?;
    let listener = listen(args.server.listen)?;
    let (log, log_thread) = Log::start();
    let common = Arc::new(Common::default());
    let memory = Memory::new(args.server.body_memory_mib);
    let front = Front {
        disk,
        memory,
        lists: Semaphore::new(LISTS),
        upstream,
        common: common.clone(),
        log: log.clone(),
    };
    let server = Server::new(App::Front(Arc::new(front)), &args.server, log, common);
    let (stop, stopped) = watch::channel(false);
    serve(server, listener, runtime, (&stop, stopped), signals)?;
    let _ = log_thread.join();
    Ok(())
}

impl Front {
    /// Answers a request.
    pub async fn answer(&self, asked: &Asked) -> Answered {
        if let Err(fault) = only_get(asked) {
            return ("other", Err(fault));
        }
        let path = asked.uri.path();
        if let Some(path) = path.strip_prefix("/receipts/") {
            return ("receipt", self.image(asked, path).await);
        }
        if let Some(path) = path.strip_prefix("/view/") {
            return ("view", self.view_path(asked, path).await);
        }
        match path {
            "/receipts" => ("receipt_by_id", self.image_or_list(asked).await),
            "/" => ("page", self.home(asked).await),
            "/view" => ("view", self.view_id(asked).await),
            "/health" => ("health", self.health().await),
            "/metrics" => ("metrics", Ok(self.metrics())),
            _ => match pages::asset(path) {
                Some(reply) => ("page", Ok(reply)),
                None => ("other", Err(Fault::not_found("nothing here"))),
            },
        }
    }

    /// A fault as JSON, or as a page to somebody who reads pages.
    pub fn complain(&self, asked: &Asked, fault: &Fault) -> Reply {
        if pages::wants_page(asked) { fault.dress(pages::fault_page(asked, fault)) } else { fault.json() }
    }

    /// What a URL of a receipt names.
    fn wanted(encoded: &str) -> Outcome<Wanted> {
        let wanted = Wanted::parse(encoded)?;
        match is_reserved(wanted.path()) {
            true => Err(Fault::not_found(format!("{}: not found", wanted.path()))),
            false => Ok(wanted),
        }
    }

    /// Where the receipt of an id is: by the issuer, or by the disk.
    async fn locate(&self, id: &Id) -> Outcome<Wanted> {
        let path = match &self.upstream {
            Some(upstream) => upstream.path_of(id).await?,
            None => {
                let id = id.clone();
                self.disk.run(move |reader| id.path(reader)).await?
            }
        };
        match is_reserved(&path) {
            true => Err(Fault::not_found(format!("{path}: not found"))),
            false => Ok(Wanted::Path(path)),
        }
    }

    /// `GET /receipts?id=ID`, or a list of paths by `prefix`.
    async fn image_or_list(&self, asked: &Asked) -> Outcome<Reply> {
        let query = Query::strict(asked.uri.query(), &["id", "download", "prefix", "skip"])?;
        match (query.get("id"), query.get("prefix")) {
            (Some(id), None) => {
                let wanted = self.locate(&Id::new(id)?).await?;
                self.send(asked, wanted, &query, None).await
            }
            (None, Some(prefix)) => self.list_json(prefix, &query).await,
            _ => Err(Fault::bad("either ?id=ID or ?prefix=PREFIX is needed here")),
        }
    }

    async fn health(&self) -> Outcome<Reply> {
        let read = |reader: &receipt_store::Reader<_>| {
            let superblock = reader.superblock()?;
            Ok::<_, Error>((Control::read(reader.device(), &superblock)?, superblock))
        };
        let (control, superblock) = self.disk.look(read).await.map_err(|fault| {
            let code = if fault.code == "no_store" { "no_store" } else { "device" };
            Fault::unavailable(code, fault.message)
        })?;
        let body =
            json!({ "status": "ok", "store": hex(&superblock.uuid), "seq": control.head.published_seq });
        Ok(json_reply(StatusCode::OK, &body))
    }

    fn metrics(&self) -> Reply {
        let mut text = Text::default();
        self.common.write(&mut text, &self.log);
        if let Some(upstream) = &self.upstream {
            upstream.write(&mut text);
        }
        text_reply(StatusCode::OK, "text/plain; version=0.0.4", text.0)
    }
}
