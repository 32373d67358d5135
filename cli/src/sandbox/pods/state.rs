// SPDX-License-Identifier: Apache-2.0
//! How a pod does, as its task, its containers and `status` see it.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::UNIX_EPOCH,
};

use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

use super::Placement;

/// How a container ended for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminated {
    /// Its exit status; 128 and the signal's number if a signal ended it.
    pub code: i32,
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It is about to run, or to run again.
    Waiting {
        /// Why.
        reason: String,
    },
    /// It runs.
    Running {
        /// Its process.
        pid: i32,
    },
    /// It does not run again.
    Terminated(Terminated),
}

/// How a container does.
#[derive(Clone, Debug)]
pub struct ContainerInfo {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub doing: Doing,
    /// Whether it may get traffic.
    pub ready: bool,
    /// Why it is not ready though it runs.
    pub unready: String,
    /// How often it was started again.
    pub restarts: i32,
    /// Its environment at its last start.
    pub env: Vec<(String, String)>,
}

/// How a pod does.
#[derive(Clone, Debug)]
pub struct Info {
    /// Kubernetes' word for it.
    pub phase: &'static str,
    /// Why it is not further.
    pub reason: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its containers, in the manifest's order.
    pub containers: Vec<ContainerInfo>,
    created: Timestamp,
    deleted: Option<Timestamp>,
    ready_since: Timestamp,
}

/// How a pod does, shared by those who see it.
#[derive(Debug)]
pub struct Shared {
    info: Mutex<Info>,
}

// === impl Shared ===

impl Shared {
    /// A pod that is about to start.
    pub fn new(spec: Option<&PodSpec>) -> Self {
        let now = now();
        let containers = spec.into_iter().flat_map(|spec| &spec.containers);
        Self {
            info: Mutex::new(Info {
                phase: "Pending",
                reason: "being attached to the network".into(),
                ips: Vec::new(),
                containers: containers
                    .map(|one| ContainerInfo::new(&one.name))
                    .collect(),
                created: now,
                deleted: None,
                ready_since: now,
            }),
        }
    }

    /// How it does now.
    pub fn info(&self) -> Info {
        self.lock().clone()
    }

    /// Its addresses.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.lock().ips.clone()
    }

    /// The network gave it addresses.
    pub fn set_ips(&self, ips: Vec<IpAddr>) {
        let mut info = self.lock();
        info.ips = ips;
        info.reason = String::new();
    }

    /// Why it is not further.
    pub fn set_reason(&self, reason: String) {
        self.lock().reason = reason;
    }

    /// It is to end.
    pub fn terminate(&self) {
        let mut info = self.lock();
        info.deleted = Some(now());
        info.reason = "terminating".into();
    }

    /// All its containers ended for good.
    pub fn finish(&self, ended: &[Terminated]) {
        let mut info = self.lock();
        let failed = ended.iter().find(|ended| ended.code != 0);
        info.phase = if failed.is_some() {
            "Failed"
        } else {
            "Succeeded"
        };
        info.reason =
            failed.map_or_else(String::new, |ended| format!("exit status {}", ended.code));
    }

    /// Changes a container.
    pub fn container(&self, name: &str, change: impl FnOnce(&mut ContainerInfo)) {
        let mut info = self.lock();
        let was_ready = info.is_ready();
        if let Some(container) = info.containers.iter_mut().find(|one| one.name == name) {
            change(container);
        }
        let runs = |one: &ContainerInfo| matches!(one.doing, Doing::Running { .. });
        if info.phase == "Pending" && info.containers.iter().all(runs) {
            info.phase = "Running";
        }
        if info.is_ready() != was_ready {
            info.ready_since = now();
        }
    }

    /// The pod's object as Kubernetes would show it.
    pub fn object(&self, placement: &Placement, wanted: &Pod) -> Pod {
        let info = self.info();
        let mut pod = wanted.clone();
        pod.metadata.uid = Some(placement.uid.clone());
        pod.metadata.creation_timestamp = Some(Time(info.created));
        pod.metadata.deletion_timestamp = info.deleted.map(Time);
        let spec = pod.spec.get_or_insert_default();
        spec.node_name = Some(placement.node.to_string());
        spec.service_account_name = Some(service_account(spec).to_owned());
        pod.status = Some(info.status(placement));
        pod
    }

    fn lock(&self) -> MutexGuard<'_, Info> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In whole seconds, as Kubernetes has it.
