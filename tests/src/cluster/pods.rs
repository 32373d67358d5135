// SPDX-License-Identifier: Apache-2.0
//! Pods of a cluster: what the API server says of them, what runs in them, what is measured of them.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::Cluster;
use crate::{
    app::report::Report,
    metrics::Scrape,
    process::{Output, Running, run},
    runtime::image::TESTAPP,
    wait::wait_for,
};

/// The namespace of Culvert's own processes.
pub const CULVERT: &str = "culvert";
/// The pod condition that says who is meshed.
const MESHED: &str = "culvert.io/Meshed";
const PATIENCE: Duration = Duration::from_secs(60);
/// Of images that are there and programs that start at once.
const ROLLOUT: Duration = Duration::from_secs(120);

/// A pod, as it was when it was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node's number.
    pub node: u8,
    /// Its first address.
    pub ip: IpAddr,
    /// All that the API server says.
    pub object: Value,
}

// === impl Pod ===

impl Pod {
    fn read(object: &Value) -> anyhow::Result<Self> {
        let text = |pointer: &str| {
            let value = object.pointer(pointer).and_then(Value::as_str);
            value.with_context(|| format!("a pod has no {pointer}: {}", object["metadata"]["name"]))
        };
        Ok(Self {
            namespace: text("/metadata/namespace")?.to_owned(),
            name: text("/metadata/name")?.to_owned(),
            node: text("/spec/nodeName")?.trim_start_matches('n').parse()?,
            ip: text("/status/podIP")?.parse()?,
            object: object.clone(),
        })
    }

    /// A port of it.
    pub fn at(&self, port: u16) -> String {
        SocketAddr::new(self.ip, port).to_string()
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }

    /// The status of a condition: `True`, `False`, or nothing where there is none.
    pub fn condition(&self, kind: &str) -> &str {
        let conditions = self.object["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let found = conditions.find(|condition| condition["type"] == kind);
        found
            .and_then(|condition| condition["status"].as_str())
            .unwrap_or_default()
    }

    /// The containers that ran in it, by id, and how often they were restarted.
    pub fn containers(&self) -> Vec<(&str, u64)> {
        let statuses = self.object["status"]["containerStatuses"].as_array();
        let statuses = statuses.into_iter().flatten();
        let one = |status: &'_ Value| status["restartCount"].as_u64().unwrap_or_default();
        statuses
            .map(|status| {
                (
                    status["containerID"].as_str().unwrap_or_default(),
                    one(status),
                )
            })
            .collect()
    }

    /// Whether control was told that it is meshed.
    pub fn is_meshed(&self) -> bool {
        self.condition(MESHED) == "True"
    }
}

// === impl Cluster ===

impl Cluster {
    /// The pods of a namespace with a label that are not on their way out.
    pub fn pods(&self, namespace: &str, label: &str) -> anyhow::Result<Vec<Pod>> {
        let list = self.get(&["-n", namespace, "pods", "-l", label])?;
        let items = list["items"].as_array().context("no list of pods")?;
        let living = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        items.iter().filter(living).map(Pod::read).collect()
    }

    /// The only such pod.
    pub fn pod(&self, namespace: &str, label: &str) -> anyhow::Result<Pod> {
        let mut pods = self.pods(namespace, label)?;
        match (pods.pop(), pods.is_empty()) {
            (Some(pod), true) => Ok(pod),
            _ => bail!("{namespace} has not exactly one pod with {label}"),
        }
    }

    /// That pod, once it is ready.
    pub fn ready(&self, namespace: &str, label: &str) -> anyhow::Result<Pod> {
        wait_for(
            &format!("{label} of {namespace} to be ready"),
            ROLLOUT,
            || {
                let pod = self.pod(namespace, label)?;
                ensure!(pod.condition("Ready") == "True", "{}", pod.object["status"]);
                Ok(pod)
            },
        )
    }

    /// Waits until a Deployment, DaemonSet or StatefulSet is as it should be.
    pub fn rollout(&self, namespace: &str, what: &str) -> anyhow::Result<()> {
        let patience = format!("--timeout={}s", ROLLOUT.as_secs());
        self.kubectl(&["-n", namespace, "rollout", "status", what, &patience])?;
        Ok(())
    }

    /// Waits until all pods of a namespace with a label are meshed, or none is.
    pub fn meshed(&self, namespace: &str, label: &str, meshed: bool) -> anyhow::Result<Vec<Pod>> {
        wait_for(
            &format!("{label} of {namespace} to be meshed: {meshed}"),
            PATIENCE,
            || {
                let pods = self.pods(namespace, label)?;
                let other = pods.iter().find(|pod| pod.is_meshed() != meshed);
                ensure!(!pods.is_empty(), "there are no such pods");
                ensure!(
                    other.is_none(),
                    "{:?}",
                    other.map(|pod| &pod.object["status"]["conditions"])
                );
                Ok(pods)
            },
        )
    }

    /// Runs a program in a pod's first container.
    pub fn exec(&self, pod: &Pod, command: &[&str]) -> anyhow::Result<Output> {
        run(&mut self.exec_command(pod, command), PATIENCE)
    }

    /// Starts a program in a pod's first container, with its stdin.
    pub fn start(&self, pod: &Pod, command: &[&str]) -> anyhow::Result<Running> {
        Running::start(&mut self.exec_command(pod, command))
    }

    fn exec_command(&self, pod: &Pod, command: &[&str]) -> Command {
        let mut exec = self.command("k");
        exec.args(["-n", &pod.namespace, "exec", "-i", &pod.name, "--"]);
        exec.args(command);
        exec
    }

    /// `culvert-testapp connect` in a pod.
    pub fn connect(&self, pod: &Pod, target: &str, options: &[&str]) -> anyhow::Result<Report> {
        let connect: Vec<_> = [TESTAPP, "connect", target]
            .iter()
            .chain(options)
            .copied()
            .collect();
        self.exec(pod, &connect)?.json()
    }

    /// The proxy of a node.
    pub fn proxy(&self, node: u8) -> anyhow::Result<Pod> {
        self.of_node("proxy", node)
    }

    /// The agent of a node.
    pub fn agent(&self, node: u8) -> anyhow::Result<Pod> {
        self.of_node("agent", node)
    }

    fn of_node(&self, component: &str, node: u8) -> anyhow::Result<Pod> {
        let pods = self.pods(CULVERT, &format!("culvert.io/component={component}"))?;
        let found = pods.into_iter().find(|pod| pod.node == node);
        found.with_context(|| format!("n{node} has no {component}"))
    }

    /// What the proxy of a node measures.
    pub fn proxy_metrics(&self, node: u8) -> anyhow::Result<Scrape> {
        let proxy = self.proxy(node)?;
        Scrape::of(&self.outside(), SocketAddr::new(proxy.ip, 4191))
    }

    /// What the agent of a node measures.
    pub fn agent_metrics(&self, node: u8) -> anyhow::Result<Scrape> {
        Scrape::of(
            &self.network(node),
            SocketAddr::from(([127, 0, 0, 1], 9991)),
        )
    }
}
