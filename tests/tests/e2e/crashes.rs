// SPDX-License-Identifier: Apache-2.0
//! What ends, and comes back, while requests and bytes go on.

use std::{
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::ensure;
use culvert_tests::{
    cluster::{
        Cluster,
        load::Load,
        pods::{CULVERT, Pod},
    },
    wait::wait_for,
};

use crate::{NODES, SOON, install::rules, mesh};

/// For as long as the API server is away.
const AWAY: Duration = Duration::from_secs(60);
const CHAIN: &str = "/etc/cni/net.d/00-culvert.conflist";
const PRIMARY: &str = "/etc/cni/net.d/10-bridge.conflist";

fn load(cluster: &Cluster) -> anyhow::Result<Load<'_>> {
    Load::start(cluster, "shop", "n1", mesh::WEB_HTTP, mesh::WEB_ECHO)
}

/// Deletes the pod of a node and waits for another that is ready.
fn replaced(cluster: &Cluster, component: &str, node: u8) -> anyhow::Result<()> {
    let label = format!("culvert.io/component={component}");
    let on_node = || -> anyhow::Result<Pod> {
        let pods = cluster.pods(CULVERT, &label)?;
        let pod = pods.into_iter().find(|pod| node == 0 || pod.node == node);
        pod.ok_or_else(|| anyhow::anyhow!("n{node} has no {component}"))
    };
    let old = on_node()?;
    cluster.kubectl(&["-n", CULVERT, "delete", "pod", &old.name, "--wait=false"])?;
    wait_for(&format!("another {component}"), SOON * 2, || {
        let new = on_node()?;
        ensure!(
            new.uid() != old.uid() && new.condition("Ready") == "True",
            "{}",
            new.object["status"]
        );
        Ok(())
    })
}

/// A pod that begins now is meshed from its first packet: a strict server let it in.
fn newcomer(cluster: &Cluster, node: u8) -> anyhow::Result<()> {
    static NTH: AtomicU32 = AtomicU32::new(0);
    let nth = NTH.fetch_add(1, Ordering::Relaxed);
    // By its address: a kubelet that was started again takes its pods for not ready until it has probed them.
    let vault = cluster.ready("shop", "app=vault")?;
    let name = format!("new-{node}-{}-{nth}", process::id());
    let run = format!(
        "said=$(culvert-testapp connect {}); echo \"$said\"; echo \"$said\" | grep -q '\"succeeded\":1,'",
        vault.at(7000)
    );
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"nodeName": format!("n{node}"), "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "serviceAccountName": "once",
            "containers": [{"name": "app", "image": "localhost/culvert-app:1", "imagePullPolicy": "Never", "command": ["sh", "-c", run]}]},
    });
    cluster.apply(&pod.to_string())?;
    let done = wait_for("a new pod to be done", SOON * 2, || {
        let pod = cluster.get(&["-n", "shop", "pod", &name])?;
        let phase = pod["status"]["phase"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        ensure!(
            phase == "Succeeded" || phase == "Failed",
            "{}",
            pod["status"]
        );
        Ok(phase)
    })?;
    let log = cluster.kubectl(&["-n", "shop", "logs", &name])?.stdout;
    cluster.kubectl(&["-n", "shop", "delete", "pod", &name, "--wait=false"])?;
    ensure!(done == "Succeeded", "{done}: {log}");
    Ok(())
}

pub fn agents(cluster: &Cluster) -> anyhow::Result<()> {
    let load = load(cluster)?;
    for node in NODES {
        replaced(cluster, "agent", node)?;
        load.runs()?;
        newcomer(cluster, node)?;
    }
    load.nothing_failed()?;
    load.end()
}

/// A proxy that ends drains what is open; new connections wait for the next one. Streams that go on for longer than the drain break.
pub fn proxies(cluster: &Cluster) -> anyhow::Result<()> {
    let load = load(cluster)?;
    for node in NODES {
        replaced(cluster, "proxy", node)?;
        load.runs()?;
    }
    load.no_request_failed()?;
    load.end()?;
    for node in NODES {
        newcomer(cluster, node)?;
    }
    Ok(())
}

pub fn control(cluster: &Cluster) -> anyhow::Result<()> {
    let load = load(cluster)?;
    replaced(cluster, "control", 0)?;
    load.runs()?;
    newcomer(cluster, 1)?;
    load.nothing_failed()?;
    load.end()
}

