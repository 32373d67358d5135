// SPDX-License-Identifier: Apache-2.0
//! From the manifests to what is to run, as Kubernetes' controllers get there. Pure.

use std::{collections::BTreeMap, sync::Arc};

use culvert_manifests::{DEFAULT_NAMESPACE, Objects};
use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    api::Problem,
    deployments::{ReplicaSet, TEMPLATE_HASH, rollout},
    layout::NodeId,
    pods::state::service_account,
    services::{ClusterIps, Key},
    supported::{self, Verdict},
};

/// A pod that runs already.
#[derive(Clone, Debug)]
pub struct Running {
    /// As it was wanted.
    pub pod: Arc<Pod>,
    /// Whether it may get traffic.
    pub ready: bool,
}

/// All that is to be.
#[derive(Debug, Default)]
pub struct Wanted {
    /// By name.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// By name: what manifests say of the sandbox's nodes.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// By namespace and name.
    pub service_accounts: BTreeMap<Key, Arc<ServiceAccount>>,
    /// With their addresses.
    pub services: BTreeMap<Key, Service>,
    /// Those of deployments too.
    pub pods: BTreeMap<Key, Arc<Pod>>,
    /// What is refused or has no effect.
    pub problems: Vec<Problem>,
}

/// What is to run on `nodes`, given what runs (and is not ending).
pub fn expand(
    objects: &Objects,
    running: &BTreeMap<Key, Running>,
    nodes: &[NodeId],
    ips: &mut ClusterIps,
) -> Wanted {
    let mut wanted = Wanted {
        namespaces: objects.namespaces.clone(),
        service_accounts: objects.service_accounts.clone(),
        ..Wanted::default()
    };
    wanted.add_defaults();
    wanted.add_nodes(objects, nodes);
    wanted.add_services(objects, ips);
    for (key, pod) in &objects.pods {
        wanted.add_pod("pod", key, Arc::clone(pod), running);
    }
    for (key, deployment) in &objects.deployments {
        let verdict = supported::deployment(&**deployment);
        let carried_out = wanted.judge("deployment", key, verdict);
        match ReplicaSet::of(deployment).filter(|_| carried_out) {
            Some(set) => wanted.add_replicas(key, &set, running),
            None => wanted.keep(key, running),
        }
    }
    for key in objects.endpoint_slices.iter().flat_map(BTreeMap::keys) {
        let reason = "the endpoints of the sandbox's services are the pods that they select";
        wanted.refuse("endpointslice", key, reason.to_owned());
    }
    wanted.problems.sort();
    wanted.problems.dedup();
    wanted
}

/// The name of the deployment that a pod is of.
pub fn deployment_of(pod: &Pod) -> Option<&str> {
    let owners = pod.metadata.owner_references.iter().flatten();
    let mut owners = owners.filter(|owner| owner.kind == "Deployment");
    owners.next().map(|owner| owner.name.as_str())
}

// === impl Wanted ===

impl Wanted {
    /// What a cluster has without being asked.
    fn add_defaults(&mut self) {
        let named = |namespace: Option<&String>, name: &str| ObjectMeta {
            name: Some(name.to_owned()),
            namespace: namespace.cloned(),
            ..ObjectMeta::default()
        };
        let default = self.namespaces.entry(DEFAULT_NAMESPACE.to_owned());
        default.or_insert_with(|| {
            Arc::new(Namespace {
                metadata: named(None, DEFAULT_NAMESPACE),
                ..Namespace::default()
            })
        });
        for namespace in self.namespaces.keys() {
            let account = self
                .service_accounts
                .entry((namespace.clone(), "default".to_owned()));
            account.or_insert_with(|| {
                Arc::new(ServiceAccount {
                    metadata: named(Some(namespace), "default"),
                    ..ServiceAccount::default()
                })
            });
        }
    }

    fn add_nodes(&mut self, objects: &Objects, nodes: &[NodeId]) {
        let names: Vec<_> = nodes.iter().map(NodeId::to_string).collect();
        for (name, node) in &objects.nodes {
            let key = (String::new(), name.clone());
            let exists = names.contains(name);
            if !exists {
                let names = names.join(", ");
                let reason = format!("there is no such node, the sandbox has {names}: see --nodes");
                self.refuse("node", &key, reason);
            }
            if self.judge("node", &key, supported::node(node)) && exists {
                self.nodes.insert(name.clone(), Arc::clone(node));
            }
        }
    }

