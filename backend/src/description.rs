//! What guests, operators and the log are told of a backend that serves.

use crate::args::{Config, GuestConfig};
use crate::control::{StaticGuest, StaticStatus};
use crate::limits::SERIAL_BYTES;
use crate::role::ReadMode;
use crate::sandbox::Sandbox;
use crate::shared::Shared;
use crate::state::StateFile;

/// What every serial begins with: the guest helper finds its disk by it.
const SERIAL_PREFIX: &str = "receiptdisk";

/// What the status says that does not change.
pub fn static_status(
    config: &Config,
    shared: &Shared,
    io_engine: &'static str,
    state: &StateFile,
) -> StaticStatus {
    let guest = |(index, guest): (usize, &GuestConfig)| StaticGuest {
        name: guest.name.clone(),
        serial: String::from_utf8_lossy(&serial(index, &guest.name)).into_owned(),
        endpoint: guest.endpoint.to_string(),
        reads: match guest.reads {
            ReadMode::Completed => "completed",
            ReadMode::Durable => "durable",
        },
    };
    StaticStatus {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        image: config.image.path.display().to_string(),
        cache: shared.disk.image().cache.name(),
        io_engine,
        logical_block_bytes: shared.disk.image().logical_block_bytes(),
        multi_writer: config.multi_writer,
        state_file: state.path().display().to_string(),
        guests: config.guests.iter().enumerate().map(guest).collect(),
    }
}

/// At most [`SERIAL_BYTES`] bytes, different for each guest: names hold no `~`.
#[must_use]
pub fn serial(index: usize, name: &str) -> Vec<u8> {
    let room = SERIAL_BYTES - SERIAL_PREFIX.len() - 1;
    let short = if name.len() <= room {
        name.to_owned()
    } else {
        let suffix = format!("~{index}");
        format!("{}{suffix}", &name[..room.saturating_sub(suffix.len())])
    };
    format!("{SERIAL_PREFIX}-{short}").into_bytes()
}

/// Says in the log that guests are served.
pub fn announce(config: &Config, shared: &Shared, sandbox: Sandbox) {
    if config.unordered {
        log::warn!(
            "event=unordered RECEIPTDISK_UNORDERED is set: overlapping requests interleave, for tests only"
        );
    }
    let image = shared.disk.image();
    log::info!(
        "event=serving image={} capacity_bytes={} cache={} logical_block_bytes={} guests={} seccomp={} landlock={}",
        image.path.display(),
        image.capacity_bytes(),
        image.cache.name(),
        image.logical_block_bytes(),
        config.guests.len(),
        sandbox.seccomp,
        sandbox.landlock.name()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_fit_begin_alike_and_differ() {
        let names = ["issuer", "front", "a-long-guest-name-1", "a-long-guest-name-2"];
        let serials: Vec<_> = names.iter().enumerate().map(|(index, name)| serial(index, name)).collect();
        for (at, serial) in serials.iter().enumerate() {
            assert!(serial.len() <= SERIAL_BYTES && serial.starts_with(SERIAL_PREFIX.as_bytes()));
            assert!(!serials[..at].contains(serial));
        }
        assert_eq!(serials[0], b"receiptdisk-issuer");
    }
}
