//! The value of `--guest`, and what all of them together must keep to.

use std::collections::HashSet;

use crate::args::{EndpointConfig, GuestConfig};
use crate::error::StartError;
use crate::limits::{MAX_GUESTS, MAX_NAME_BYTES, MAX_SOCKET_PATH_BYTES};
use crate::role::{ReadMode, Role};
use crate::socket::SocketAccess;
use crate::throttle::Limits;
use crate::values::parse_rate;

/// One guest from `name=...,socket=...`.
///
/// # Errors
/// One line that says which key is wrong.
pub fn parse_guest(text: &str) -> Result<GuestConfig, StartError> {
    let bad = |what: &str| StartError::Usage(format!("--guest {text}: {what}"));
    let (mut name, mut endpoint, mut role, mut reads) = (None, None, None, None);
    let mut limits = Limits::default();
    let mut access = SocketAccess::default();
    let mut seen = HashSet::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| bad(&format!("'{part}' is not KEY=VALUE")))?;
        if !seen.insert(key) {
            return Err(bad(&format!("{key} is given twice")));
        }
        match key {
            "name" => {
                name = Some(parse_name(value).ok_or_else(|| bad("a name is 1 to 64 of A-Z a-z 0-9 . _ -"))?)
            }
            "socket" | "connect" if endpoint.is_some() => {
                return Err(bad("socket and connect exclude each other"));
            }
            "socket" => endpoint = Some(EndpointConfig::Listen(value.into())),
            "connect" => endpoint = Some(EndpointConfig::Connect(value.into())),
            "access" => role = Some(parse_role(value).ok_or_else(|| bad("access is rw, ro or standby"))?),
            "reads" => reads = Some(parse_reads(value).ok_or_else(|| bad("reads is completed or durable"))?),
            "iops" | "bps" => {
                let rate = parse_rate(value);
                let rate =
                    rate.ok_or_else(|| bad(&format!("{key} is RATE or RATE:BURST, such as 2000:500")))?;
                *(if key == "iops" { &mut limits.requests } else { &mut limits.bytes }) = Some(rate);
            }
            "mode" => {
                let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o777);
                access.mode = Some(mode.ok_or_else(|| bad("mode is octal, such as 0660"))?);
            }
            "group" => {
                let group = crate::group::group_id(value);
                access.group_id = Some(group.ok_or_else(|| bad(&format!("no group '{value}'")))?);
            }
            _ => return Err(bad(&format!("unknown key '{key}'"))),
        }
    }
    Ok(GuestConfig {
        name: name.ok_or_else(|| bad("name= is missing"))?,
        endpoint: endpoint.ok_or_else(|| bad("socket= or connect= is missing"))?,
        access,
        role: role.unwrap_or(Role::ReadWrite),
        reads: reads.unwrap_or(ReadMode::Completed),
        limits,
    })
}

fn parse_name(text: &str) -> Option<String> {
    let fits = (1..=MAX_NAME_BYTES).contains(&text.len());
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    (fits && plain).then(|| text.to_owned())
}

fn parse_role(text: &str) -> Option<Role> {
    match text {
        "rw" => Some(Role::ReadWrite),
        "ro" => Some(Role::ReadOnly),
        "standby" => Some(Role::Standby),
        _ => None,
    }
}

fn parse_reads(text: &str) -> Option<ReadMode> {
    match text {
        "completed" => Some(ReadMode::Completed),
        "durable" => Some(ReadMode::Durable),
        _ => None,
    }
}

/// Checks names, sockets and writers of all guests.
///
/// # Errors
/// One line that says which guests do not go together.
pub fn check_guests(guests: &[GuestConfig], multi_writer: bool) -> Result<(), StartError> {
    if guests.len() > MAX_GUESTS {
        return Err(StartError::Usage(format!("{} guests: {MAX_GUESTS} are possible", guests.len())));
    }
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    for guest in guests {
        let name = &guest.name;
        if !names.insert(name) {
            return Err(StartError::Usage(format!("two guests are named {name}")));
        }
        let (EndpointConfig::Listen(path) | EndpointConfig::Connect(path)) = &guest.endpoint else {
            continue;
        };
        let len = path.as_os_str().len();
        if len == 0 || len > MAX_SOCKET_PATH_BYTES {
            return Err(StartError::Usage(format!(
                "guest {name}: a socket path has 1 to {MAX_SOCKET_PATH_BYTES} bytes, this one {len}"
            )));
        }
        if !paths.insert(path) {
            return Err(StartError::Usage(format!("two guests use the socket {}", path.display())));
        }
    }
    let mut writers = guests.iter().filter(|guest| guest.role.may_write()).map(|guest| &guest.name);
    if let (Some(first), Some(second), false) = (writers.next(), writers.next(), multi_writer) {
        return Err(StartError::Usage(format!(
            "guests {first} and {second} both have access=rw; give one access=ro or standby, or --multi-writer"
        )));
    }
    Ok(())
}
