// SPDX-License-Identifier: Apache-2.0
//! A destination on disk: services and pods that control told of, so that an application that scans
//! addresses fills no file.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Endpoint, message::Change};

/// A destination as the state file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(super) destination: SocketAddr,
    #[serde(flatten)]
    pub(super) what: SavedKind,
}

#[expect(clippy::large_enum_variant, reason = "they are written and gone")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum SavedKind {
    Service {
        namespace: String,
        name: String,
        endpoints: Vec<Endpoint>,
    },
    Pod {
        endpoint: Endpoint,
    },
    /// Of an earlier release: not written any more.
    Unknown,
}

// === impl SavedKind ===

impl From<SavedKind> for Change {
    fn from(saved: SavedKind) -> Self {
        match saved {
            SavedKind::Unknown => Self::Unknown,
            SavedKind::Pod { endpoint } => Self::Pod(endpoint),
            SavedKind::Service {
                namespace,
                name,
                endpoints,
            } => Self::Service {
                namespace,
                name,
                snapshot: true,
                set: endpoints,
                removed: Vec::new(),
            },
        }
    }
}