    fn add_services(&mut self, objects: &Objects, ips: &mut ClusterIps) {
        let services = objects.services.iter();
        let mut services: BTreeMap<_, _> = services
            .map(|(key, service)| (key.clone(), Service::clone(service)))
            .collect();
        services.retain(|key, service| {
            let exists = self.in_namespace("service", key);
            self.judge("service", key, supported::service(service)) && exists
        });
        for (key, reason) in ips.assign(&mut services) {
            services.remove(&key);
            self.refuse("service", &key, reason);
        }
        self.services = services;
    }

    /// A pod that is refused leaves the one of its name that runs as it is.
    fn add_pod(
        &mut self,
        kind: &str,
        key: &Key,
        pod: Arc<Pod>,
        running: &BTreeMap<Key, Running>,
    ) -> bool {
        let exists = self.in_namespace(kind, key) && self.has_account(kind, key, &pod);
        if self.judge(kind, key, supported::pod(&pod)) && exists {
            self.pods.insert(key.clone(), pod);
            return true;
        }
        if let Some(running) = running.get(key) {
            self.pods.insert(key.clone(), running.pod.clone());
        }
        false
    }

    fn add_replicas(&mut self, key: &Key, set: &ReplicaSet<'_>, running: &BTreeMap<Key, Running>) {
        let ours = running
            .iter()
            .filter(|(_, running)| is_of(&running.pod, key));
        let (new, mut old): (Vec<_>, Vec<_>) = ours.partition(|(_, running)| {
            let labels = running.pod.metadata.labels.as_ref();
            labels.and_then(|labels| labels.get(TEMPLATE_HASH)) == Some(&set.hash)
        });
        let ready = new.iter().filter(|(_, running)| running.ready).count();
        let now = rollout(set.replicas, old.len(), ready);
        for nth in 0..now.new {
            let pod = Arc::new(set.pod(nth));
            let name = pod.metadata.name.clone().unwrap_or_default();
            if !self.add_pod("deployment", key, pod.clone(), &BTreeMap::new()) {
                return self.keep(key, running);
            }
            self.pods.remove(key);
            self.pods.insert((key.0.clone(), name), pod);
        }
        // Those that serve are kept the longest.
        old.sort_by_key(|(_, running)| !running.ready);
        let kept = old.into_iter().take(now.old);
        self.pods
            .extend(kept.map(|(key, running)| (key.clone(), running.pod.clone())));
    }

    /// A deployment that is refused leaves its pods as they are.
    fn keep(&mut self, deployment: &Key, running: &BTreeMap<Key, Running>) {
        let ours = running
            .iter()
            .filter(|(_, running)| is_of(&running.pod, deployment));
        self.pods
            .extend(ours.map(|(key, running)| (key.clone(), running.pod.clone())));
    }

    fn in_namespace(&mut self, kind: &str, key: &Key) -> bool {
        let exists = self.namespaces.contains_key(&key.0);
        if !exists {
            let reason = format!("there is no Namespace {:?}: add its manifest", key.0);
            self.refuse(kind, key, reason);
        }
        exists
    }

    fn has_account(&mut self, kind: &str, key: &Key, pod: &Pod) -> bool {
        let name = pod
            .spec
            .as_ref()
            .map_or("default", service_account)
            .to_owned();
        let exists = self
            .service_accounts
            .contains_key(&(key.0.clone(), name.clone()));
        if !exists {
            let reason = format!(
                "there is no ServiceAccount {name:?} in the namespace {:?}: add its manifest",
                key.0
            );
            self.refuse(kind, key, reason);
        }
        exists
    }

    fn judge(&mut self, kind: &str, key: &Key, verdict: Verdict) -> bool {
        let carried_out = verdict.refused.is_empty();
        for reason in verdict.refused {
            self.refuse(kind, key, reason);
        }
        for reason in verdict.no_effect {
            self.note(false, kind, key, reason);
        }
        carried_out
    }

    fn refuse(&mut self, kind: &str, key: &Key, reason: String) {
        self.note(true, kind, key, reason);
    }

    fn note(&mut self, refused: bool, kind: &str, key: &Key, reason: String) {
        let place = match key.0.as_str() {
            "" => format!("{kind} {}", key.1),
            namespace => format!("{kind} {namespace}/{}", key.1),
        };
        self.problems.push(Problem {
            refused,
            place,
            reason,
        });
    }
}

fn is_of(pod: &Pod, deployment: &Key) -> bool {
    let namespace = pod.metadata.namespace.as_deref();
    namespace == Some(&deployment.0) && deployment_of(pod) == Some(&deployment.1)
}

#[cfg(test)]
mod tests;
