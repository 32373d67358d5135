// SPDX-License-Identifier: Apache-2.0
//! A pod's life, as a kubelet leads it: its object is written, it is attached to the network, its
//! containers run, it is ready or not, and everything of it is removed again.

use std::{io, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep},
};

use super::{
    backoff::Backoff,
    cgroup,
    cni::{self, Attachment, Network},
    fabric,
    layout::NodeId,
    netns::Netns,
    node::Site,
    published::{Published, file},
    services::{self, Key},
};

pub mod container;
pub mod hosts;
pub mod state;

use self::state::{Shared, Terminated};

/// Where programs are looked for.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(5);
const AGENT_START: Duration = Duration::from_secs(5);
const GRACE: i64 = 5;
const POLL: Duration = Duration::from_millis(20);

/// The services that pods can find.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Complete with addresses.
    pub services: std::collections::BTreeMap<Key, k8s_openapi::api::core::v1::Service>,
    /// The pods of those without.
    pub endpoints: services::Endpoints,
}

/// What a pod needs of its sandbox.
#[derive(Clone, Debug)]
pub struct World {
    /// Where things are.
    pub site: Arc<Site>,
    /// Where its object goes.
    pub published: Published,
    /// The services that it can find.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// Told when its status changes.
    pub changed: Arc<tokio::sync::Notify>,
    /// Told its name and uid when it is gone.
    pub gone: mpsc::UnboundedSender<(Key, String)>,
}

/// Where and as whom a pod runs.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Its namespace and name.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// How many sandboxes it has had before this one.
    pub attempt: u32,
    /// Its node.
    pub node: NodeId,
    /// The node's addresses.
    pub host_ips: Vec<IpAddr>,
    /// The node's network.
    pub network: Arc<Network>,
    /// Whether the node's agent was ever ready.
    pub agent: watch::Receiver<bool>,
}

/// A pod that was started.
#[derive(Debug)]
pub struct Handle {
    /// Where and as whom it runs.
    pub placement: Placement,
    /// How it does.
    pub shared: Arc<Shared>,
    wanted: watch::Sender<Arc<Pod>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// The task of a pod.
pub(crate) struct Task {
    world: World,
    placement: Placement,
    shared: Arc<Shared>,
    wanted: watch::Receiver<Arc<Pod>>,
    stop: watch::Receiver<bool>,
}

/// A pod that is attached to the network.
struct Attached {
    attachment: Attachment,
    result: Value,
}

// === impl Handle ===

impl Handle {
    /// Starts a pod.
    pub fn start(world: World, placement: Placement, pod: Arc<Pod>) -> Self {
        let shared = Arc::new(Shared::new(pod.spec.as_ref()));
        let (wanted, wanted_rx) = watch::channel(pod);
        let (stop, stop_rx) = watch::channel(false);
        let task = Task {
            world,
            placement: placement.clone(),
            shared: shared.clone(),
            wanted: wanted_rx,
            stop: stop_rx,
        };
        Self {
            placement,
            shared,
            wanted,
            stop,
            task: tokio::spawn(task.run()),
        }
    }

    /// The object as it is wanted.
    pub fn pod(&self) -> Arc<Pod> {
        self.wanted.borrow().clone()
    }

    /// Changes labels and annotations of the running pod.
    pub fn update(&self, pod: Arc<Pod>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != pod;
            *wanted = pod;
            changed
        });
    }

    /// Begins to end the pod. Its task says when it is gone.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Whether it is ending.
    pub fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Ends the pod's task as a power cut does. Its processes and its network stay as they are.
    pub async fn crash(&self) {
        self.task.abort();
        while !self.task.is_finished() {
            sleep(POLL).await;
        }
    }

    /// Ends the pod and waits until it is gone.
    pub async fn stopped(self) {
        self.stop();
        let _ = self.task.await;
    }
}

// === impl Task ===

impl Task {
    async fn run(self) {
        self.publish();
        let updates = async {
            let mut wanted = self.wanted.clone();
            while wanted.changed().await.is_ok() {
                self.publish();
            }
            std::future::pending().await
        };
        tokio::select! {
            () = self.live() => {}
            () = updates => {}
        }
        // Nobody to hear: the sandbox is going down.
        let Placement { key, uid, .. } = self.placement;
        let _ = self.world.gone.send((key, uid));
    }

