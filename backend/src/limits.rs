//! Every limit of the backend in one place; docs/limits.md says the same.

/// Guests of one backend; the memory regions of all of them fit into [`MAX_GUARDED_REGIONS`].
pub const MAX_GUESTS: usize = 16;

/// Virtqueues one guest may use. QEMU exits when it wants more than the backend offers.
pub const MAX_QUEUES: u16 = 64;

/// Descriptors in one virtqueue; QEMU's own maximum.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Descriptors of a chain that is served; a longer one is refused.
pub const MAX_CHAIN_DESCRIPTORS: u32 = 1024;

/// Descriptors of an indirect table that is looked into at all, if only to find the status byte.
pub const MAX_TABLE_DESCRIPTORS: u32 = 2048;

/// Pieces of guest memory in one chain: buffers are divided where memory regions meet.
pub const MAX_CHAIN_PIECES: usize = 2048;

/// Descriptors walked before completions are looked at again.
pub const MAX_ROUND_DESCRIPTORS: usize = 4096;

/// Data segments a driver should use in one request (`seg_max`, virtio 1.2, 5.2.4).
pub const SEG_MAX: u32 = 126;

/// Bytes a driver should put in one segment (`size_max`, virtio 1.2, 5.2.4).
pub const SIZE_MAX_BYTES: u32 = 256 * 1024;

/// Data bytes of one request; `SEG_MAX` times `SIZE_MAX_BYTES` fit.
pub const MAX_REQUEST_BYTES: u64 = 32 * 1024 * 1024;

/// Requests one guest may have in the backend; further ones wait in its ring.
pub const MAX_IN_FLIGHT: usize = 1024;

/// Bytes of the requests of one guest in the backend; further ones wait in its ring.
pub const MAX_IN_FLIGHT_BYTES: u64 = 64 * 1024 * 1024;

/// Pieces of guest memory that these requests name; further requests wait in its ring.
pub const MAX_IN_FLIGHT_PIECES: usize = 32_768;

/// Requests taken from one ring before the next ring has its turn.
pub const MAX_BATCH: usize = 64;

/// The same where IO is done in line: the guest sees nothing of a batch before its end, and falls asleep if that takes long.
pub const MAX_BATCH_IN_LINE: usize = 6;

/// IOs that wait to be handed to the kernel in one call.
pub const MAX_HANDED_OVER: usize = 4;

/// Segments of a list that is kept for the next request when its own has ended.
pub const MAX_SPARE_SEGMENTS: usize = 64;

/// Ranges in one DISCARD or WRITE_ZEROES request.
pub const MAX_ERASE_SEGMENTS: u32 = 16;

/// Sectors in one range of a DISCARD or WRITE_ZEROES request (512 MiB).
pub const MAX_ERASE_SECTORS: u32 = 1 << 20;

/// Bytes of one piece of a DISCARD or WRITE_ZEROES, between two looks at waiting flushes.
pub const ERASE_PIECE_BYTES: u64 = 64 * 1024 * 1024;

/// Memory regions of one guest; QEMU uses at most 509 with memory hotplug.
pub const MAX_MEM_SLOTS: usize = 509;

/// Aligned buffers one guest's worker has for requests that direct IO cannot take as they are.
pub const MAX_BOUNCE_BUFFERS: usize = 16;

/// Bytes of one such buffer; a longer request is copied through it in pieces.
pub const BOUNCE_BUFFER_BYTES: usize = 256 * 1024;

/// Bytes of zeroes written at once where the host cannot zero by itself.
pub const ZERO_PIECE_BYTES: u64 = 1 << 20;

/// Bytes of a guest's name.
pub const MAX_NAME_BYTES: usize = 64;

/// Log lines a second that one guest can cause; what is beyond is counted and said later.
pub const MAX_LOG_LINES_PER_SECOND: u32 = 5;

/// Milliseconds that a connection in its first messages may go on when the process stops: QEMU 7.2 does not
/// come back from a handshake that fails.
pub const HANDSHAKE_GRACE_MS: u64 = 1000;

/// Times that a request's IO is tried again because the host was busy (EAGAIN, EINTR), in all.
pub const MAX_BUSY_TRIES: u32 = 1000;

/// Segments of one system call (`IOV_MAX`).
pub const MAX_IOVECS: usize = 1024;

/// Memory regions of all guests whose loss must not end the process.
pub const MAX_GUARDED_REGIONS: usize = 8704;

/// Guest memory of one guest, in bytes: the address space is shared by all guests.
pub const MAX_MAPPED_BYTES: u64 = 16 << 40;

/// Descriptors that one message may carry: one a region of SET_MEM_TABLE.
pub const MAX_MESSAGE_FDS: usize = 32;

/// Body bytes of one vhost-user message.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// Bytes of the longest socket path (`sun_path` less the final NUL).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Seconds a start waits for the image lock: writes of a killed process land after its death.
pub const LOCK_WAIT_SECONDS: u64 = 5;

