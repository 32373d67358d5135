// SPDX-License-Identifier: Apache-2.0
//! What runs is brought to what is wanted: the roles of Kubernetes' controllers, scheduler and
//! kubelets in one place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    sync::Arc,
};

use culvert_manifests::Source;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::block_in_place,
};

use super::{
    api::Problem,
    daemon::Daemon,
    deployments::random_uid,
    error::{Doing, Result},
    fabric::Fabric,
    families::IpFamily,
    layout::NodeId,
    node::{Node, Site, route_all},
    pods::{Directory, Handle, Placement, World},
    published::{Published, file},
    scheduler::Load,
    services::{ClusterIps, Endpoints, Key, has_family, selects_headless},
    tokens,
    wanted::{self, Running, Wanted, deployment_of},
};

/// All that runs in a sandbox.
pub struct Kubelet {
    /// Where things are.
    pub site: Arc<Site>,
    /// Control.
    pub control: Daemon,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// The pods.
    pub pods: BTreeMap<Key, Handle>,
    /// The manifests.
    pub source: Source,
    /// What of the manifests is refused or has no effect.
    pub problems: Vec<Problem>,
    /// What pods can find.
    pub directory: watch::Sender<Arc<Directory>>,
    /// What control and the agents see.
    pub published: Published,
    /// Told when a pod's status changes.
    pub changed: Arc<Notify>,
    fabric: Fabric,
    gone: mpsc::UnboundedSender<(Key, String)>,
    ips: ClusterIps,
}

// === impl Kubelet ===

impl Kubelet {
    /// A sandbox without nodes.
    pub fn new(
        site: Arc<Site>,
        fabric: Fabric,
        control: Daemon,
        published: Published,
        gone: mpsc::UnboundedSender<(Key, String)>,
    ) -> Result<Self> {
        let dir = &site.options.dir;
        let source = Source::watch(dir).doing(|| format!("watch {}", dir.display()))?;
        let ips = ClusterIps::new(site.options.ip_families);
        Ok(Self {
            site,
            control,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            source,
            problems: Vec::new(),
            directory: watch::Sender::default(),
            published,
            changed: Arc::default(),
            fabric,
            gone,
            ips,
        })
    }

    /// Brings the nodes to this number.
    pub async fn set_nodes(&mut self, count: u8) -> Result<()> {
        let wanted: Vec<_> = NodeId::first(count).collect();
        let layout = &self.site.layout;
        tokens::issue(layout, &wanted).doing(|| "issue join tokens".into())?;
        for id in &wanted {
            tokens::hand_trust_anchors(layout, *id).doing(|| "hand out trust anchors".into())?;
            if !self.nodes.contains_key(id) {
                let node = block_in_place(|| Node::start(&self.site, &self.fabric, *id))?;
                self.nodes.insert(*id, node);
            }
        }
        block_in_place(|| self.route())?;
        while let Some(last) = self.nodes.last_entry().filter(|last| last.key().0 > count) {
            let node = last.remove();
            self.end_pods_of(node.id).await;
            node.stop(&self.site, &self.fabric).await?;
        }
        Ok(())
    }

    /// The network between the nodes.
    pub(super) const fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// Sets the routes between the nodes.
    pub(super) fn route(&self) -> Result<()> {
        route_all(&self.site, &self.nodes.values().collect::<Vec<_>>())
    }

    async fn end_pods_of(&mut self, node: NodeId) {
        let ours = self
            .pods
            .extract_if(.., |_, pod| pod.placement.node == node);
        let ended = ours.map(|(_, pod)| pod.stopped());
        join_all(ended).await;
    }

    /// Ends everything.
    pub async fn stop(self) {
        join_all(self.pods.into_values().map(Handle::stopped)).await;
        for node in self.nodes.into_values() {
            if let Err(error) = node.stop(&self.site, &self.fabric).await {
                tracing::warn!(%error, "Could not stop a node");
            }
        }
        self.control.stop().await;
    }

    /// A pod's task ended: what has its name may run now.
    pub fn forget(&mut self, key: &Key, uid: &str) {
        if self
            .pods
            .get(key)
            .is_some_and(|pod| pod.placement.uid == uid)
        {
            self.pods.remove(key);
        }
    }

