// SPDX-License-Identifier: Apache-2.0
//! A client of the Container Runtime Interface, as a kubelet is one.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};
use tonic::transport::{Channel, Endpoint};

use self::messages::{
    CreateContainerRequest, ExecSyncRequest, PodSandboxConfig, PodSandboxStatusRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StatusRequest,
    StopContainerRequest, StopPodSandboxRequest, runtime_service_client::RuntimeServiceClient,
};
use crate::process::Output;

/// The interface's messages.
#[expect(missing_docs, reason = "tonic-prost-build generates it")]
pub mod messages {
    tonic::include_proto!("runtime.v1");
}

/// What a runtime may take for one call.
const PATIENCE: Duration = Duration::from_secs(120);

/// A container runtime.
#[derive(Debug)]
pub struct Cri {
    tasks: Runtime,
    client: RuntimeServiceClient<Channel>,
}

// === impl Cri ===

impl Cri {
    /// The runtime that listens on a Unix socket, now or later.
    pub fn new(socket: &Path) -> anyhow::Result<Self> {
        let tasks = Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = {
            let _context = tasks.enter();
            endpoint.timeout(PATIENCE).connect_lazy()
        };
        Ok(Self {
            tasks,
            client: RuntimeServiceClient::new(channel),
        })
    }

    /// Whether the runtime and its network are ready.
    pub fn ready(&self) -> anyhow::Result<()> {
        let mut client = self.client.clone();
        let status = self
            .tasks
            .block_on(client.status(StatusRequest::default()))?;
        let conditions = status.into_inner().status.unwrap_or_default().conditions;
        ensure!(!conditions.is_empty(), "it has no conditions");
        for condition in &conditions {
            ensure!(condition.status, "{condition:?}");
        }
        Ok(())
    }

    /// Makes a pod sandbox, and answers its id.
    pub fn run(&self, config: PodSandboxConfig) -> anyhow::Result<String> {
        let mut ids = self.run_all(vec![config]);
        ids.pop().context("no answer")?
    }

    /// Makes pod sandboxes, all at once, and answers their ids in some order.
    pub fn run_all(&self, configs: Vec<PodSandboxConfig>) -> Vec<anyhow::Result<String>> {
        let each = configs.into_iter().map(|config| {
            let mut client = self.client.clone();
            let request = RunPodSandboxRequest {
                config: Some(config),
            };
            async move {
                Ok(client
                    .run_pod_sandbox(request)
                    .await?
                    .into_inner()
                    .pod_sandbox_id)
            }
        });
        self.together(each)
    }

    /// Stops pod sandboxes and removes them, all at once.
    pub fn remove_all(&self, ids: &[String]) -> anyhow::Result<()> {
        let each = ids.iter().cloned().map(|pod_sandbox_id| {
            let mut client = self.client.clone();
            let stop = StopPodSandboxRequest {
                pod_sandbox_id: pod_sandbox_id.clone(),
            };
            async move {
                client.stop_pod_sandbox(stop).await?;
                let remove = RemovePodSandboxRequest { pod_sandbox_id };
                client.remove_pod_sandbox(remove).await?;
                Ok(())
            }
        });
        self.together(each).into_iter().collect()
    }

    fn together<T: Send + 'static>(
        &self,
        futures: impl Iterator<Item = impl Future<Output = anyhow::Result<T>> + Send + 'static>,
    ) -> Vec<anyhow::Result<T>> {
        let _context = self.tasks.enter();
        let set: JoinSet<_> = futures.collect();
        self.tasks.block_on(set.join_all())
    }

    /// Stops a pod sandbox, which may be stopped.
    pub fn stop(&self, id: &str) -> anyhow::Result<()> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let mut client = self.client.clone();
        self.tasks.block_on(client.stop_pod_sandbox(request))?;
        Ok(())
    }

    /// Removes a pod sandbox that is stopped, or gone.
    pub fn remove(&self, id: &str) -> anyhow::Result<()> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let mut client = self.client.clone();
        self.tasks.block_on(client.remove_pod_sandbox(request))?;
        Ok(())
    }

    /// The addresses of a pod sandbox, the primary one first.
    pub fn ips(&self, id: &str) -> anyhow::Result<Vec<String>> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let mut client = self.client.clone();
        let status = self.tasks.block_on(client.pod_sandbox_status(request))?;
        let network = status.into_inner().status.and_then(|status| status.network);
        let network = network.unwrap_or_default();
        ensure!(
            !network.ip.is_empty(),
            "the pod sandbox {id} has no address"
        );
        let others = network.additional_ips.into_iter().map(|other| other.ip);
        Ok(std::iter::once(network.ip).chain(others).collect())
    }

    /// Makes a container in a pod sandbox and starts it, and answers its id.
    pub fn start(&self, request: CreateContainerRequest) -> anyhow::Result<String> {
        let mut client = self.client.clone();
        self.tasks.block_on(async {
            let created = client.create_container(request).await?;
            let container_id = created.into_inner().container_id;
            let start = StartContainerRequest {
                container_id: container_id.clone(),
            };
            client.start_container(start).await?;
            Ok(container_id)
        })
    }

    /// Kills a container.
    pub fn kill(&self, container: &str) -> anyhow::Result<()> {
        let request = StopContainerRequest {
            container_id: container.to_owned(),
            timeout: 0,
        };
        let mut client = self.client.clone();
        self.tasks.block_on(client.stop_container(request))?;
        Ok(())
    }

    /// Runs a program in a container to its end.
    pub fn exec(&self, container: &str, command: &[&str]) -> anyhow::Result<Output> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: PATIENCE.as_secs().try_into()?,
        };
        let mut client = self.client.clone();
        let done = self.tasks.block_on(client.exec_sync(request))?.into_inner();
        Ok(Output {
            command: command.join(" "),
            status: Some(done.exit_code),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        })
    }
}
