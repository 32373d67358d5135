// SPDX-License-Identifier: Apache-2.0
//! How the watches are.

use std::{collections::BTreeMap, time::Instant};

/// How the watches are, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// By the kind's name, `Pod`.
    pub kinds: BTreeMap<&'static str, Kind>,
}

/// How the watch of a kind is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// All objects were listed at least once.
    pub listed: bool,
    /// How often all objects were listed: more than once only after an expired watch.
    pub lists: u64,
    /// How many failures there were since the start.
    pub failures: u64,
    /// The last failure, until the watch goes on.
    pub error: Option<String>,
    /// Since when the watch has not gone on.
    pub failing_since: Option<Instant>,
    /// What could not be read, by `namespace/name`, and why. What it last said stays.
    pub unreadable: BTreeMap<String, String>,
}

// === impl Status ===

impl Status {
    /// Each kind was listed at least once.
    pub fn synced(&self) -> bool {
        self.kinds.values().all(|kind| kind.listed)
    }
}
