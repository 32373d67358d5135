// SPDX-License-Identifier: Apache-2.0
//! How it comes and goes.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use culvert_tests::{
    cluster::{
        Cluster,
        links::{self, Link},
        pods::CULVERT,
    },
    wait::wait_for,
};
use serde_json::Value;

use crate::{NODES, SOON};

const TAINT: &str = "node.culvert.io/agent-not-ready";
/// CAP_CHOWN, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF.
const AGENT: &str = "0000008000201001";
/// README's command, and what this cluster wants beside it: it has no DNS, and is too old for surges, so that nobody takes
/// new connections while a proxy drains.
const INSTALL: &str = "culvert install --set control.clusterIP=10.96.0.86 --set proxy.surge=false --set proxy.drainSeconds=3 | kubectl apply -f -";
/// What must be gone from a node. The directories that the kubelet made for the agent to mount stay, empty.
const RESIDUE: &str = r#"
ls -d /etc/cni/net.d/*culvert* /opt/cni/bin/culvert-cni 2>/dev/null
find /run/culvert /var/lib/culvert -mindepth 1
for ns in /run/netns/*; do
  nsenter --net=$ns sh -c 'ip rule; ip -6 rule' | grep -Ev 'lookup (local|main|default)' | sed "s#^#$ns: #"
  nsenter --net=$ns ss -Hltn 'src 127.0.0.1 or src [::1]' | sed "s#^#$ns: #"
done
ip rule | grep -Ev 'lookup (local|main|default)'
true"#;

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

pub fn uninstall(cluster: &Cluster) -> anyhow::Result<()> {
    let mut kept = Vec::new();
    for (namespace, label) in [
        ("shop", "app=web"),
        ("shop", "app=db"),
        ("outside", "app=plain"),
    ] {
        kept.extend(cluster.pods(namespace, label)?);
    }
    cluster.shell("culvert uninstall")?.ok()?;
    for node in NODES {
        wait_for("nothing to be left", SOON, || {
            let left = cluster.node(node, &["sh", "-c", RESIDUE])?.ok()?.stdout;
            ensure!(left.is_empty(), "n{node} has\n{left}");
            none(cluster, node)
        })?;
    }
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
    // The pods went on, and new ones start.
    for pod in &kept {
        let now = cluster.get(&["-n", &pod.namespace, "pod", &pod.name])?;
        ensure!(
            now["metadata"]["uid"] == pod.uid(),
            "{} is another",
            pod.name
        );
    }
    let client = cluster.pod("shop", "app=client")?;
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

/// Neither a pin, nor a process, nor a link of anything that is the node's.
fn none(cluster: &Cluster, node: u8) -> anyhow::Result<()> {
    let pins = cluster.node(
        node,
        &[
            "find",
            "/sys/fs/bpf",
            "-mindepth",
            "1",
            "!",
            "-name",
            "*.debug",
        ],
    )?;
    ensure!(pins.stdout.is_empty(), "n{node} has pins\n{}", pins.stdout);
    let processes = cluster.node(node, &["pgrep", "-l", "culvert-(agent|proxy|control|cni)"])?;
    ensure!(
        processes.stdout.is_empty(),
        "n{node} runs {}",
        processes.stdout
    );
    let links = links_of(cluster, node)?;
    ensure!(links.is_empty(), "n{node} has {links:?}");
    Ok(())
}

/// The links of a node, of all that this kernel has.
fn links_of(cluster: &Cluster, node: u8) -> anyhow::Result<Vec<Link>> {
    let inodes = |what: &str| -> anyhow::Result<BTreeSet<u64>> {
        let said = cluster.node(node, &["sh", "-c", what])?.stdout;
        Ok(said.lines().map(str::parse).collect::<Result<_, _>>()?)
    };
    let lab = cluster.cgroup(node);
    let cgroups = inodes(&format!("find {lab} -type d -printf '%i\\n'"))?;
    let spaces = inodes("stat -Lc %i /proc/1/ns/net /run/netns/*")?;
    let mut all = links::all()?;
    all.retain(|link| match link {
        Link::Cgroup(id) => cgroups.contains(id),
        Link::Netns(inode) => spaces.contains(inode),
        Link::Other(_) => false,
    });
    Ok(all)
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
