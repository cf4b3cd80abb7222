//! What most tests begin with: an image, a backend that serves it, guests by name.

use std::path::{Path, PathBuf};

use crate::backend::{Backend, Serve};
use crate::disk::Scratch;
use crate::driver::Driver;
use crate::raw::RawGuest;

/// A served image; process and files go with it.
#[derive(Debug)]
pub struct Stand {
    // Before the folder, so that the process ends first.
    backend: Backend,
    image: PathBuf,
    _scratch: Scratch,
}

impl Stand {
    /// Bytes of the images made here.
    pub const SIZE: u64 = 32 << 20;

    /// The usual pair: `issuer` may write, `front` may only read.
    #[track_caller]
    pub fn pair() -> Self {
        Self::serve(Scratch::new(), |serve| serve.rw("issuer").ro("front"))
    }

    /// A zeroed image in `scratch`, served as `configure` says.
    #[track_caller]
    pub fn serve(scratch: Scratch, configure: impl FnOnce(Serve) -> Serve) -> Self {
        let image = scratch.image(Self::SIZE);
        let backend = configure(Serve::image(&image)).start();
        Self { backend, image, _scratch: scratch }
    }

    /// The backend.
    pub fn backend(&mut self) -> &mut Backend {
        &mut self.backend
    }

    /// The image file.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The socket of a guest.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.backend.socket(name)
    }

    /// Connects an ordinary driver as guest `name`.
    #[track_caller]
    pub fn driver(&self, name: &str) -> Driver {
        Driver::connect(&self.socket(name))
    }

    /// Connects a guest made by hand, its queues not started.
    #[track_caller]
    pub fn raw(&self, name: &str) -> RawGuest {
        RawGuest::connect(&self.socket(name))
    }

    /// Connects a guest made by hand and starts one queue.
    #[track_caller]
    pub fn started(&self, name: &str) -> RawGuest {
        let mut guest = self.raw(name);
        guest.start_queues(1);
        guest
    }
}
