//! Sockets that systemd listens on for this process (`sd_listen_fds(3)`). They outlive it: whoever connects while no
//! backend runs waits in the socket's queue for the next one and is never refused.

use std::collections::BTreeMap;

use crate::error::StartError;

/// The first descriptor that is handed over.
const FIRST_FD: i32 = 3;

/// Descriptors of listening sockets, by the name that the unit gives them (`FileDescriptorName=`): a guest's, or
/// [`CONTROL`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Activation(BTreeMap<String, i32>);

/// Name of the control socket.
pub const CONTROL: &str = "control";

impl Activation {
    /// What the environment says, if it speaks to this process.
    ///
    /// # Errors
    /// When sockets are handed over without a name each.
    pub fn from_environment() -> Result<Self, StartError> {
        let variable = |name: &str| std::env::var(name).ok();
        let pid = variable("LISTEN_PID").filter(|pid| *pid == std::process::id().to_string());
        match (pid, variable("LISTEN_FDS")) {
            (Some(_), Some(count)) => Self::parse(&count, &variable("LISTEN_FDNAMES").unwrap_or_default()),
            _ => Ok(Self::default()),
        }
    }

    fn parse(count: &str, names: &str) -> Result<Self, StartError> {
        let names: Vec<&str> = names.split(':').filter(|name| !name.is_empty()).collect();
        let sockets: BTreeMap<_, _> = names.iter().map(|name| (*name).to_owned()).zip(FIRST_FD..).collect();
        if count.parse() == Ok(names.len()) && sockets.len() == names.len() {
            return Ok(Self(sockets));
        }
        Err(StartError::Usage(format!(
            "LISTEN_FDS={count} LISTEN_FDNAMES={}: each socket unit needs FileDescriptorName= with the name of its guest",
            names.join(":")
        )))
    }

    /// The descriptor for this name.
    pub fn take(&mut self, name: &str) -> Option<i32> {
        self.0.remove(name)
    }

    /// Checks that every socket has been taken.
    ///
    /// # Errors
    /// When one has a name that nobody has: its guest would wait for ever.
    pub fn check_all_taken(&self) -> Result<(), StartError> {
        match self.0.keys().next() {
            Some(name) => Err(StartError::Usage(format!(
                "LISTEN_FDNAMES: {name} is neither {CONTROL} nor a guest that listens"
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_by_their_names() {
        let mut activation = Activation::parse("2", "front:issuer").unwrap();
        assert_eq!((activation.take("issuer"), activation.take("other")), (Some(4), None));
        assert!(activation.check_all_taken().unwrap_err().to_string().contains("front"));
        assert_eq!(activation.take("front"), Some(3));
        activation.check_all_taken().unwrap();
    }

    #[test]
    fn sockets_without_a_name_of_their_own_are_refused() {
        for (count, names) in [("2", "issuer"), ("1", ""), ("2", "a:a"), ("x", "a"), ("1", "a:b")] {
            assert!(Activation::parse(count, names).is_err(), "{count} {names}");
        }
    }
}
