//! Receipt records to pictures, a few at a time: drawing keeps a processor busy for a tenth of a second.

use crate::answer::Fault;
use crate::disk::internal;
use hyper::StatusCode;
use receipt_store::render::record::{RawRecord, ReceiptRecord};
use receipt_store::render::{RenderError, Renderer};
use receipt_store::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The renderer and how many may use it.
pub struct Painter {
    renderer: Renderer,
    places: Arc<Semaphore>,
}

impl std::fmt::Debug for Painter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Painter")
    }
}

/// A drawn receipt.
#[derive(Debug)]
pub struct Drawn {
    /// PNG.
    pub picture: Vec<u8>,
    /// Where it belongs.
    pub path: String,
    /// Its number.
    pub serial: String,
}

impl Painter {
    /// Loads the fonts; `None` when no folder is given.
    pub fn load(folders: &[PathBuf]) -> Result<Option<Self>> {
        if folders.is_empty() {
            return Ok(None);
        }
        let renderer = Renderer::new(folders).map_err(|error| Error::Usage(error.to_string()))?;
        Ok(Some(Self { renderer, places: Arc::new(Semaphore::new(crate::limits::worker_threads())) }))
    }

    /// Draws a record that came as JSON.
    pub async fn draw(self: Arc<Self>, json: Vec<u8>) -> std::result::Result<Drawn, Fault> {
        let raw: RawRecord = serde_json::from_slice(&json)
            .map_err(|error| Fault::bad(format!("no receipt record: {error}")))?;
        let record = ReceiptRecord::try_from(raw)
            .map_err(|error| Fault::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_record", error.to_string()))?;
        let place = self.places.clone().acquire_owned().await.map_err(|error| internal(&error))?;
        let painter = self.clone();
        let work = move || {
            let picture = painter.renderer.render(&record);
            drop(place);
            picture.map(|picture| Drawn {
                picture,
                path: record.path(),
                serial: record.text().serial.clone(),
            })
        };
        match tokio::task::spawn_blocking(work).await.map_err(|error| internal(&error))? {
            Ok(drawn) => Ok(drawn),
            Err(error @ RenderError::Glyph(_)) => {
                Err(Fault::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_record", error.to_string()))
            }
            Err(error) => Err(internal(&error)),
        }
    }
}