fn now() -> Timestamp {
    let since = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    Timestamp::from_second(since.try_into().unwrap_or(0)).unwrap_or_default()
}

/// The name of a pod's ServiceAccount.
pub fn service_account(spec: &PodSpec) -> &str {
    let name = spec
        .service_account_name
        .as_deref()
        .or(spec.service_account.as_deref());
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}

// === impl Info ===

impl Info {
    /// Whether it may get traffic.
    pub fn is_ready(&self) -> bool {
        let ready = !self.containers.is_empty() && self.containers.iter().all(|one| one.ready);
        self.deleted.is_none() && ready
    }

    /// Whether it ended with success, for good.
    pub fn is_complete(&self) -> bool {
        self.phase == "Succeeded"
    }

    /// How often its containers were started again.
    pub fn restarts(&self) -> i32 {
        self.containers.iter().map(|one| one.restarts).sum()
    }

    /// Why it is not ready, in a few words; empty when it is.
    pub fn why_not_ready(&self) -> String {
        if self.is_ready() || self.is_complete() {
            return String::new();
        }
        let of_containers = self
            .containers
            .iter()
            .filter_map(ContainerInfo::why_not_ready);
        let of_pod = Some(self.reason.clone()).filter(|reason| !reason.is_empty());
        of_pod
            .into_iter()
            .chain(of_containers)
            .collect::<Vec<_>>()
            .join("; ")
    }

    fn status(&self, placement: &Placement) -> PodStatus {
        let ips = self.ips.iter().map(|ip| PodIP { ip: ip.to_string() });
        let hosts = placement.host_ips.iter().map(ToString::to_string);
        PodStatus {
            phase: Some(self.phase.to_owned()),
            reason: Some(self.reason.clone()).filter(|reason| !reason.is_empty()),
            pod_ip: self.ips.first().map(ToString::to_string),
            pod_ips: Some(ips.collect()).filter(|ips: &Vec<_>| !ips.is_empty()),
            host_ip: hosts.clone().next(),
            host_ips: Some(hosts.map(|ip| HostIP { ip }).collect()),
            conditions: Some(vec![self.ready_condition()]),
            container_statuses: Some(self.containers.iter().map(ContainerInfo::status).collect()),
            start_time: Some(Time(self.created)),
            ..PodStatus::default()
        }
    }

    fn ready_condition(&self) -> PodCondition {
        let ready = if self.is_ready() { "True" } else { "False" };
        PodCondition {
            type_: "Ready".into(),
            status: ready.into(),
            last_transition_time: Some(Time(self.ready_since)),
            message: Some(self.why_not_ready()).filter(|why| !why.is_empty()),
            ..PodCondition::default()
        }
    }
}

// === impl ContainerInfo ===

impl ContainerInfo {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            doing: Doing::Waiting {
                reason: String::new(),
            },
            ready: false,
            unready: String::new(),
            restarts: 0,
            env: Vec::new(),
        }
    }

    fn why_not_ready(&self) -> Option<String> {
        let why = match &self.doing {
            Doing::Waiting { reason } => reason.clone(),
            Doing::Running { .. } => self.unready.clone(),
            Doing::Terminated(ended) => format!("ended with exit status {}", ended.code),
        };
        (!self.ready && !why.is_empty()).then(|| format!("container {}: {why}", self.name))
    }

    fn status(&self) -> ContainerStatus {
        ContainerStatus {
            name: self.name.clone(),
            ready: self.ready,
            restart_count: self.restarts,
            started: Some(matches!(self.doing, Doing::Running { .. })),
            state: Some(self.doing.state()),
            ..ContainerStatus::default()
        }
    }
}

// === impl Doing ===

impl Doing {
    fn state(&self) -> ContainerState {
        let mut state = ContainerState::default();
        match self {
            Self::Waiting { reason } => {
                let reason = Some(reason.clone());
                let waiting = ContainerStateWaiting {
                    message: reason,
                    reason: None,
                };
                state.waiting = Some(waiting);
            }
            Self::Running { .. } => state.running = Some(ContainerStateRunning::default()),
            Self::Terminated(ended) => {
                state.terminated = Some(ContainerStateTerminated {
                    exit_code: ended.code,
                    ..ContainerStateTerminated::default()
                });
            }
        }
        state
    }
}
