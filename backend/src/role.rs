//! What a guest may do to the disk.

use serde::{Deserialize, Serialize};

/// A guest's access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Reads and writes.
    #[serde(rename = "rw")]
    ReadWrite,
    /// Reads only, and is told so by VIRTIO_BLK_F_RO.
    #[serde(rename = "ro")]
    ReadOnly,
    /// Reads only for now, but looks like a writer: Linux reads VIRTIO_BLK_F_RO once and never again.
    #[serde(rename = "standby")]
    Standby,
}

impl Role {
    /// Whether writes, discards and write-zeroes are carried out.
    #[must_use]
    pub fn may_write(self) -> bool {
        self == Self::ReadWrite
    }

    /// Whether the guest's device is offered as writable.
    #[must_use]
    pub fn looks_writable(self) -> bool {
        self != Self::ReadOnly
    }

    /// As the command line and the control socket write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadWrite => "rw",
            Self::ReadOnly => "ro",
            Self::Standby => "standby",
        }
    }
}

/// A role and whether an operator has suspended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The guest's access.
    pub access: Role,
    /// Whether its writes are refused whatever its access.
    pub fenced: bool,
}

impl Standing {
    /// Whether writes are carried out.
    #[must_use]
    pub fn may_write(self) -> bool {
        self.access.may_write() && !self.fenced
    }
}

/// What a read promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// It returns completed writes.
    Completed,
    /// It returns completed writes that a host crash cannot take back.
    Durable,
}
