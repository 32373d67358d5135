// SPDX-License-Identifier: Apache-2.0
//! How a sandbox looks from outside.

use culvert_api::annotations::{Annotations, DEFAULT_INBOUND_POLICY, effective};
use k8s_openapi::api::core::v1::{Pod, Service};

use super::{
    api::{Entrance, NodeStatus, PodView, ServiceView, Status},
    kubelet::Kubelet,
    layout::NodeId,
    names::{self, Candidate},
    pods::{
        Handle,
        state::{Doing, service_account},
    },
    services::cluster_ips,
    wanted::deployment_of,
};

impl Kubelet {
    /// How everything is.
    pub fn status(&self) -> Status {
        let mut status = Status {
            name: self.site.layout.name.to_string(),
            dir: self.site.options.dir.display().to_string(),
            ip_families: self.site.options.ip_families,
            ready: false,
            supervisor_pid: std::process::id(),
            nodes: self.nodes.keys().map(|node| self.node(*node)).collect(),
            processes: self.processes(),
            pods: self.pod_views(),
            services: self.services(),
            problems: self.problems.clone(),
        };
        status.ready = status.waiting_for().is_empty();
        status
    }

    fn node(&self, id: NodeId) -> NodeStatus {
        let families = self.site.options.ip_families;
        let ips = self.site.host_ips(id);
        let networks = families.iter().map(|family| id.pod_network(family));
        let networks: Vec<_> = networks
            .map(|(network, length)| format!("{network}/{length}"))
            .collect();
        NodeStatus {
            name: id.to_string(),
            ip: ips.first().map(ToString::to_string).unwrap_or_default(),
            ips: ips.iter().map(ToString::to_string).collect(),
            pod_network: networks.first().cloned().unwrap_or_default(),
            pod_networks: networks,
            netns: self.site.layout.name.node_netns(id),
            cgroup: self.site.cgroups.kubepods(id).display().to_string(),
        }
    }

    fn processes(&self) -> Vec<super::daemon::DaemonStatus> {
        let of_nodes = self
            .nodes
            .values()
            .flat_map(|node| [&node.agent, &node.proxy]);
        std::iter::once(&self.control)
            .chain(of_nodes)
            .map(|daemon| daemon.status())
            .collect()
    }

    fn pod_views(&self) -> Vec<PodView> {
        let steered = self.steered();
        let view = |pod: &Handle| self.pod(pod, steered.contains(&pod.placement.uid));
        self.pods.values().map(view).collect()
    }

    fn pod(&self, handle: &Handle, meshed: bool) -> PodView {
        let (pod, info) = (handle.pod(), handle.shared.info());
        let (namespace, name) = &handle.placement.key;
        let pids = info
            .containers
            .iter()
            .filter_map(|container| match container.doing {
                Doing::Running { pid } => Some(pid),
                _ => None,
            });
        PodView {
            namespace: namespace.clone(),
            name: name.clone(),
            node: handle.placement.node.to_string(),
            uid: handle.placement.uid.clone(),
            ip: info.ips.first().map(ToString::to_string),
            ips: info.ips.iter().map(ToString::to_string).collect(),
            phase: info.phase.to_owned(),
            ready: info.is_ready(),
            reason: info.why_not_ready(),
            meshed,
            policy: self.policy(namespace, &pod),
            restarts: info.restarts(),
            terminating: handle.is_stopping(),
            deployment: deployment_of(&pod).map(str::to_owned),
            service_account: pod
                .spec
                .as_ref()
                .map_or("default", service_account)
                .to_owned(),
            netns: self.site.layout.name.pod_netns(namespace, name),
            cgroup: self.cgroup(handle),
            pids: pids.collect(),
        }
    }

    fn cgroup(&self, handle: &Handle) -> String {
        let kubepods = self.site.cgroups.kubepods(handle.placement.node);
        kubepods.join(&handle.placement.uid).display().to_string()
    }

    /// What its annotations, or its namespace's, say; what control does not know it takes for strict.
    fn policy(&self, namespace: &str, pod: &Pod) -> String {
        let objects = self.source.objects().borrow().clone();
        let none = Annotations::new();
        let of_namespace = objects.namespaces.get(namespace);
        let of_namespace = of_namespace.and_then(|ns| ns.metadata.annotations.as_ref());
        let of_pod = pod.metadata.annotations.as_ref();
        let (of_pod, of_namespace) = (of_pod.unwrap_or(&none), of_namespace.unwrap_or(&none));
        match effective(DEFAULT_INBOUND_POLICY, of_pod, of_namespace) {
            None | Some("all-unauthenticated" | "audit") => "permissive".into(),
            Some(_) => "strict".into(),
        }
    }

    fn services(&self) -> Vec<ServiceView> {
        self.directory
            .borrow()
            .services
            .iter()
            .map(|(key, it)| service(key, it))
            .collect()
    }

    /// How a pod is entered, or why it can't be.
    pub fn enter(&self, query: &str, container: Option<&str>) -> Result<Entrance, String> {
        let candidates = self.pods.values().map(|pod| Candidate {
            namespace: pod.placement.key.0.clone(),
            name: pod.placement.key.1.clone(),
            deployment: deployment_of(&pod.pod()).map(str::to_owned),
        });
        let found = names::find(query, candidates.collect())?;
        let pod = &self.pods[&(found.namespace, found.name)];
        let info = pod.shared.info();
        let mut containers = info.containers.iter();
        let wanted = containers.find(|one| container.is_none_or(|name| name == one.name));
        let wanted = wanted.ok_or_else(|| {
            let names: Vec<_> = info
                .containers
                .iter()
                .map(|one| one.name.as_str())
                .collect();
            format!("the pod has no such container, but {}", names.join(", "))
        })?;
        let Doing::Running { pid } = wanted.doing else {
            return Err(format!(
                "the pod does not run just now: {}",
                info.why_not_ready()
            ));
        };
        Ok(Entrance {
            pid,
            cgroup: self.cgroup(pod),
            env: wanted.env.clone(),
        })
    }
}

fn service((namespace, name): &(String, String), service: &Service) -> ServiceView {
    let spec = service.spec.as_ref();
    let ports = spec
        .and_then(|spec| spec.ports.as_ref())
        .into_iter()
        .flatten();
    ServiceView {
        namespace: namespace.clone(),
        name: name.clone(),
        cluster_ip: spec
            .and_then(|spec| spec.cluster_ip.clone())
            .unwrap_or_default(),
        cluster_ips: cluster_ips(service).to_vec(),
        ports: ports.map(|port| port.port).collect(),
    }
}