    async fn live(&self) {
        let Some(attached) = self.attach().await else {
            self.remove();
            return;
        };
        tokio::select! {
            biased;
            () = self.stopping() => {}
            () = self.contain() => {}
        }
        if !*self.stop.borrow() {
            // It ran to completion: its network ends, its object stays.
            self.detach(&attached).await;
            self.stopping().await;
            self.remove();
            return;
        }
        self.end_processes().await;
        self.detach(&attached).await;
        self.remove();
    }

    async fn stopping(&self) {
        let mut stop = self.stop.clone();
        // The handle is gone: the sandbox is going down.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// None when the pod is to stop before it could be attached.
    async fn attach(&self) -> Option<Attached> {
        self.agent_started().await;
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            match self.try_attach().await {
                Ok(attached) => return Some(attached),
                Err(reason) => self.wait_for_network(reason),
            }
            let wait = backoff.wait();
            tokio::select! {
                () = self.stopping() => return None,
                () = sleep(wait) => {}
            }
        }
    }

    /// A node takes no pod before its network is there, but an agent that can't start at all is
    /// for the CNI plugin to report.
    async fn agent_started(&self) {
        let mut agent = self.placement.agent.clone();
        tokio::select! {
            () = self.stopping() => {}
            () = sleep(AGENT_START) => {}
            _ = agent.wait_for(|ready| *ready) => {}
        }
    }

    async fn try_attach(&self) -> Result<Attached, String> {
        let netns = self.make_netns().await.map_err(|error| error.to_string())?;
        let (namespace, name) = &self.placement.key;
        let Placement { uid, attempt, .. } = &self.placement;
        let attachment = Attachment::of_pod(&netns, namespace, name, uid, *attempt);
        let added = self.placement.network.add(&attachment).await;
        let result = match added {
            Ok(result) => result,
            Err(error) => {
                let attached = Attached {
                    attachment,
                    result: Value::Null,
                };
                self.detach(&attached).await;
                return Err(failed_add(&error));
            }
        };
        self.shared.set_ips(cni::addresses(&result));
        self.publish();
        Ok(Attached { attachment, result })
    }

    async fn make_netns(&self) -> super::error::Result<Netns> {
        let (layout, name) = (self.world.site.layout.clone(), self.netns());
        let made = spawn_blocking(move || fabric::create(&layout, &name)).await;
        made.unwrap_or_else(|panicked| Err(super::Error::Supervisor(panicked.to_string())))
    }

    fn wait_for_network(&self, reason: String) {
        let (namespace, name) = &self.placement.key;
        tracing::warn!(pod.namespace = namespace, pod.name = name, %reason, "A pod waits for its network");
        self.shared.set_reason(reason);
        self.publish();
    }

    /// Runs the containers until they all ended for good.
    async fn contain(&self) {
        let pod = self.wanted.borrow().clone();
        let Some(spec) = &pod.spec else { return };
        self.write_hosts(spec);
        let hosts = self.follow_hosts(spec);
        let run = async {
            match self.run_init_containers(spec).await {
                Err(failed) => self.shared.finish(&[failed]),
                Ok(()) => {
                    let containers = spec.containers.iter();
                    let runs = containers.map(|one| self.run_container(one, spec));
                    self.shared.finish(&join_all(runs).await);
                }
            }
        };
        tokio::select! {
            () = run => {}
            () = hosts => {}
        }
        self.publish();
    }

    async fn run_init_containers(&self, spec: &PodSpec) -> Result<(), Terminated> {
        for container in spec.init_containers.iter().flatten() {
            self.shared
                .set_reason(format!("initContainer {}", container.name));
            self.publish();
            let ended = self.run_init_container(container, spec).await;
            if ended.code != 0 {
                return Err(ended);
            }
        }
        self.shared.set_reason(String::new());
        Ok(())
    }

    /// Never returns: writes the pod's `/etc/hosts` whenever services change.
    async fn follow_hosts(&self, spec: &PodSpec) {
        let mut directory = self.world.directory.clone();
        while directory.changed().await.is_ok() {
            self.write_hosts(spec);
        }
        std::future::pending().await
    }

    fn write_hosts(&self, spec: &PodSpec) {
        let directory = self.world.directory.borrow().clone();
        let hosts = self.etc().join("hosts");
        let written = hosts::write(&hosts, &self.hosts_text(spec, &directory));
        let resolv_conf = hosts::resolv_conf(&self.placement.key.0);
        let written = written.and(hosts::write(&self.etc().join("resolv.conf"), &resolv_conf));
        self.note(written, "write a pod's hosts file");
    }