    /// Brings what runs to what is wanted.
    pub fn reconcile(&mut self) {
        let objects = self.source.objects().borrow().clone();
        let nodes: Vec<_> = self.nodes.keys().copied().collect();
        let wanted = wanted::expand(&objects, &self.running(), &nodes, &mut self.ips);
        if let Err(error) = self.publish(&wanted) {
            tracing::error!(%error, "Could not write the objects for control and the agents");
        }
        self.direct(&wanted);
        self.end_unwanted(&wanted);
        for (key, pod) in &wanted.pods {
            self.run(key, pod);
        }
        self.note(wanted.problems);
    }

    fn running(&self) -> BTreeMap<Key, Running> {
        let alive = self.pods.iter().filter(|(_, pod)| !pod.is_stopping());
        let running = alive.map(|(key, pod)| {
            let ready = pod.shared.info().is_ready();
            (
                key.clone(),
                Running {
                    pod: pod.pod(),
                    ready,
                },
            )
        });
        running.collect()
    }

    fn publish(&self, wanted: &Wanted) -> io::Result<()> {
        let namespaces = wanted.namespaces.iter();
        let namespaces = namespaces.map(|(name, it)| (format!("namespace-{name}.json"), &**it));
        self.publish_kind("namespace", namespaces)?;
        let nodes = wanted.nodes.iter();
        let nodes = nodes.map(|(name, it)| (format!("node-{name}.json"), &**it));
        self.publish_kind("node", nodes)?;
        let accounts = wanted.service_accounts.iter();
        let accounts = accounts.map(|((ns, name), it)| (file("serviceaccount", ns, name), &**it));
        self.publish_kind("serviceaccount", accounts)?;
        let services = wanted.services.iter();
        let services = services.map(|((ns, name), it)| (file("service", ns, name), it));
        self.publish_kind("service", services)
    }

