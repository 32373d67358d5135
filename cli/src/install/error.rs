// SPDX-License-Identifier: Apache-2.0
//! What goes wrong with an installation, by whose fault it is.

use std::{io, path::PathBuf};

use crate::{chart, cluster::NoCluster};

/// A command about the installation failed. The text says what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asked for something that can't be.
    #[error("{0}")]
    Usage(String),
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The chart refuses its values.
    #[error("{0}")]
    Chart(#[from] chart::Error),
    /// Nothing says which cluster.
    #[error("{0}; --ignore-cluster asks none")]
    NoCluster(#[from] NoCluster),
    /// The API server does not answer, or refuses.
    #[error("could not {doing}: {reason}")]
    Cluster {
        /// What was asked.
        doing: String,
        /// What it said.
        reason: String,
    },
    /// What is in the cluster does not allow it.
    #[error("{0}")]
    State(String),
    /// A certificate can't be made.
    #[error("could not make certificates: {0}")]
    Certificates(String),
    /// Standard output is gone.
    #[error("could not write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// The result of a command about the installation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

// === impl Error ===

impl Error {
    /// As in sysexits.h.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Chart(chart::Error::Values(_)) => 64,
            Self::Chart(_) => 70,
            _ => 1,
        }
    }

    /// What the API server, or the way to it, said.
    pub fn cluster(doing: impl Into<String>, error: &kube::Error) -> Self {
        Self::Cluster {
            doing: doing.into(),
            reason: crate::cluster::deep(error),
        }
    }
}
