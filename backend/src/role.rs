//! What a guest may do to the disk.

/// A guest's access as the operator gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads and writes.
    ReadWrite,
    /// Reads only, and is told so by VIRTIO_BLK_F_RO.
    ReadOnly,
    /// Reads only for now, but looks like a writer: Linux reads VIRTIO_BLK_F_RO once and never again.
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
}

/// What a read promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// It returns completed writes.
    Completed,
    /// It returns completed writes that a host crash cannot take back.
    Durable,
}
