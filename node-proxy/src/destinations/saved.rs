// SPDX-License-Identifier: Apache-2.0
//! A destination on disk: services and pods that control told of, so that an application that scans
//! addresses fills no file.

use std::net::SocketAddr;

use culvert_api::protocol::Hint;
use serde::{Deserialize, Serialize};

use super::{
    Endpoint,
    message::{Change, Described},
};

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
        /// None in an earlier release's file, and where control did not say.
        #[serde(default)]
        protocol: Option<Hint>,
        endpoints: Vec<Endpoint>,
    },
    Pod {
        endpoint: Endpoint,
    },
    /// Of an earlier release: not written any more.
    Unknown,
}

// === impl Saved ===

impl From<Saved> for Change {
    fn from(saved: Saved) -> Self {
        match saved.what {
            SavedKind::Unknown => Self::Unknown,
            SavedKind::Pod { endpoint } => Self::Pod(endpoint),
            SavedKind::Service {
                namespace,
                name,
                protocol,
                endpoints,
            } => Self::Service {
                service: Described {
                    namespace,
                    name,
                    port: saved.destination.port(),
                    protocol,
                },
                snapshot: true,
                set: endpoints,
                removed: Vec::new(),
            },
        }
    }
}
