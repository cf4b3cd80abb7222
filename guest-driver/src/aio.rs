//! Several transfers of one file at a time, by the kernel's native asynchronous IO. It needs no memory shared with the kernel and is there
//! where io_uring is forbidden; where it is refused as well, the caller does its transfers one after the other.
//!
//! Invariant: nothing is in flight any more when a [`Flight`] is gone, whatever ended it: the kernel never touches memory that its owner
//! has got back.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, TryLockError};

/// Most transfers in flight.
const FLIGHT_MAX: usize = 64;
/// Transfers are handed to the kernel as soon as they come to so many bytes, so that the disk works while the next ones are prepared.
const SUBMIT_BYTES: usize = 256 << 10;

/// Direction of a transfer: `IOCB_CMD_PREAD` and `IOCB_CMD_PWRITE` of linux/aio_abi.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file into memory.
    Read = 0,
    /// From memory into the file.
    Write = 1,
}

/// `struct iocb` of linux/aio_abi.h, little-endian.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    len_bytes: u64,
    offset_bytes: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}
const _: () = assert!(size_of::<Iocb>() == 64);

/// `struct io_event` of linux/aio_abi.h.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Event {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

/// A context of the kernel for transfers in flight.
#[derive(Debug)]
struct Context(libc::c_ulong);

impl Context {
    fn new() -> Option<Self> {
        let mut id: libc::c_ulong = 0;
        // SAFETY: the call writes one `aio_context_t` to a place of that type, which must be 0 before.
        let answer = unsafe { libc::syscall(libc::SYS_io_setup, FLIGHT_MAX, &raw mut id) };
        (answer == 0).then_some(Self(id))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours and nobody uses it after this. The kernel waits for what is in flight.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Untried,
    Ready(Context),
    /// The kernel has none, forbids it, or has no context left.
    Refused,
}

/// The contexts of one file: none until the first flight.
#[derive(Debug, Default)]
pub struct Aio {
    state: Mutex<State>,
}

impl Aio {
    /// Begins transfers of `file`; `None` where the kernel has no asynchronous IO for us, and while another flight is under way.
    pub fn begin<'f>(&'f self, file: &'f File, direction: Direction) -> Option<Flight<'f>> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if matches!(*state, State::Untried) {
            *state = Context::new().map_or(State::Refused, State::Ready);
        }
        let fd = u32::try_from(file.as_raw_fd()).ok()?;
        matches!(*state, State::Ready(_)).then(|| Flight {
            state,
            fd,
            direction,
            queued: Vec::new(),
            queued_bytes: 0,
            lens: Vec::new(),
            in_flight: 0,
            unfinished: Vec::new(),
            _file: file,
        })
    }
}

/// A transfer that is not whole: its number in the flight, and the negated error or the bytes that went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Number of the transfer, from 0 in the order of [`Flight::push`].
    pub number: usize,
    /// As the kernel gave it; 0 where the kernel did not take the transfer.
    pub result: i64,
}

/// Transfers of one call.
#[derive(Debug)]
pub struct Flight<'f> {
    state: MutexGuard<'f, State>,
    fd: u32,
    direction: Direction,
    queued: Vec<Iocb>,
    queued_bytes: usize,
    /// Bytes of each transfer, by number.
    lens: Vec<usize>,
    in_flight: usize,
    unfinished: Vec<Unfinished>,
    _file: &'f File,
}

impl Flight<'_> {
    /// Adds a transfer and perhaps submits it.
    ///
    /// # Safety
    /// The `len_bytes` at `buf` belong to this transfer until the flight has landed or was dropped: nobody else writes them, and for
    /// [`Direction::Read`] nobody else reads them.
    pub unsafe fn push(&mut self, offset_bytes: u64, buf: *mut u8, len_bytes: usize) {
        let iocb = Iocb {
            data: self.lens.len() as u64,
            opcode: self.direction as u16,
            fd: self.fd,
            buf: buf.expose_provenance() as u64,
            len_bytes: len_bytes as u64,
            offset_bytes: i64::try_from(offset_bytes).unwrap_or(-1), // refused by the kernel
            ..Iocb::default()
        };
        self.lens.push(len_bytes);
        self.queued.push(iocb);
        self.queued_bytes += len_bytes;
        if self.queued_bytes >= SUBMIT_BYTES || self.queued.len() == FLIGHT_MAX {
            self.submit();
        }
    }

    /// Waits until everything has landed; returns what is not whole.
    #[must_use]
    pub fn land(mut self) -> Vec<Unfinished> {
        self.submit();
        self.reap(self.in_flight);
        std::mem::take(&mut self.unfinished)
    }

    /// Hands what is queued to the kernel. What it does not take is unfinished.
    fn submit(&mut self) {
        self.queued_bytes = 0;
        let queued = std::mem::take(&mut self.queued);
        let pointers: Vec<*const Iocb> = queued.iter().map(std::ptr::from_ref).collect();
        let mut rest = pointers.as_slice();
        while let Some(first) = queued.len().checked_sub(rest.len()).and_then(|at| queued.get(at)) {
            let number = first.data;
            if self.in_flight == FLIGHT_MAX {
                self.reap(1);
            }
            let count = rest.len().min(FLIGHT_MAX - self.in_flight);
            let State::Ready(Context(id)) = *self.state else {
                self.note(number, 0);
                rest = &rest[1..];
                continue;
            };
            // SAFETY: `count` pointers to control blocks that live until the call returns (the kernel copies them); the caller of `push`
            // vouches for the memory that they name.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, id, count, rest.as_ptr()) };
            match usize::try_from(taken) {
                Ok(taken) if taken > 0 => {
                    self.in_flight += taken;
                    rest = &rest[taken.min(count)..];
                }
                _ if is_interrupted() => {}
                // The queue of the system is full: what is in flight makes room.
                _ if self.in_flight > 0 => self.reap(1),
                _ => {
                    self.note(number, 0);
                    rest = &rest[1..];
                }
            }
        }
    }

    /// Waits for at least `count` of the transfers in flight.
    fn reap(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let State::Ready(Context(id)) = *self.state else { return };
            let mut events = [Event::default(); FLIGHT_MAX];
            let no_timeout = std::ptr::null::<libc::timespec>();
            // SAFETY: `events` has room for as many as are asked for.
            let got = unsafe {
                libc::syscall(libc::SYS_io_getevents, id, left, FLIGHT_MAX, events.as_mut_ptr(), no_timeout)
            };
            let Ok(got) = usize::try_from(got) else {
                if !is_interrupted() {
                    self.abandon();
                    return;
                }
                continue;
            };
            for event in events.iter().take(got) {
                self.note(event.data, event.result);
            }
            self.in_flight = self.in_flight.saturating_sub(got);
            left = left.saturating_sub(got);
        }
    }

    fn note(&mut self, number: u64, result: i64) {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let is_whole = self.lens.get(number).is_some_and(|len| usize::try_from(result) == Ok(*len));
        if !is_whole {
            self.unfinished.push(Unfinished { number, result });
        }
    }

    /// The kernel does not say what became of the transfers in flight: gives the context back, which waits for them, and calls every transfer
    /// unfinished.
    fn abandon(&mut self) {
        *self.state = State::Refused;
        self.in_flight = 0;
        self.unfinished = (0..self.lens.len()).map(|number| Unfinished { number, result: 0 }).collect();
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.reap(self.in_flight);
    }
}

fn is_interrupted() -> bool {
    std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
}
