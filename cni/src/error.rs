// SPDX-License-Identifier: Apache-2.0
//! What can go wrong, by whose fault it is, and its code in the CNI specification
//! (<https://www.cni.dev/docs/spec/#error>).

use std::{io, path::PathBuf};

use culvert_api::cni::code;

/// Why a command failed. `Display` is the short `msg`, [`Error::details`] the rest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime set a variable wrongly, or not at all.
    #[error("invalid environment variable {variable}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What was got and what was expected.
        problem: String,
    },
    /// The runtime's pipe broke.
    #[error("could not read the network configuration from stdin")]
    Stdin(#[source] io::Error),
    /// What came on stdin is no network configuration.
    #[error("could not decode the network configuration")]
    Decode(#[source] serde_json::Error),
    /// The runtime speaks a version that this plugin does not, or that lacks the command.
    #[error("incompatible CNI version {got:?}")]
    Version {
        /// What the configuration said.
        got: String,
        /// What is spoken instead, as a phrase.
        expected: &'static str,
    },
    /// Whoever wrote the configuration made a mistake.
    #[error("invalid network configuration: {field}")]
    Config {
        /// The field.
        field: String,
        /// What was got and what was expected.
        problem: String,
    },
    /// No answer could be had from the agent.
    #[error("culvert-agent is away")]
    Away {
        /// [`code::TRY_AGAIN`] or [`code::NOT_AVAILABLE`].
        code: u32,
        /// The agent's socket.
        socket: PathBuf,
        /// Why there was no answer.
        reason: NoAnswer,
        /// What this means for the command.
        consequence: String,
    },
    /// The agent answered that it could not do it.
    #[error("{message}")]
    Agent {
        /// Its code.
        code: u32,
        /// Its short message.
        message: String,
        /// Its details.
        details: String,
    },
    /// This plugin panicked.
    #[error("culvert-cni panicked")]
    Bug,
}

/// Why the agent gave no answer that can be understood.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// Nobody listens.
    #[error("could not connect: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke, or the time was up.
    #[error("connected, but got no answer: {0}")]
    Silent(#[source] io::Error),
    /// The answer makes no sense: another release, or not our agent.
    #[error("the answer can't be read; are plugin and agent more than a release apart? {0}")]
    Unreadable(#[source] serde_json::Error),
    /// The question is too long for the protocol.
    #[error("the request has {got} bytes, the agent takes {limit}")]
    TooLong {
        /// Its length.
        got: usize,
        /// The most that the agent takes.
        limit: usize,
    },
}

// === impl Error ===

impl Error {
    /// A mistake in a field of the network configuration.
    pub fn config(field: &str, problem: impl Into<String>) -> Self {
        Self::Config {
            field: field.to_owned(),
            problem: problem.into(),
        }
    }

    /// The code for the runtime.
    pub fn code(&self) -> u32 {
        match self {
            Self::Environment { .. } => code::INVALID_ENVIRONMENT,
            Self::Stdin(_) => code::IO_FAILURE,
            Self::Decode(_) => code::DECODING_FAILURE,
            Self::Version { .. } => code::INCOMPATIBLE_VERSION,
            Self::Config { .. } => code::INVALID_CONFIG,
            // 0 would be a success.
            Self::Agent { code: 0, .. } | Self::Bug => code::STEERING_FAILED,
            Self::Away { code, .. } | Self::Agent { code, .. } => *code,
        }
    }

    /// What was got, what was expected, what to do.
    pub fn details(&self) -> String {
        match self {
            Self::Environment { problem, .. } | Self::Config { problem, .. } => problem.clone(),
            Self::Stdin(error) => error.to_string(),
            Self::Decode(error) => error.to_string(),
            Self::Version { expected, .. } => format!("expected {expected}"),
            Self::Away {
                code: _,
                socket,
                reason,
                consequence,
            } => format!("{}: {reason}; {consequence}", socket.display()),
            Self::Agent { details, .. } => details.clone(),
            Self::Bug => "the panic is on stderr; please report it".to_owned(),
        }
    }
}
