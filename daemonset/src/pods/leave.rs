// SPDX-License-Identifier: Apache-2.0
//! How a sandbox leaves the mesh: withdrawn, drained, released.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use culvert_api::cni::Response;

use super::{
    Pods,
    actor::Actor,
    state::{Attached, State},
};
use crate::{
    ebpf::{self, Ebpf},
    enrolment::{self, Namespace, listeners::Listeners},
    netns::Netns,
    store::{Interfaces, Phase, Record},
};

/// How often is looked whether the last connection through the proxy ended.
pub(super) const DRAIN: Duration = Duration::from_secs(3);

/// How often is told that a pod still waits for a proxy to leave the mesh.
pub(super) const REMIND: Duration = Duration::from_secs(30);

/// How long what waits in a listener's backlog may take to be accepted.
const BACKLOG: Duration = Duration::from_secs(5);
const BACKLOG_POLL: Duration = Duration::from_millis(10);

// === impl Actor ===

impl Actor {
    /// Lets go of interfaces, and of the sandbox with the last.
    pub(super) async fn leave(&mut self, interfaces: impl FnOnce(&mut Interfaces)) -> Response {
        self.look_again().await;
        if let Some(attached) = &mut self.attached {
            interfaces(&mut attached.record.interfaces);
            if attached.record.interfaces.is_empty() {
                self.release().await;
            } else {
                self.log_save();
            }
        } else if let Some(mut record) = self.unseen.take() {
            interfaces(&mut record.interfaces);
            if record.interfaces.is_empty() {
                self.forget(&record).await;
            } else {
                self.unseen = Some(record);
            }
        }
        Response::Done { steered: false }
    }

    /// The pod is to leave the mesh.
    pub(super) fn begin_withdrawal(&mut self) {
        if let Some(attached) = &self.attached {
            self.shared.hub.withdraw(&attached.record.key());
            let pod = &attached.record.workload;
            tracing::info!(pod.name = %pod, "Withdrawing a pod from the mesh");
        }
        self.change(|state| match state {
            State::Enrolled(enrolment) => State::Withdrawing(enrolment),
            other => other,
        });
        self.wake_in(REMIND);
    }

    /// The pod is to stay after all. Its peers may have heard that it leaves.
    pub(super) fn call_off_withdrawal(&mut self) {
        self.change(|state| match state {
            State::Withdrawing(enrolment) => State::Enrolled(enrolment),
            other => other,
        });
        if let Some(enrolment) = self.attached.as_ref().and_then(Attached::enrolment) {
            self.announce(enrolment, true);
        }
    }

    /// The pod's peers know that it leaves: ends the steering of new connections.
    pub(super) async fn withdrawn(&mut self) {
        let Some(attached) = &mut self.attached else {
            return;
        };
        let Some(enrolment) = attached.enrolment() else {
            return;
        };
        let key = attached.record.key();
        if let Err(error) = enrolment::detach(&self.shared.ebpf, enrolment.netns()).await {
            tracing::error!(enrolment = %key, %error, "Could not end the steering of a pod");
            self.change(|state| match state {
                State::Withdrawing(enrolment) => State::Enrolled(enrolment),
                other => other,
            });
            // Then it is withdrawn again.
            return self.wake_in(REMIND);
        }
        let emptied = until_accepted(enrolment.listeners());
        drop(tokio::time::timeout(BACKLOG, emptied).await);
        self.shared.hub.remove(&key);
        attached.record.phase = Phase::Draining;
        self.change(|state| match state {
            State::Withdrawing(enrolment) => State::Draining(enrolment.into_namespace()),
            other => other,
        });
        self.log_save();
        self.wake_in(DRAIN);
    }

    /// Removes the rules after the last connection through the proxy.
    pub(super) async fn drain(&mut self) {
        let Some(attached) = &mut self.attached else {
            return;
        };
        let State::Draining(namespace) = &attached.state else {
            return;
        };
        let drained = match namespace.has_marked_connections().await {
            Ok(true) => return self.wake_in(DRAIN),
            Ok(false) => namespace.restore(&attached.record.sysctls).await,
            Err(error) => Err(error),
        };
        if let Err(error) = drained {
            let pod = &attached.record.workload;
            tracing::error!(pod.name = %pod, %error, "Could not remove the rules of a pod");
            return self.wake_in(REMIND);
        }
        tracing::info!(pod.name = %attached.record.workload, "A pod left the mesh");
        attached.record.phase = Phase::Unmeshed;
        self.change(|_| State::Unmeshed);
        self.log_save();
    }