    fn hosts_text(&self, spec: &PodSpec, directory: &Directory) -> String {
        let aliases = spec.host_aliases.as_deref().unwrap_or_default();
        let own = hosts::own(&self.hostname(spec), &self.shared.ips(), aliases);
        let namespace = &self.placement.key.0;
        own + &services::hosts(namespace, &directory.services, &directory.endpoints)
    }

    async fn end_processes(&self) {
        self.shared.terminate();
        self.publish();
        let cgroup = self.cgroup();
        self.note(
            cgroup::signal(&cgroup, Signal::SIGTERM),
            "end a pod's processes",
        );
        let until = Instant::now() + self.grace();
        while Instant::now() < until && cgroup::populated(&cgroup).unwrap_or(false) {
            sleep(POLL).await;
        }
    }

    /// How long after SIGTERM its processes may take.
    fn grace(&self) -> Duration {
        let wanted = self.wanted.borrow();
        let spec = wanted.spec.as_ref();
        let grace = spec.and_then(|spec| spec.termination_grace_period_seconds);
        Duration::from_secs(grace.unwrap_or(GRACE).try_into().unwrap_or(0))
    }

    /// Takes the pod off the network; what fails is noted and does not hold the rest up.
    async fn detach(&self, attached: &Attached) {
        let (cgroup, name) = (self.cgroup(), self.netns());
        self.kill(cgroup).await;
        let deleted = self
            .placement
            .network
            .del(&attached.attachment, &attached.result)
            .await;
        self.note(deleted, "detach a pod from the network");
        let layout = self.world.site.layout.clone();
        let removed = spawn_blocking(move || fabric::remove(&layout, &name)).await;
        self.note(
            removed.map_err(io::Error::other).map(|_| ()),
            "remove a pod's namespace",
        );
    }

    async fn kill(&self, cgroup: PathBuf) {
        let killed = spawn_blocking(move || {
            cgroup::kill_all(&cgroup, LAST_RETRY)?;
            cgroup::remove(&cgroup, LAST_RETRY)
        });
        let killed = killed
            .await
            .unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        self.note(killed, "kill a pod's processes");
    }

    fn remove(&self) {
        let (namespace, name) = &self.placement.key;
        self.note(
            self.world.published.remove(&file("pod", namespace, name)),
            "remove a pod",
        );
        // It may never have been made.
        let _ = std::fs::remove_dir_all(self.etc());
    }

    fn note<E: std::fmt::Display>(&self, result: Result<(), E>, doing: &str) {
        if let Err(error) = result {
            let (namespace, name) = &self.placement.key;
            tracing::warn!(pod.namespace = namespace, pod.name = name, %error, "Could not {doing}");
        }
    }

    fn publish(&self) {
        let object = self.shared.object(&self.placement, &self.wanted.borrow());
        let (namespace, name) = &self.placement.key;
        let put = self
            .world
            .published
            .put(&file("pod", namespace, name), &object);
        self.note(put, "write a pod");
        self.world.changed.notify_one();
    }

    fn netns(&self) -> String {
        let (namespace, name) = &self.placement.key;
        self.world.site.layout.name.pod_netns(namespace, name)
    }

    fn cgroup(&self) -> PathBuf {
        self.world
            .site
            .cgroups
            .kubepods(self.placement.node)
            .join(&self.placement.uid)
    }

    fn etc(&self) -> PathBuf {
        self.world.site.layout.pod_etc(&self.placement.uid)
    }

    /// A host name has 63 bytes at most.
    fn hostname(&self, spec: &PodSpec) -> String {
        let name = spec.hostname.as_ref().unwrap_or(&self.placement.key.1);
        name.chars().take(63).collect()
    }

    fn log(&self, container: &Container) -> PathBuf {
        let (namespace, name) = &self.placement.key;
        let dir = self.world.site.layout.pod_logs(namespace, name);
        dir.join(format!("{}.log", container.name))
    }
}

fn failed_add(error: &cni::Error) -> String {
    match error.code {
        cni::TRY_AGAIN => format!("{error}; tried again with back-off"),
        _ => error.to_string(),
    }
}