/// Ours is overwritten, then the primary's changes, then ours goes.
pub fn chain(cluster: &Cluster) -> anyhow::Result<()> {
    let sh = |script: &str| cluster.node(1, &["sh", "-c", script])?.ok();
    let healed = |what: &str| {
        wait_for(what, SOON, || {
            let now = sh(&format!("cat {CHAIN}"))?.stdout;
            ensure!(
                now.contains("culvert-cni") && now.contains("podnet"),
                "{now}"
            );
            Ok(now)
        })
    };
    healed("the chain")?;
    sh(&format!("cat {PRIMARY} > {CHAIN}"))?;
    healed("the chain that was overwritten")?;
    newcomer(cluster, 1)?;
    sh(&format!(
        "sed 's/\"hairpinMode\":true/\"hairpinMode\":true,\"mtu\":1400/' {PRIMARY} > {PRIMARY}.new; mv {PRIMARY}.new {PRIMARY}"
    ))?;
    wait_for("the chain to follow the primary", SOON, || {
        let now = healed("the chain")?;
        ensure!(now.contains("1400"), "{now}");
        Ok(())
    })?;
    newcomer(cluster, 1)?;
    sh(&format!("rm {CHAIN} /opt/cni/bin/culvert-cni"))?;
    healed("the chain that was removed")?;
    wait_for("the plugin", SOON, || {
        sh("test -x /opt/cni/bin/culvert-cni").map(drop)
    })?;
    newcomer(cluster, 1)
}

pub fn runtime(cluster: &Cluster) -> anyhow::Result<()> {
    let load = load(cluster)?;
    for node in NODES {
        cluster
            .node(node, &["pkill", "-KILL", "-x", "kubelet"])?
            .ok()?;
        cluster
            .node(node, &["pkill", "-KILL", "-x", "containerd"])?
            .ok()?;
        wait_for("containerd and the kubelet", SOON, || {
            cluster.node(node, &["pgrep", "-x", "kubelet"])?.ok()?;
            cluster.node(node, &["ctr", "version"])?.ok()
        })?;
        newcomer(cluster, node)?;
    }
    load.runs()?;
    load.nothing_failed()?;
    load.end()?;
    let vault = cluster.ready("shop", "app=vault")?;
    let before = mesh::probes(cluster, &vault)?;
    wait_for("probes of the kubelet that is new", SOON, || {
        let passed = mesh::probes(cluster, &vault)? - before;
        ensure!(passed >= 5.0, "{passed} passed");
        Ok(())
    })
}

pub fn api_server(cluster: &Cluster) -> anyhow::Result<()> {
    let load = load(cluster)?;
    let begin = Instant::now();
    cluster.end_api_server()?;
    // Not for luck: it is how long it is to be away.
    std::thread::sleep(AWAY.saturating_sub(begin.elapsed()));
    cluster.begin(2)?;
    load.runs()?;
    let requests = load.nothing_failed()?;
    ensure!(
        requests > 30 * AWAY.as_secs(),
        "only {requests} requests were sent"
    );
    for node in NODES {
        newcomer(cluster, node)?;
    }
    load.end()
}

/// All that was in memory is gone. What the node's disk says must not be taken for what is.
pub fn power(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.end_node(2)?;
    cluster.begin(2)?;
    for what in ["ds/culvert-agent", "ds/culvert-proxy"] {
        cluster.rollout(CULVERT, what)?;
    }
    let client = cluster.ready("shop", "app=client")?;
    // The API server calls pods of the node ready, with addresses they no longer have, until its kubelet speaks.
    wait_for("the server that was on the node", SOON, || {
        let connections = cluster.connect(&client, mesh::VAULT, &["--count", "5"])?;
        connections.all().map(drop)
    })?;
    newcomer(cluster, 2)?;
    cluster.rollout("shop", "deploy/web")?;
    for pod in cluster.meshed("shop", "app=web", true)? {
        ensure!(
            !rules(cluster, pod.node, pod.ip)?.is_empty(),
            "{} has no rules",
            pod.name
        );
    }
    wait_for("the mesh to be whole", SOON, || {
        cluster
            .connect(&client, mesh::WEB_ECHO, &["--count", "20"])?
            .all()
            .map(drop)
    })
}