    /// An earlier agent was draining it.
    pub(super) async fn resume_draining(&mut self) {
        let Some(attached) = &self.attached else {
            return;
        };
        match Namespace::open(attached.netns.clone()).await {
            Ok(namespace) => {
                self.change(|_| State::Draining(namespace));
                self.wake_in(Duration::ZERO);
            }
            Err(error) => {
                let pod = &attached.record.workload;
                tracing::error!(pod.name = %pod, %error, "Could not go on draining a pod");
            }
        }
    }

    /// A pod that could not be steered is no longer to be.
    pub(super) async fn give_up(&mut self) {
        let Some(attached) = &self.attached else {
            return;
        };
        let netns = attached.netns.clone();
        match Namespace::open(netns).await {
            Ok(namespace) => {
                self.undo(Some(&namespace)).await;
                let draining = self.is_recorded_as(Phase::Draining);
                self.change(|_| match draining {
                    true => State::Draining(namespace),
                    false => State::Unmeshed,
                });
                self.wake_in(DRAIN);
            }
            Err(error) => {
                tracing::error!(container.id = self.container_id, %error, "Could not undo");
                self.wake_in(REMIND);
            }
        }
    }

    /// Lets go of the sandbox: of pins, rules, listeners, and of the namespace itself.
    pub(super) async fn release(&mut self) {
        let Some(attached) = self.take() else { return };
        let Attached {
            record,
            netns,
            state,
            wake: _,
            told: _,
        } = attached;
        self.shared.hub.remove(&record.key());
        if !matches!(state, State::Unmeshed) {
            let left = let_go(&self.shared.ebpf, state, netns, &record).await;
            if let Err(error) = left {
                let pod = &record.workload;
                tracing::warn!(pod.name = %pod, %error, "Could not let go of all of a pod");
            }
        }
        self.forget(&record).await;
    }

    /// Removes the record, and the pins of a namespace that may be gone.
    pub(super) async fn forget(&self, record: &Record) {
        let cookie = record.cookie.0;
        let unpin = move |node: &mut culvert_ebpf_loader::Node| {
            node.withdraw(cookie)?;
            node.detach_pod(cookie)
        };
        let unpinned = match record.phase {
            Phase::Enrolled => self.shared.ebpf.run(unpin).await,
            Phase::Unmeshed | Phase::Draining => Ok(()),
        };
        if let Err(error) = unpinned {
            self.unpin_later(record, &error);
        }
        if let Err(error) = self.shared.store.remove(&record.key()) {
            tracing::error!(%error, "Could not forget a pod");
        }
        tracing::info!(pod.name = %record.workload, netns.cookie = cookie, "Let go of a pod");
    }

    fn unpin_later(&self, record: &Record, error: &ebpf::Error) {
        tracing::error!(
            netns.cookie = %record.cookie, %error,
            "Could not unpin what steered a pod: tried again when its namespace is gone"
        );
        let pods = Pods {
            shared: Arc::clone(&self.shared),
        };
        tokio::spawn(pods.bury(BTreeSet::from([record.cookie])));
    }
}

/// Of pins, rules and sysctls.
async fn let_go(
    ebpf: &Ebpf,
    state: State,
    netns: Netns,
    record: &Record,
) -> Result<(), enrolment::Error> {
    let namespace = match state {
        State::Unmeshed => return Ok(()),
        State::Draining(namespace) => namespace,
        State::Enrolled(enrolment) | State::Withdrawing(enrolment) => enrolment.into_namespace(),
        State::Failed(_) => Namespace::open(netns).await?,
    };
    let detached = enrolment::detach(ebpf, namespace.netns()).await;
    namespace.restore(&record.sysctls).await?;
    detached
}

/// Closing a listener resets what waits in its backlog.
async fn until_accepted(listeners: &Listeners) {
    while listeners.waiting() > 0 {
        tokio::time::sleep(BACKLOG_POLL).await;
    }
}
