// SPDX-License-Identifier: Apache-2.0
//! What goes wrong in the sandbox, by whose fault it is.

use std::io;

/// A sandbox command failed. The text says what, whose fault it is and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asked for something that can't be.
    #[error("{0}")]
    Usage(String),
    /// The machine lacks what the sandbox needs, each thing with what to do about it.
    #[error("this machine can't run a sandbox:\n  {}", missing.join("\n  "))]
    Machine {
        /// What is missing.
        missing: Vec<String>,
    },
    /// The kernel or the file system refused.
    #[error("could not {doing}: {source}")]
    System {
        /// What was tried.
        doing: String,
        /// Why it was refused.
        source: io::Error,
    },
    /// The kernel refused to change links, addresses or routes.
    #[error("could not {doing} over netlink: {source}")]
    Netlink {
        /// What was tried.
        doing: String,
        /// Why it was refused.
        source: rtnetlink::Error,
    },
    /// No supervisor answers for this sandbox.
    #[error("the sandbox {name:?} is not running: start it with `culvert sandbox up -f DIR`{}",
        if *leftovers { ", or remove what an earlier one left with `culvert sandbox down`" } else { "" })]
    NotRunning {
        /// The sandbox.
        name: String,
        /// Whether an earlier supervisor left a state directory.
        leftovers: bool,
    },
    /// The supervisor of the sandbox refused a request, or ended.
    #[error("{0}")]
    Supervisor(String),
    /// The sandbox runs, but not everything in it is ready.
    #[error("the sandbox {name:?} is up, but not ready:\n  {}", reasons.join("\n  "))]
    NotReady {
        /// The sandbox.
        name: String,
        /// What is not ready, and why.
        reasons: Vec<String>,
    },
    /// The demonstration ran and did not show what it must.
    #[error("the demonstration failed:\n  {}", .0.join("\n  "))]
    Demo(Vec<String>),
}

/// The result of a sandbox command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was being done when the system refused.
pub trait Doing<T> {
    /// `doing` completes "could not …".
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::System {
            doing: doing(),
            source: source.into(),
        })
    }
}

impl Error {
    /// The exit status: 64 (`EX_USAGE`) for bad usage, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            _ => 1,
        }
    }
}
