// SPDX-License-Identifier: Apache-2.0
//! A container runtime that says what a test wants, over the real interface.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::json;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status, transport::Server};

use self::messages::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxMetadata,
    PodSandboxStatus, PodSandboxStatusRequest, PodSandboxStatusResponse,
    runtime_service_server::{RuntimeService, RuntimeServiceServer},
};
use crate::node::Node;

#[expect(clippy::allow_attributes, reason = "tonic-prost-build generates it")]
mod messages {
    tonic::include_proto!("runtime.v1");
}

/// A sandbox as the runtime has it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub id: String,
    pub uid: String,
    pub name: String,
    pub netns: Option<PathBuf>,
    pub runtime_type: &'static str,
}

/// A container runtime.
#[derive(Clone, Debug, Default)]
pub struct Runtime {
    sandboxes: Arc<Mutex<Vec<Sandbox>>>,
}

impl Runtime {
    /// Serves at the node's socket.
    pub fn serve(&self, node: &Node) {
        let path = node.path("cri.sock");
        let listener = UnixListener::bind(&path).unwrap_or_else(|e| panic!("{e}"));
        let accept = |listener: UnixListener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        };
        let incoming = futures_util::stream::unfold(listener, accept);
        let service = RuntimeServiceServer::new(self.clone());
        tokio::spawn(Server::builder().serve_with_incoming(service, incoming));
    }

    /// What runs from now on.
    pub fn run(&self, sandboxes: Vec<Sandbox>) {
        *self.lock() = sandboxes;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Sandbox>> {
        self.sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sandbox {
    /// The node's pod, by runc.
    pub fn of(node: &Node) -> Self {
        let attachment = node.attachment();
        Self {
            id: attachment.container_id,
            uid: node.uid(),
            name: "web".to_owned(),
            netns: attachment.netns,
            runtime_type: "io.containerd.runc.v2",
        }
    }

    fn metadata(&self) -> PodSandboxMetadata {
        PodSandboxMetadata {
            name: self.name.clone(),
            uid: self.uid.clone(),
            namespace: "shop".to_owned(),
            attempt: 0,
        }
    }

    fn info(&self) -> String {
        let mut network = json!({"type": "network"});
        if let Some(path) = &self.netns {
            network["path"] = path.display().to_string().into();
        }
        let spec = json!({"linux": {"namespaces": [{"type": "pid"}, network]}});
        json!({"runtimeType": self.runtime_type, "runtimeSpec": spec}).to_string()
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn list_pod_sandbox(
        &self,
        _: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let item = |sandbox: &Sandbox| PodSandbox {
            id: sandbox.id.clone(),
            metadata: Some(sandbox.metadata()),
            ..PodSandbox::default()
        };
        let items = self.lock().iter().map(item).collect();
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let request = request.into_inner();
        let sandboxes = self.lock();
        let found = sandboxes.iter().find(|s| s.id == request.pod_sandbox_id);
        let sandbox = found.ok_or_else(|| Status::not_found("no such sandbox"))?;
        let status = PodSandboxStatus {
            id: sandbox.id.clone(),
            metadata: Some(sandbox.metadata()),
            ..PodSandboxStatus::default()
        };
        let info = ("info".to_owned(), sandbox.info());
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(status),
            info: HashMap::from([info]),
        }))
    }
}
