// SPDX-License-Identifier: Apache-2.0
//! How it comes and goes.

use std::thread;

use anyhow::{Context as _, anyhow, ensure};
use culvert_tests::{
    app::stream::Streamed,
    cluster::{
        Cluster,
        pods::{CULVERT, Pod},
    },
    process::Running,
    runtime::image::TESTAPP,
    wait::wait_for,
};
use serde_json::Value;

use crate::{
    NODES, SOON, live, mesh,
    residue::{KINDS, residue},
};

const TAINT: &str = "node.culvert.io/agent-not-ready";
/// CAP_CHOWN, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF.
const AGENT: &str = "0000008000201001";
/// README's command, and what this cluster wants beside it: it has no DNS, and is too old for surges, so that nobody takes
/// new connections while a proxy drains.
const INSTALL: &str = "culvert install --set control.clusterIP=10.96.0.86 --set proxy.surge=false --set proxy.drainSeconds=3 | kubectl apply -f -";

/// The second node was started with the taint, as users start new nodes.
pub fn waits(cluster: &Cluster) -> anyhow::Result<()> {
    let node = cluster.get(&["node", "n2"])?;
    ensure!(tainted(&node), "n2 has no taint: {}", node["spec"]);
    Ok(())
}

pub fn install(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.shell("culvert check --pre")?.ok()?;
    cluster.shell(INSTALL)?.ok()?;
    cluster.shell("culvert check --wait 5m")?.ok()?;
    for what in [
        "ds/culvert-agent",
        "ds/culvert-proxy",
        "deploy/culvert-control",
    ] {
        cluster.rollout(CULVERT, what)?;
    }
    let again = cluster.shell(INSTALL)?;
    ensure!(
        again.status != Some(0) && again.stderr.contains("culvert upgrade"),
        "it was installed twice: {again:?}"
    );
    Ok(())
}

pub fn taint(cluster: &Cluster) -> anyhow::Result<()> {
    wait_for("the taint to go", SOON, || {
        let node = cluster.get(&["node", "n2"])?;
        ensure!(!tainted(&node), "{}", node["spec"]);
        Ok(())
    })
}

fn tainted(node: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array();
    taints
        .into_iter()
        .flatten()
        .any(|taint| taint["key"] == TAINT)
}

/// As the kernel has them.
pub fn rights(cluster: &Cluster) -> anyhow::Result<()> {
    for node in NODES {
        let of = |process: &str, what: &str| -> anyhow::Result<String> {
            let read = format!("sed -n 's/^{what}:\\s*//p' /proc/$(pgrep -x {process})/status");
            let said = cluster.node(node, &["sh", "-c", &read])?.ok()?.stdout;
            Ok(said
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned())
        };
        let caps = of("culvert-proxy", "CapBnd")?;
        ensure!(
            caps == "0000000000000000",
            "the proxy may get capabilities {caps}"
        );
        let uid = of("culvert-proxy", "Uid")?;
        ensure!(uid == "2102", "the proxy is user {uid}");
        for what in ["NoNewPrivs", "Seccomp"] {
            let on = of("culvert-proxy", what)?;
            ensure!(on != "0", "{what} of the proxy is {on}");
        }
        let caps = of("culvert-agent", "CapBnd")?;
        ensure!(caps == AGENT, "the agent may have {caps}");
    }
    Ok(())
}

/// Pods that are there for the whole of the uninstall: meshed ones, a strict one whose probes go on, and ones that never were.
const KEPT: [(&str, &str); 6] = [
    ("shop", "app=web"),
    ("shop", "app=db"),
    ("shop", "app=vault"),
    ("shop", "app=client"),
    ("outside", "app=late"),
    ("outside", "app=plain"),
];

