// SPDX-License-Identifier: Apache-2.0
//! Pods that run without the agent having added them, because they are older than Culvert or
//! because a runtime passed the CNI plugin over: found by the container runtime, and taken in live
//! when they are to be meshed.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use culvert_api::{
    cni::{Attachment, Response},
    unmeshable::is_own_kernel,
    workload::PodUid,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    cri::{self, Cri, Details, Sandbox},
    desired::{Desired, Fault, OwnKernels, Problem, Subject},
    metrics::Metrics,
    pods::Pods,
};

/// How often is looked while a pod that is to be meshed has no sandbox that is known.
const SOON: Duration = Duration::from_secs(3);

/// How often is looked anyway.
const REGULAR: Duration = Duration::from_secs(30);

/// What comes together is looked at together.
const GATHER: Duration = Duration::from_millis(100);

/// How often is told that the container runtime does not answer.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// The interface of a pod that the runtime's network makes.
const IFNAME: &str = "eth0";

/// Looks for pods that run without the agent.
#[derive(Debug)]
pub struct Running {
    cri: Cri,
    pods: Pods,
    desired: watch::Receiver<Arc<Desired>>,
    own_kernels: watch::Sender<Arc<OwnKernels>>,
    metrics: Metrics,
    /// What was asked about once, and needs no more asking.
    seen: BTreeMap<String, PodUid>,
    told: Option<Instant>,
}

// === impl Running ===

impl Running {
    /// Looks by `cri`. What it says can't be steered goes to `own_kernels`.
    pub fn new(
        cri: Cri,
        pods: Pods,
        own_kernels: watch::Sender<Arc<OwnKernels>>,
        metrics: Metrics,
    ) -> Self {
        let desired = pods.shared().desired.clone();
        Self {
            cri,
            pods,
            desired,
            own_kernels,
            metrics,
            seen: BTreeMap::new(),
            told: None,
        }
    }

    /// Looks whenever something else is wanted, and from time to time.
    pub async fn follow(mut self) -> Infallible {
        loop {
            let wait = match self.look().await {
                Ok(true) => REGULAR,
                Ok(false) => SOON,
                Err(error) => {
                    self.tell(&error);
                    SOON
                }
            };
            // A sender that is gone changes nothing any more.
            if let Ok(Err(_)) = timeout(wait, self.desired.changed()).await {
                sleep(wait).await;
            }
            sleep(GATHER).await;
        }
    }

    /// Whether every pod that is to be meshed is known.
    async fn look(&mut self) -> Result<bool, cri::Error> {
        let desired = Arc::clone(&self.desired.borrow_and_update());
        let wanted: BTreeSet<_> = wanted(&desired).collect();
        if wanted.is_empty() {
            return Ok(true);
        }
        let sandboxes = self.cri.ready().await?;
        self.forget(&sandboxes);
        let mut missing = wanted.clone();
        for sandbox in sandboxes.iter().filter(|s| wanted.contains(&s.uid)) {
            missing.remove(&sandbox.uid);
            if !self.is_settled(sandbox) && !self.try_take_in(sandbox).await {
                missing.insert(sandbox.uid.clone());
            }
        }
        Ok(missing.is_empty())
    }

    /// One that can't be asked about holds up no other.
    async fn try_take_in(&mut self, sandbox: &Sandbox) -> bool {
        let taken_in = self.take_in(sandbox).await;
        taken_in.unwrap_or_else(|error| {
            self.tell(&error);
            false
        })
    }

    fn is_settled(&self, sandbox: &Sandbox) -> bool {
        self.seen.contains_key(&sandbox.id) && self.pods.knows(&sandbox.id)
    }

    /// Whether all is done that can be done.
    async fn take_in(&mut self, sandbox: &Sandbox) -> Result<bool, cri::Error> {
        let Some(Details { netns, runtime }) = self.cri.details(&sandbox.id).await? else {
            // It went away meanwhile.
            return Ok(true);
        };
        self.seen.insert(sandbox.id.clone(), sandbox.uid.clone());
        if is_own_kernel(&runtime) {
            self.note_own_kernel(sandbox, runtime);
            return Ok(true);
        }
        if self.pods.knows(&sandbox.id) {
            return Ok(true);
        }
        let Some(netns) = netns else {
            self.report(sandbox, Fault::NoNetns);
            return Ok(false);
        };
        match self.pods.take_in(attachment(sandbox, netns)).await {
            Response::Done { .. } => {
                self.metrics.adopted.with_label_values(&["runtime"]).inc();
                tracing::info!(
                    pod.name = sandbox.name,
                    pod.namespace = sandbox.namespace,
                    container.id = sandbox.id,
                    "Took in a pod that ran already"
                );
                Ok(true)
            }
            Response::Failed { message, .. } => {
                self.report(sandbox, Fault::NotSteered { error: message });
                Ok(false)
            }
        }
    }

    fn note_own_kernel(&self, sandbox: &Sandbox, runtime: String) {
        self.own_kernels.send_if_modified(|all| {
            let before = Arc::make_mut(all).insert(sandbox.uid.clone(), runtime);
            before.is_none()
        });
    }

    fn report(&self, sandbox: &Sandbox, fault: Fault) {
        let (namespace, name) = (&sandbox.namespace, &sandbox.name);
        let problem = Problem {
            subject: Subject::pod(namespace, name, Some(&sandbox.uid.0)),
            fault,
        };
        self.pods.shared().reports.tell(problem);
    }

    /// Sandboxes that are gone.
    fn forget(&mut self, sandboxes: &[Sandbox]) {
        let there: BTreeSet<_> = sandboxes.iter().map(|s| s.id.as_str()).collect();
        self.seen.retain(|id, _| there.contains(id.as_str()));
        let pods: BTreeSet<_> = sandboxes.iter().map(|s| &s.uid).collect();
        self.own_kernels.send_if_modified(|all| {
            let gone = all.keys().any(|uid| !pods.contains(uid));
            if gone {
                Arc::make_mut(all).retain(|uid, _| pods.contains(uid));
            }
            gone
        });
    }

    fn tell(&mut self, error: &cri::Error) {
        self.metrics.cri_failures.inc();
        if self.told.is_none_or(|told| told.elapsed() >= TELL_AGAIN) {
            self.told = Some(Instant::now());
            tracing::warn!(
                %error,
                "Could not look for pods that ran before the agent: those that the CNI plugin did \
                 not add are not meshed until the container runtime answers"
            );
        }
    }
}

/// Pods with containers to come or running.
fn wanted(desired: &Desired) -> impl Iterator<Item = PodUid> {
    let wanted = desired.pods().filter(|wanted| !wanted.finished);
    let meshed = wanted.filter(|wanted| wanted.mesh.is_some());
    meshed.map(|wanted| wanted.workload.uid.clone())
}

/// As the CNI plugin would have said it, but for the network's name: a DEL names it, whatever it
/// is.
fn attachment(sandbox: &Sandbox, netns: PathBuf) -> Attachment {
    let args = [
        ("K8S_POD_NAMESPACE", &sandbox.namespace),
        ("K8S_POD_NAME", &sandbox.name),
        ("K8S_POD_UID", &sandbox.uid.0),
    ];
    Attachment {
        network: String::new(),
        container_id: sandbox.id.clone(),
        ifname: IFNAME.to_owned(),
        netns: Some(netns),
        args: args.map(|(k, v)| (k.to_owned(), v.clone())).into(),
    }
}
