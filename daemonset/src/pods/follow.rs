// SPDX-License-Identifier: Apache-2.0
//! What a sandbox does when its time has come, or what is wanted of it changed.

use std::{path::Path, time::Duration};

use culvert_api::cni::Response;

use super::{Fault, actor::Actor, leave::REMIND, state::State};
use crate::netns::Netns;

// === impl Actor ===

impl Actor {
    /// What is wanted may have changed.
    pub(super) async fn follow(&mut self) {
        let Some(wanted) = self.wanted() else {
            // A pod that is not listed keeps what it has until its sandbox goes: a source that
            // is away or empty must not take the mesh from anyone.
            return self.wake_in(Duration::ZERO);
        };
        let Some(attached) = &self.attached else {
            return;
        };
        match (&attached.state, &wanted.mesh) {
            (State::Unmeshed | State::Draining(_) | State::Failed(_), Some(_)) => {
                drop(self.enrol(&wanted, true).await);
            }
            (State::Enrolled(_), Some(exclusions)) => self.exclude(exclusions.clone()).await,
            (State::Enrolled(_), None) => self.begin_withdrawal(),
            (State::Withdrawing(_), Some(_)) => self.call_off_withdrawal(),
            (State::Failed(_), None) => self.give_up().await,
            (State::Unmeshed | State::Draining(_) | State::Withdrawing(_), None) => {}
        }
    }

    /// The time that was set, or the regular look.
    pub(super) async fn wake(&mut self) {
        self.wake_in(Duration::MAX);
        let Some(attached) = &self.attached else {
            return;
        };
        if !is_there(&attached.record.netns, &attached.netns).await {
            tracing::info!(
                pod.name = %attached.record.workload,
                "The network namespace of a pod is gone"
            );
            return self.release().await;
        }
        match &attached.state {
            State::Unmeshed => {}
            State::Enrolled(_) => {
                self.look().await;
                if self.wanted().is_some() {
                    self.follow().await;
                }
            }
            State::Withdrawing(_) => {
                self.remind();
                self.look().await;
            }
            State::Draining(_) => self.drain().await,
            State::Failed(_) => self.retry().await,
        }
    }

    /// Is the pod as it was added?
    pub(super) async fn check(&mut self) -> Response {
        match self.try_check().await {
            Ok(()) => self.done(),
            Err(fault) => fault.into(),
        }
    }

    async fn try_check(&mut self) -> Result<(), Fault> {
        if self.unseen.is_some() {
            let unseen =
                "the pod's network namespace could not be looked at since the agent started";
            let differences = vec![unseen.to_owned()];
            return Err(Fault::NotAsAdded { differences });
        }
        let Some(attached) = &self.attached else {
            let container_id = self.container_id.clone();
            return Err(Fault::Unknown { container_id });
        };
        let differences = match (attached.enrolment(), &attached.state) {
            (Some(enrolment), _) => enrolment.differences(&self.shared.ebpf).await?.all(),
            (None, State::Failed(_)) => vec!["steering failed, see the agent's log".to_owned()],
            (None, _) => Vec::new(),
        };
        match differences.is_empty() {
            true => Ok(()),
            false => Err(Fault::NotAsAdded { differences }),
        }
    }

    fn remind(&mut self) {
        let proxies = self.shared.hub.connected();
        if let Some(attached) = &mut self.attached
            && attached.told.waiting.allows(REMIND)
        {
            tracing::warn!(
                pod.name = %attached.record.workload, proxies,
                "A pod waits to leave the mesh until a proxy has told its peers"
            );
        }
        self.wake_in(REMIND);
    }
}

/// Trouble with looking is not an absence.
async fn is_there(path: &Path, netns: &Netns) -> bool {
    match Netns::open(path).await {
        Ok(there) => there.cookie() == netns.cookie(),
        Err(error) => !error.is_gone(),
    }
}
