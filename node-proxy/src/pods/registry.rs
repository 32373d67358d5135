// SPDX-License-Identifier: Apache-2.0
//! The pods behind the lock: what each is served with, and what control and peers know of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use culvert_api::{
    policy::InboundPolicy,
    workload::{PodUid, WorkloadKey},
};

use super::{
    BadListeners, Pod, Surroundings,
    departed::Departed,
    listeners::{Served, Serving},
    policy::{self, Stage},
    report::Report,
};
use crate::control_link::{self, Ask};

#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) entries: BTreeMap<WorkloadKey, Entry>,
    pub(super) policies: BTreeMap<PodUid, Arc<InboundPolicy>>,
    /// The pods whose peers know that they are meshed, those of an earlier proxy included.
    pub(super) reported: BTreeSet<WorkloadKey>,
    pub(super) departed: Departed,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) pod: Arc<Pod>,
    pub(super) served: Served,
    /// Its peers may dial it in plaintext until it is reported: it ran before it was enrolled, or
    /// they were told that it leaves.
    pub(super) live: bool,
    /// Its peers know since a moment ago that it is meshed.
    pub(super) in_grace: bool,
    pub(super) report: Report,
}

/// Proof that a pod's policy is in force: no connection is taken before.
#[derive(Debug)]
pub(super) struct Settled(());

// === impl Registry ===

impl Registry {
    /// What control is to be told of the pods that left while no proxy was there.
    pub(super) fn left_unseen(
        &mut self,
        named: &BTreeSet<WorkloadKey>,
    ) -> Vec<control_link::Report> {
        let known = std::mem::take(&mut self.reported);
        let (here, gone) = known.into_iter().partition(|key| named.contains(key));
        self.reported = here;
        let gone: BTreeSet<_> = gone;
        let departed = &mut self.departed;
        let reports = gone.into_iter().filter_map(|key| {
            let mut report = Report::default();
            report.withdraw(true);
            departed.keep(&key, report);
            report.of(&key)
        });
        reports.collect()
    }

    /// Brings policy and report of a pod in line with what is known of it.
    pub(super) fn settle(&mut self, key: &WorkloadKey, around: &Surroundings) -> Option<Settled> {
        let entry = self.entries.get_mut(key)?;
        let certified = around.proxy.identities.is_certified(&entry.pod.identity);
        if entry.report.steer(certified && entry.served.is_complete()) {
            entry.send_report(around);
        }
        let stage = Stage {
            live: entry.live,
            reported: self.reported.contains(key) && !entry.in_grace,
            withdrawing: entry.report.is_withdrawing(),
        };
        let asked = self.policies.get(&key.uid);
        entry.pod.enforce(&policy::effective(asked, stage));
        Some(Settled(()))
    }
}

// === impl Entry ===

impl Entry {
    pub(super) fn serve(
        &mut self,
        listeners: Vec<Serving>,
        _settled: &Settled,
        around: &Arc<Surroundings>,
    ) -> Result<(), BadListeners> {
        let own = self.served.replace(listeners, &self.pod, around)?;
        self.pod.own_listeners.store(Arc::new(own));
        Ok(())
    }

    pub(super) fn report(&self) -> Option<control_link::Report> {
        self.report.of(&self.pod.key)
    }

    pub(super) fn send_report(&self, around: &Surroundings) {
        if let Some(report) = self.report() {
            // As above.
            let _ = around.control.send(Ask::Report(report));
        }
    }
}
