// SPDX-License-Identifier: Apache-2.0
//! The part of a kubelet that runs pods with a container runtime: the sandbox's own kubelet does
//! not know these pods, control and the agents do.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{
    containerd::Containerd,
    cri::messages::{
        ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec,
        LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping,
    },
    image::{APP, TESTAPP},
};
use crate::{
    app::report::Report,
    manifests::{NAMESPACE, Pod},
    sandbox::Sandbox,
};

/// Runs pods of a sandbox with containerd.
#[derive(Clone, Copy, Debug)]
pub struct Kubelet<'a> {
    /// Whose pods.
    pub sandbox: &'a Sandbox,
    /// With what.
    pub containerd: &'a Containerd,
}

/// A pod that the manifests know.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its object.
    pub object: Value,
    /// The attempt to make its pod sandbox.
    pub attempt: u32,
    /// Its hostPorts and the ports in the pod.
    pub ports: Vec<(u16, u16)>,
}

/// A pod with a container that runs.
#[derive(Clone, Debug)]
pub struct RunningPod {
    /// What it is.
    pub known: Known,
    /// Its pod sandbox.
    pub id: String,
    /// Its address.
    pub ip: IpAddr,
    /// Its container.
    pub container: String,
}

// === impl Known ===

impl Known {
    /// Its name.
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }

    /// With a hostPort.
    pub fn port(mut self, host: u16, pod: u16) -> Self {
        self.ports.push((host, pod));
        self
    }
}

// === impl RunningPod ===

impl RunningPod {
    /// `IP:PORT`.
    pub fn at(&self, port: u16) -> String {
        SocketAddr::new(self.ip, port).to_string()
    }
}

// === impl Kubelet ===

impl Kubelet<'_> {
    /// Makes a pod known, scheduled to containerd's node, and its ServiceAccount.
    pub fn know(&self, pod: &Pod) -> anyhow::Result<Known> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let [account, mut object] = <[Value; 2]>::try_from(pod.objects())
            .map_err(|objects| anyhow::anyhow!("{} objects", objects.len()))?;
        self.sandbox.apply_object(&account)?;
        object["metadata"]["uid"] = format!("cafe{count:04x}-0000-4000-8000-000000000000").into();
        let known = Known {
            object,
            attempt: 0,
            ports: Vec::new(),
        };
        self.publish(&known)?;
        Ok(known)
    }

    /// Makes a change of a pod known.
    pub fn publish(&self, known: &Known) -> anyhow::Result<()> {
        let file = self.file(known.name());
        let temporary = file.with_extension("new");
        fs::write(&temporary, known.object.to_string())?;
        Ok(fs::rename(temporary, file)?)
    }

    fn file(&self, name: &str) -> PathBuf {
        let manifests = self.sandbox.root().join("manifests");
        manifests.join(format!("pod-{NAMESPACE}.{name}.json"))
    }

    /// What containerd is asked for.
    pub fn config(&self, known: &Known) -> PodSandboxConfig {
        let mapping = |&(host, pod): &(u16, u16)| PortMapping {
            container_port: pod.into(),
            host_port: host.into(),
            ..PortMapping::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: known.name().to_owned(),
                uid: known.uid().to_owned(),
                namespace: NAMESPACE.to_owned(),
                attempt: known.attempt,
            }),
            hostname: known.name().to_owned(),
            port_mappings: known.ports.iter().map(mapping).collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.containerd.space.cgroup(known.uid()),
            }),
        }
    }

    /// Runs a pod whose container is its command.
    pub fn run(&self, pod: &Pod) -> anyhow::Result<RunningPod> {
        self.run_known(self.know(pod)?)
    }

    /// Runs a pod that is known.
    pub fn run_known(&self, mut known: Known) -> anyhow::Result<RunningPod> {
        let id = self.containerd.cri.run(self.config(&known))?;
        let ips = self.containerd.cri.ips(&id)?;
        self.has_addresses(&mut known, &ips)?;
        Ok(RunningPod {
            container: self.start(&known, &id, 0)?,
            id,
            ip: ips[0].parse()?,
            known,
        })
    }

    /// A pod runs and has these addresses.
    pub fn has_addresses(&self, known: &mut Known, ips: &[String]) -> anyhow::Result<()> {
        let all: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        known.object["status"] = json!({
            "phase": "Running",
            "podIP": ips[0],
            "podIPs": all,
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        self.publish(known)
    }

    fn start(&self, known: &Known, id: &str, attempt: u32) -> anyhow::Result<String> {
        let command = &known.object["spec"]["containers"][0]["command"];
        let words = command.as_array().context("the pod has no command")?;
        let words = words.iter().filter_map(|word| word.as_str());
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "app".to_owned(),
                attempt,
            }),
            image: Some(ImageSpec {
                image: APP.to_owned(),
            }),
            command: words.map(str::to_owned).collect(),
        };
        self.containerd.cri.start(CreateContainerRequest {
            pod_sandbox_id: id.to_owned(),
            config: Some(config),
            sandbox_config: Some(self.config(known)),
        })
    }

    /// Kills a pod's container and starts another in its place.
    pub fn restart(&self, pod: &mut RunningPod, attempt: u32) -> anyhow::Result<()> {
        self.containerd.cri.kill(&pod.container)?;
        pod.container = self.start(&pod.known, &pod.id, attempt)?;
        Ok(())
    }

    /// Ends a pod, and makes it unknown.
    pub fn remove(&self, pod: RunningPod) -> anyhow::Result<()> {
        self.containerd.cri.remove_all(&[pod.id])?;
        self.forget(&pod.known)
    }

    /// Makes a pod unknown.
    pub fn forget(&self, known: &Known) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.file(known.name()))?)
    }

    /// Runs `culvert-testapp connect` in a pod's container.
    pub fn connect(&self, from: &RunningPod, at: &str, flags: &[&str]) -> anyhow::Result<Report> {
        let command = [&[TESTAPP, "connect", at], flags].concat();
        let output = self.containerd.cri.exec(&from.container, &command)?;
        ensure!(!output.stdout.is_empty(), "it said {}", output.stderr);
        output.json()
    }
}

/// A pod whose container runs `culvert-testapp serve` with these `PORT=BEHAVIOUR`.
pub fn serving(name: &str, node: &str, listen: &[&str]) -> Pod {
    let mut command = vec![TESTAPP, "serve"];
    command.extend(listen.iter().flat_map(|listen| ["--listen", listen]));
    Pod::new(name, node, &command)
}
