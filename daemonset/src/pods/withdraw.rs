// SPDX-License-Identifier: Apache-2.0
//! How all pods leave the mesh, when Culvert is taken from the node.

use std::{sync::atomic::Ordering, time::Duration};

use culvert_api::cni::Response;
use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::{Command, Pods, Shared, actor::Actor, state::State};

/// How often is looked how far the pods are.
const LOOK: Duration = Duration::from_millis(200);

// === impl Pods ===

impl Pods {
    /// Un-enrols all pods, as if nobody wanted them meshed any more: their peers hear of it first,
    /// and rules stay until the last connection through the proxy has ended. Returns when all are
    /// let go of, which may be never; pods that are added meanwhile are not steered.
    pub async fn withdraw_all(&self) {
        self.shared.leaving.store(true, Ordering::SeqCst);
        while self.ask_all(Command::Follow).await > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lets go of all pods at once: what goes through the proxy still is reset. How many had
    /// something to let go of.
    pub async fn release_all(&self) -> usize {
        self.shared.leaving.store(true, Ordering::SeqCst);
        self.ask_all(Command::Release).await
    }

    /// How many say that they are steered.
    async fn ask_all(&self, command: fn(oneshot::Sender<Response>) -> Command) -> usize {
        let all: Vec<_> = self.shared.lock().keys().cloned().collect();
        let asked = all.iter().map(|id| self.ask_known(id, command));
        let answers = join_all(asked).await;
        let steered =
            |answer: &Option<_>| !matches!(answer, None | Some(Response::Done { steered: false }));
        answers.iter().filter(|answer| steered(answer)).count()
    }
}

// === impl Shared ===

impl Shared {
    /// Whether all pods are to leave the mesh.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }
}

// === impl Actor ===

impl Actor {
    /// Does what is wanted now, and says whether anything steers the pod or its connections.
    pub(super) async fn follow_now(&mut self) -> Response {
        self.look_again().await;
        self.follow().await;
        Response::Done {
            steered: self.is_bound(),
        }
    }

    /// Ends what goes through the proxy, and lets go of the pod.
    pub(super) async fn release_now(&mut self) -> Response {
        let steered = self.is_bound();
        if steered {
            self.end_connections().await;
        }
        self.release().await;
        Response::Done { steered }
    }

    fn is_bound(&self) -> bool {
        let unmeshed = |state: &State| matches!(state, State::Unmeshed);
        let state = self.attached.as_ref().map(|attached| &attached.state);
        self.unseen.is_some() || state.is_some_and(|state| !unmeshed(state))
    }

    /// Without the rules their payload would leave the pod as it is.
    async fn end_connections(&self) {
        let Some(attached) = &self.attached else {
            return;
        };
        let ended = attached.netns.run(crate::enrolment::marked::end_all).await;
        let ended = ended.map_err(|e| e.to_string());
        match ended.and_then(|ended| ended.map_err(|e| e.to_string())) {
            Ok(ended) => {
                tracing::info!(pod.name = %attached.record.workload, ended, "Ended connections of a pod");
            }
            Err(error) => {
                tracing::error!(
                    pod.name = %attached.record.workload, error,
                    "Could not end the connections of a pod that go through the proxy"
                );
            }
        }
    }
}
