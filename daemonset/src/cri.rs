// SPDX-License-Identifier: Apache-2.0
//! The node's container runtime, by the Container Runtime Interface: which sandboxes run, and in
//! which network namespace. What a runtime does not say is never guessed.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use culvert_api::workload::PodUid;
use serde::Deserialize;
use tonic::{
    Status,
    transport::{self, Channel, Endpoint},
};

use self::messages::{
    ListPodSandboxRequest, PodSandbox, PodSandboxFilter, PodSandboxStateValue,
    PodSandboxStatusRequest, PodSandboxStatusResponse,
    runtime_service_client::RuntimeServiceClient,
};

/// The interface's messages.
#[expect(
    clippy::allow_attributes,
    reason = "tonic-prost-build generates it, with a server for tests"
)]
pub mod messages {
    tonic::include_proto!("runtime.v1");
}

/// How long the runtime may take for a call.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer: what a status says of a pod is its whole OCI specification.
const MAX_ANSWER: usize = 16 << 20;

/// Where runtimes listen: containerd, CRI-O, k3s and RKE2, MicroK8s, k0s.
const SOCKETS: [&str; 5] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/k0s/containerd.sock",
];

/// `PodSandboxState` of the interface.
const READY: i32 = 0;

/// A container runtime.
#[derive(Clone, Debug)]
pub struct Cri {
    client: RuntimeServiceClient<Channel>,
}

/// A sandbox that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's name for it.
    pub id: String,
    /// The pod's.
    pub uid: PodUid,
    /// The pod's.
    pub namespace: String,
    /// The pod's.
    pub name: String,
}

/// What a runtime says of one sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Where its network namespace is. None: it has none of its own, or the runtime does not say.
    pub netns: Option<PathBuf>,
    /// What runs it: the handler that a RuntimeClass names and the runtime's own name for it.
    pub runtime: String,
}

/// The runtime can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The set-up.
    #[error("the socket of the container runtime {} can't be used: {source}", path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        source: transport::Error,
    },
    /// The runtime's.
    #[error("the container runtime could not {what}: {}", status.message())]
    Call {
        /// What it was asked for.
        what: &'static str,
        /// What it said.
        status: Status,
    },
    /// The runtime's: it is not containerd or CRI-O, or a later one.
    #[error("what the container runtime says of the sandbox {id} can't be read: {source}")]
    Info {
        /// Which.
        id: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// What containerd and CRI-O both say when they are to be verbose
/// (<https://github.com/containerd/containerd/blob/main/internal/cri/types/sandbox_info.go>,
/// <https://github.com/cri-o/cri-o/blob/main/server/sandbox_status.go>).
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Info {
    runtime_type: String,
    runtime_spec: Option<RuntimeSpec>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RuntimeSpec {
    linux: Option<Linux>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Linux {
    namespaces: Vec<Namespace>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: PathBuf,
}

/// The first of the usual sockets that is there.
pub fn usual_socket() -> Option<PathBuf> {
    let is_there = |path: &&&str| Path::new(path).try_exists().is_ok_and(|there| there);
    SOCKETS.iter().find(is_there).map(PathBuf::from)
}

// === impl Cri ===

impl Cri {
    /// The runtime that listens on a Unix socket, now or later.
    pub fn new(socket: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Socket {
            path: socket.to_owned(),
            source,
        };
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let endpoint = endpoint.map_err(failed)?;
        let channel = endpoint
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE)
            .connect_lazy();
        let client = RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        Ok(Self { client })
    }

    /// The sandboxes that are ready.
    pub async fn ready(&self) -> Result<Vec<Sandbox>, Error> {
        let request = ListPodSandboxRequest {
            filter: Some(PodSandboxFilter {
                state: Some(PodSandboxStateValue { state: READY }),
            }),
        };
        let listed = self.client.clone().list_pod_sandbox(request).await;
        let listed = listed.map_err(failed("list its sandboxes"))?.into_inner();
        Ok(listed.items.into_iter().filter_map(sandbox).collect())
    }

    /// What the runtime says of a sandbox; none if it is gone or no longer ready.
    pub async fn details(&self, id: &str) -> Result<Option<Details>, Error> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        match self.client.clone().pod_sandbox_status(request).await {
            Ok(said) => details(id, said.into_inner()),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(failed("describe a sandbox")(status)),
        }
    }
}

fn failed(what: &'static str) -> impl Fn(Status) -> Error {
    move |status| Error::Call { what, status }
}

fn sandbox(listed: PodSandbox) -> Option<Sandbox> {
    let metadata = listed.metadata.filter(|_| listed.state == READY)?;
    Some(Sandbox {
        id: listed.id,
        uid: PodUid(metadata.uid),
        namespace: metadata.namespace,
        name: metadata.name,
    })
}

fn details(id: &str, said: PodSandboxStatusResponse) -> Result<Option<Details>, Error> {
    let Some(status) = said.status.filter(|status| status.state == READY) else {
        return Ok(None);
    };
    let info = info(&said.info).map_err(|source| Error::Info {
        id: id.to_owned(),
        source,
    })?;
    let names = [status.runtime_handler.as_str(), &info.runtime_type];
    let names: Vec<_> = names.into_iter().filter(|name| !name.is_empty()).collect();
    Ok(Some(Details {
        netns: info.runtime_spec.and_then(network),
        runtime: names.join(" "),
    }))
}

fn info(said: &HashMap<String, String>) -> serde_json::Result<Info> {
    match said.get("info") {
        Some(text) => serde_json::from_str(text),
        None => Ok(Info::default()),
    }
}

/// A namespace without a path is the runtime's own, as for a pod in the host's network.
fn network(spec: RuntimeSpec) -> Option<PathBuf> {
    let namespaces = spec.linux.unwrap_or_default().namespaces;
    let mut networks = namespaces.into_iter().filter(|ns| ns.kind == "network");
    networks
        .next()
        .map(|ns| ns.path)
        .filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests;