/// Seconds that everybody waits, after a kill, for guests that were writing.
pub const MAX_RECOVERY_WAIT_SECONDS: u64 = 10;

/// Seconds a stop may take before the process gives up and says so.
pub const STOP_DEADLINE_SECONDS: u64 = 10;

/// Milliseconds that a stop waits for the guests' threads before it looks after their requests itself, and as long after that.
pub const STOP_PATIENCE_MS: u64 = 2000;

/// Bytes of the answer to GET_ID (virtio 1.2, 5.2.6).
pub const SERIAL_BYTES: usize = 20;

/// Bytes of a sector, the unit of all virtio-blk addresses.
pub const SECTOR_BYTES: u64 = 512;

/// Ranges in the map of bytes that are not synced; past it neighbours are joined.
pub const MAX_DIRTY_RANGES: usize = 4096;

/// Front ends that may wait at a socket to be accepted.
pub const MAX_WAITING_CONNECTIONS: i32 = 128;

/// Seconds that a client of the control socket may be silent.
pub const CONTROL_CLIENT_SECONDS: u64 = 30;

/// Seconds that it may leave an answer unread; less than a stop may take.
pub const CONTROL_ANSWER_SECONDS: u64 = 5;

/// Seconds that `ctl` waits for an answer, where nothing else is said.
pub const DEFAULT_CTL_SECONDS: u32 = 60;

/// The most that may be said: a day.
pub const MAX_CTL_SECONDS: u32 = 86_400;

/// Connections to the control socket at once.
pub const MAX_CONTROL_CONNECTIONS: usize = 16;

/// Separate ranges of a disk that may be sealed; neighbours are one.
pub const MAX_SEALED_RANGES: usize = 65_536;

/// Ranges that one command on the control socket may name; `ctl` sends as many commands as it takes.
pub const MAX_SEAL_COMMAND_RANGES: usize = 64;

/// Sealed ranges begin and end at multiples of so many bytes.
pub const SEAL_UNIT_BYTES: u64 = 4096;

/// Bytes of one line on the control socket.
pub const MAX_CONTROL_LINE_BYTES: u64 = 4096;

/// Seconds that a process which takes over another may need to get ready, while guests still run.
pub const HANDOVER_PREPARE_SECONDS: u64 = 10;

/// Milliseconds that guests pause at most before the old process goes on, whatever the new one does.
pub const HANDOVER_PAUSE_MS: u64 = 2000;

/// Bytes of one message between the two.
pub const MAX_HANDOVER_BYTES: usize = 16 * 1024 * 1024;

/// Descriptors that come with it.
pub const MAX_HANDOVER_FDS: usize = 16384;

/// Microseconds that a worker looks for news after work, where nothing else is said.
pub const DEFAULT_POLL_US: u32 = 50;

/// The most that may be said.
pub const MAX_POLL_US: u32 = 1_000_000;

/// Processors of a host (`CPU_SETSIZE`).
pub const MAX_CPUS: usize = 1024;

// While a guest tells its memory and its in-flight region anew it has both twice: no other guest must go short for that.
const _: () = assert!(MAX_GUESTS * (MAX_MEM_SLOTS + MAX_MESSAGE_FDS + 2) <= MAX_GUARDED_REGIONS);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    /// A product, a shift or a number.
    fn value(text: &str) -> u128 {
        let number = |text: &str| text.trim().replace('_', "").parse::<u128>().unwrap();
        match text.split_once("<<") {
            Some((base, bits)) => number(base) << number(bits),
            None => text.split('*').map(number).product(),
        }
    }

    /// A number with its unit, as people write it.
    fn written(text: &str) -> u128 {
        let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
        let factor = match unit {
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => 1,
        };
        number.replace(',', "").parse::<u128>().unwrap() * factor
    }

    #[test]
    fn page_of_limits_says_what_the_code_says() {
        let constant = |line: &str| {
            let (name, rest) = line.strip_prefix("pub const ")?.split_once(": ")?;
            let (_, text) = rest.split_once(" = ")?;
            Some((name.to_owned(), value(text.trim_end_matches(';'))))
        };
        let in_code: BTreeMap<String, u128> =
            include_str!("limits.rs").lines().filter_map(constant).collect();
        let row = |line: &str| {
            let cells: Vec<&str> = line.strip_prefix("| ")?.split(" | ").collect();
            let name = cells.last()?.trim_end_matches(" |").strip_prefix('`')?.strip_suffix('`')?;
            Some((name.to_owned(), written(cells.get(1)?)))
        };
        let page = include_str!("../../docs/limits.md");
        let on_page: BTreeMap<String, u128> = page.lines().filter_map(row).collect();
        assert!(in_code.len() > 40);
        assert_eq!(in_code, on_page);
    }
}
