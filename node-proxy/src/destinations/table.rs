// SPDX-License-Identifier: Apache-2.0
//! The destinations in use, and how many of them are whose.
//!
//! Each counts against the pod that was the first to dial it, so that a pod that dials many
//! addresses crowds out its own. At a limit the least recently used ones go that nobody holds.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use culvert_api::workload::WorkloadKey;

use super::entry::{Entry, Rank};

/// The most destinations that are kept on this node.
pub(super) const LIMIT: usize = 65_536;

/// The most that are kept of those that one pod was the first to dial.
pub(super) const POD_LIMIT: usize = 4_096;

/// At a limit one in so many goes at once: the next ones need not look through all again.
const PART: usize = 64;

/// How long nobody looks again, where everything was in use.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<SocketAddr, Arc<Entry>>,
    /// What each pod was the first to dial. Restored ones are nobody's.
    budgets: HashMap<WorkloadKey, Budget>,
    /// Until when nothing is looked for on the whole node, since the start.
    full_until: Duration,
}

#[derive(Debug, Default)]
struct Budget {
    destinations: HashSet<SocketAddr>,
    full_until: Duration,
}

/// Everything up to this limit is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full {
    pub(super) limit: usize,
}

// === impl Table ===

impl Table {
    pub(super) fn find(&self, dst: SocketAddr) -> Option<Arc<Entry>> {
        self.entries.get(&dst).cloned()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&SocketAddr, &Arc<Entry>)> {
        self.entries.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn insert(&mut self, dst: SocketAddr, entry: Entry) -> Arc<Entry> {
        self.remove(dst);
        if let Some(owner) = entry.owner() {
            let budget = self.budgets.entry(owner.clone()).or_default();
            budget.destinations.insert(dst);
        }
        let entry = Arc::new(entry);
        self.entries.insert(dst, entry.clone());
        entry
    }

    pub(super) fn remove(&mut self, dst: SocketAddr) {
        let Some(entry) = self.entries.remove(&dst) else {
            return;
        };
        let Some(owner) = entry.owner() else { return };
        let Some(budget) = self.budgets.get_mut(owner) else {
            return;
        };
        budget.destinations.remove(&dst);
        if budget.destinations.is_empty() {
            self.budgets.remove(owner);
        }
    }

    /// Makes room for one more of `owner`. Returns what had to go.
    pub(super) fn make_room(
        &mut self,
        owner: &WorkloadKey,
        now: Duration,
    ) -> Result<Vec<SocketAddr>, Full> {
        let mut gone = self.make_room_in_budget(owner, now)?;
        gone.iter().for_each(|dst| self.remove(*dst));
        if self.entries.len() >= LIMIT {
            let more = self.oldest_of_all(now)?;
            more.iter().for_each(|dst| self.remove(*dst));
            gone.extend(more);
        }
        Ok(gone)
    }

    fn make_room_in_budget(
        &mut self,
        owner: &WorkloadKey,
        now: Duration,
    ) -> Result<Vec<SocketAddr>, Full> {
        let Some(budget) = self.budgets.get_mut(owner) else {
            return Ok(Vec::new());
        };
        if budget.destinations.len() < POD_LIMIT {
            return Ok(Vec::new());
        }
        let full = Full { limit: POD_LIMIT };
        if now < budget.full_until {
            return Err(full);
        }
        let own = budget.destinations.iter();
        let own = own.filter_map(|dst| Some((dst, self.entries.get(dst)?)));
        let oldest = oldest(own, POD_LIMIT / PART);
        if oldest.is_empty() {
            budget.full_until = now + PAUSE;
            return Err(full);
        }
        Ok(oldest)
    }

    fn oldest_of_all(&mut self, now: Duration) -> Result<Vec<SocketAddr>, Full> {
        let full = Full { limit: LIMIT };
        if now < self.full_until {
            return Err(full);
        }
        let oldest = oldest(self.entries.iter(), LIMIT / PART);
        if oldest.is_empty() {
            self.full_until = now + PAUSE;
            return Err(full);
        }
        Ok(oldest)
    }
}

/// The first `count` to go, in no order.
fn oldest<'a>(
    among: impl Iterator<Item = (&'a SocketAddr, &'a Arc<Entry>)>,
    count: usize,
) -> Vec<SocketAddr> {
    let ranked = among.filter_map(|(dst, entry)| Some((Entry::rank(entry)?, *dst)));
    let mut ranked: Vec<(Rank, SocketAddr)> = ranked.collect();
    if ranked.len() > count {
        ranked.select_nth_unstable(count);
        ranked.truncate(count);
    }
    ranked.into_iter().map(|(_, dst)| dst).collect()
}