    fn publish_kind<'a, T: Serialize + 'a>(
        &self,
        kind: &str,
        objects: impl Iterator<Item = (String, &'a T)>,
    ) -> io::Result<()> {
        let mut kept = BTreeSet::new();
        for (file, object) in objects {
            self.published.put(&file, object)?;
            kept.insert(file);
        }
        self.published.retain(kind, &kept)
    }

    /// Tells the pods about services.
    fn direct(&self, wanted: &Wanted) {
        let directory = Directory {
            services: wanted.services.clone(),
            endpoints: self.endpoints(wanted),
        };
        self.directory.send_if_modified(|known| {
            let same =
                known.services == directory.services && known.endpoints == directory.endpoints;
            *known = Arc::new(directory);
            !same
        });
    }

    fn endpoints(&self, wanted: &Wanted) -> Endpoints {
        let of = |service| {
            let pods = self
                .pods
                .values()
                .filter(|pod| selects_headless(service, &pod.pod()));
            let ready = pods
                .map(|pod| pod.shared.info())
                .filter(|info| info.is_ready());
            let ips = ready.flat_map(|info| info.ips);
            ips.filter(|ip| has_family(service, IpFamily::of(*ip)))
                .collect()
        };
        let services = wanted.services.iter();
        services
            .map(|(key, service)| (key.clone(), of(service)))
            .collect()
    }

    fn end_unwanted(&self, wanted: &Wanted) {
        for (key, pod) in &self.pods {
            let goes_on = wanted
                .pods
                .get(key)
                .is_some_and(|wanted| is_same(&pod.pod(), wanted));
            if !goes_on && !pod.is_stopping() {
                pod.stop();
            }
        }
    }

    /// Starts a pod, or brings the one that runs up to date. One that is ending is waited for.
    fn run(&mut self, key: &Key, pod: &Arc<Pod>) {
        match self.pods.get(key) {
            Some(running) if running.is_stopping() => {}
            Some(running) => running.update(pod.clone()),
            None => self.start(key, pod),
        }
    }

    fn start(&mut self, key: &Key, pod: &Arc<Pod>) {
        let Some(node) = self.place(key, pod).and_then(|id| self.nodes.get(&id)) else {
            return;
        };
        let placement = Placement {
            key: key.clone(),
            uid: random_uid(),
            attempt: 0,
            node: node.id,
            host_ips: self.site.host_ips(node.id),
            network: node.network.clone(),
            agent: node.agent.first_ready(),
        };
        let started = Handle::start(self.world(), placement, pod.clone());
        self.pods.insert(key.clone(), started);
    }

    /// Starts a pod of a node that was rebooted, as the same pod.
    pub(super) fn start_again(&mut self, key: &Key, pod: &Handle) {
        let Some(node) = self.nodes.get(&pod.placement.node) else {
            return;
        };
        let placement = Placement {
            attempt: pod.placement.attempt + 1,
            network: node.network.clone(),
            agent: node.agent.first_ready(),
            ..pod.placement.clone()
        };
        let started = Handle::start(self.world(), placement, pod.pod());
        self.pods.insert(key.clone(), started);
    }

    fn world(&self) -> World {
        World {
            site: self.site.clone(),
            published: self.published.clone(),
            directory: self.directory.subscribe(),
            changed: self.changed.clone(),
            gone: self.gone.clone(),
        }
    }

    fn place(&self, key: &Key, pod: &Pod) -> Option<NodeId> {
        if let Some(name) = node_name(pod) {
            return name.parse().ok();
        }
        let mut load = Load::of(self.nodes.keys().copied());
        let owner = deployment_of(pod);
        for other in self.pods.values() {
            let theirs = other.pod();
            let sibling = owner.is_some()
                && other.placement.key.0 == key.0
                && deployment_of(&theirs) == owner;
            load.add(other.placement.node, sibling);
        }
        load.choose()
    }

    fn note(&mut self, mut problems: Vec<Problem>) {
        let files = self.source.problems().borrow().clone();
        problems.extend(files.iter().map(of_file));
        let pods = self.source.objects().borrow().clone();
        let lost = pods
            .pods
            .iter()
            .filter_map(|(key, pod)| self.lost(key, pod));
        problems.extend(lost);
        for problem in problems
            .iter()
            .filter(|problem| !self.problems.contains(problem))
        {
            let Problem {
                refused,
                place,
                reason,
            } = problem;
            tracing::warn!(refused, %place, %reason, "A manifest has a problem");
        }
        self.problems = problems;
    }

    fn lost(&self, key: &Key, pod: &Pod) -> Option<Problem> {
        let name = node_name(pod)?;
        let known = name.parse().is_ok_and(|id| self.nodes.contains_key(&id));
        (!known).then(|| Problem {
            refused: true,
            place: format!("pod {}/{}", key.0, key.1),
            reason: format!(
                "there is no node {name:?}: this sandbox has {}",
                self.nodes.len()
            ),
        })
    }

    /// Hands new trust anchors of control to the nodes.
    pub fn hand_trust_anchors(&self) {
        for node in self.nodes.keys() {
            if let Err(error) = tokens::hand_trust_anchors(&self.site.layout, *node) {
                tracing::warn!(%node, %error, "Could not hand trust anchors to a node");
            }
        }
    }

    /// The uids of the pods that the nodes' agents steer, as the agents keep it.
    pub fn steered(&self) -> BTreeSet<String> {
        let nodes = self.nodes.keys();
        let dirs = nodes.map(|node| self.site.layout.node(*node).state().join("pods"));
        let entries = dirs.filter_map(|dir| fs::read_dir(dir).ok()).flatten();
        let records = entries.filter_map(|entry| fs::read(entry.ok()?.path()).ok());
        records.filter_map(|record| steered_uid(&record)).collect()
    }
}

/// The pod of an agent's record, if it is steered.
fn steered_uid(record: &[u8]) -> Option<String> {
    let record: serde_json::Value = serde_json::from_slice(record).ok()?;
    let uid = record["workload"]["uid"].as_str()?;
    (record["phase"] == "enrolled").then(|| uid.to_owned())
}

fn node_name(pod: &Pod) -> Option<&str> {
    let name = pod.spec.as_ref()?.node_name.as_deref();
    name.filter(|name| !name.is_empty())
}

/// Labels and annotations change in a running pod; everything else makes it another one.
fn is_same(running: &Pod, wanted: &Pod) -> bool {
    running.spec == wanted.spec
}

fn of_file(problem: &culvert_manifests::Problem) -> Problem {
    let place = problem.file.display().to_string();
    Problem {
        refused: true,
        place: match problem.line {
            Some(line) => format!("{place}:{line}"),
            None => place,
        },
        reason: problem.reason.clone(),
    }
}