pub fn uninstall(cluster: &Cluster) -> anyhow::Result<()> {
    // What is not found now would not be found then either.
    for node in NODES {
        wait_for("all that Culvert puts on a node", SOON, || {
            let there = residue(cluster, node)?;
            let missing = KINDS.iter().find(|kind| !there.contains_key(**kind));
            ensure!(missing.is_none(), "n{node} has no {missing:?}: {there:#?}");
            Ok(())
        })?;
    }
    let kept = kept(cluster)?;
    let client = cluster.ready("shop", "app=client")?;
    let echo = [TESTAPP, "stream", mesh::WEB_ECHO, "--connections", "4"];
    let mut stream = cluster.start(&client, &echo)?;
    live::flows(&mut stream)?;
    thread::scope(|scope| {
        let uninstall = scope.spawn(|| cluster.shell("culvert uninstall --yes")?.ok());
        let ended = leaves_with_its_connections(cluster, stream);
        let said = uninstall.join().map_err(|_| anyhow!("it panicked"))??;
        ended.with_context(|| format!("{said:?}"))
    })?;
    for node in NODES {
        wait_for("nothing to be left", SOON, || {
            let left = residue(cluster, node)?;
            ensure!(left.is_empty(), "n{node} has {left:#?}");
            Ok(())
        })?;
    }
    unmoved(cluster, &kept)?;
    for what in [
        "namespace",
        "clusterrole",
        "clusterrolebinding",
        "customresourcedefinition",
        "priorityclass",
    ] {
        let all = cluster.kubectl(&["get", what, "-o", "name"])?.stdout;
        ensure!(!all.contains("culvert"), "left: {all}");
    }
    let nodes = cluster.get(&["nodes"])?.to_string();
    ensure!(!nodes.contains("culvert.io"), "a node says {nodes}");
    // New pods start.
    cluster
        .connect(&client, "10.96.0.50:7000", &["--count", "10"])?
        .all()?;
    cluster.kubectl(&["-n", "shop", "delete", "pod", "-l", "app=web"])?;
    cluster.rollout("shop", "deploy/web")?;
    cluster
        .connect(&client, "10.96.0.50:7000", &["--count", "10"])?
        .all()?;
    Ok(())
}

fn kept(cluster: &Cluster) -> anyhow::Result<Vec<Pod>> {
    let all = KEPT.map(|(namespace, label)| {
        let pods = cluster.pods(namespace, label)?;
        ensure!(!pods.is_empty(), "{namespace} has no {label}");
        Ok(pods)
    });
    let all: Vec<_> = all.into_iter().collect::<anyhow::Result<_>>()?;
    Ok(all.concat())
}

/// The same pods, and no container of them was started again.
fn unmoved(cluster: &Cluster, kept: &[Pod]) -> anyhow::Result<()> {
    let now = self::kept(cluster)?;
    for pod in kept {
        let same = now.iter().find(|now| now.uid() == pod.uid());
        let same = same.with_context(|| format!("{} is another", pod.name))?;
        ensure!(
            same.containers() == pod.containers(),
            "{}: {:?} and then {:?}",
            pod.name,
            pod.containers(),
            same.containers()
        );
    }
    Ok(())
}

/// What went through the proxies goes on when its pods are not meshed any more, to its last byte.
fn leaves_with_its_connections(cluster: &Cluster, mut stream: Running) -> anyhow::Result<()> {
    for label in ["app=client", "app=web"] {
        cluster.meshed("shop", label, false)?;
    }
    live::flows(&mut stream)?;
    let end: Streamed = stream.finish(SOON)?.json_of_last_line()?;
    ensure!(end.broken.is_empty() && end.working == 4, "{end:?}");
    Ok(())
}

/// The rules of a pod's network that are not the kernel's own.
pub fn rules(cluster: &Cluster, node: u8, ip: std::net::IpAddr) -> anyhow::Result<String> {
    let find = format!(
        "for ns in /run/netns/*; do nsenter --net=$ns ip -o addr | grep -q ' {ip}/' && nsenter --net=$ns sh -c 'ip rule; ip -6 rule' && exit; done; exit 3"
    );
    let rules = cluster.node(node, &["sh", "-c", &find])?.ok();
    let rules = rules
        .with_context(|| format!("no namespace of n{node} has {ip}"))?
        .stdout;
    let own = rules.lines().filter(|line| {
        !["lookup local", "lookup main", "lookup default"]
            .iter()
            .any(|kernels| line.contains(kernels))
    });
    Ok(own.collect::<Vec<_>>().join("; "))
}
