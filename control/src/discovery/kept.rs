// SPDX-License-Identifier: Apache-2.0
//! Which reports are kept, so that a restart knows them.

use std::sync::Arc;

use culvert_api::workload::PodUid;
use tokio::sync::watch;

use crate::{
    index::Unwritten,
    kubernetes::{Elsewhere, Others, Waiting},
};

/// Which reports are kept, so that a restart knows them.
#[derive(Clone, Debug)]
pub enum Kept {
    /// In a file, up to this revision.
    File(watch::Receiver<u64>),
    /// In the conditions of their pods, apart from these.
    Conditions {
        /// The others.
        unwritten: watch::Receiver<Arc<Unwritten>>,
        /// The other replicas, which read them there.
        others: Others,
    },
}

// === impl Kept ===

impl Kept {
    /// Waits until the report of a pod is kept.
    pub(super) async fn kept(&self, uid: &PodUid, revision: u64) {
        // An error says that control is stopping.
        match self {
            Self::File(kept) => drop(kept.clone().wait_for(|kept| *kept >= revision).await),
            Self::Conditions { unwritten, .. } => {
                let is_written = |unwritten: &Arc<Unwritten>| !unwritten.pods.contains_key(uid);
                drop(unwritten.clone().wait_for(is_written).await);
            }
        }
    }

    /// What other replicas say, and what to hold while they are waited for.
    pub(super) fn elsewhere(&self) -> (Option<Waiting<'_>>, watch::Receiver<Arc<Elsewhere>>) {
        match self {
            Self::File(_) => (None, watch::channel(Arc::default()).1),
            Self::Conditions { others, .. } => {
                let (waiting, elsewhere) = others.wait();
                (Some(waiting), elsewhere)
            }
        }
    }
}
