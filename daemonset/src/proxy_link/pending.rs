// SPDX-License-Identifier: Apache-2.0
//! The messages that a proxy has still to acknowledge.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use culvert_api::{agent::FromAgent, workload::WorkloadKey};

/// A proxy that takes longer is in trouble.
pub const LIMIT: Duration = Duration::from_secs(10);

/// The messages on one connection.
#[derive(Debug, Default)]
pub struct Pending {
    sent: Mutex<BTreeMap<u64, Sent>>,
}

/// A message that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// What it was.
    pub what: &'static str,
    /// The enrolment that it was about.
    pub key: Option<WorkloadKey>,
    at: Instant,
    late: bool,
}

// === impl Pending ===

impl Pending {
    /// A message is about to be sent.
    pub fn sending(&self, message: &FromAgent, now: Instant) {
        if let Some((seq, what, key)) = numbered(message) {
            let sent = Sent {
                what,
                key: key.cloned(),
                at: now,
                late: false,
            };
            self.lock().insert(seq, sent);
        }
    }

    /// An answer came. None: to nothing that was asked.
    pub fn answered(&self, seq: u64) -> Option<Sent> {
        self.lock().remove(&seq)
    }

    /// The messages that became late since the last call.
    pub fn late(&self, now: Instant) -> Vec<Sent> {
        let mut sent = self.lock();
        let waits = |sent: &&mut Sent| !sent.late && now.saturating_duration_since(sent.at) > LIMIT;
        let late = sent.values_mut().filter(waits);
        late.map(|sent| {
            sent.late = true;
            sent.clone()
        })
        .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn numbered(message: &FromAgent) -> Option<(u64, &'static str, Option<&WorkloadKey>)> {
    match message {
        FromAgent::Pod { seq, key, .. } => Some((*seq, "pod", Some(key))),
        FromAgent::Addresses { seq, key, .. } => Some((*seq, "addresses", Some(key))),
        FromAgent::Withdraw { seq, key } => Some((*seq, "withdraw", Some(key))),
        FromAgent::Remove { seq, key } => Some((*seq, "remove", Some(key))),
        FromAgent::SnapshotEnd { seq } => Some((*seq, "snapshot_end", None)),
        FromAgent::Hello { .. } | FromAgent::Key { .. } | FromAgent::Sockets { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_is_told_once() {
        let (pending, start) = (Pending::default(), Instant::now());
        for seq in [1, 2] {
            pending.sending(&FromAgent::SnapshotEnd { seq }, start);
        }
        assert!(pending.answered(1).is_some() && pending.answered(1).is_none());
        assert_eq!(pending.late(start).len(), 0);
        let later = start + 2 * LIMIT;
        assert_eq!(pending.late(later).len(), 1);
        assert_eq!(pending.late(later).len(), 0);
    }
}
