// SPDX-License-Identifier: Apache-2.0
//! What is meshed, and what is not.

use anyhow::ensure;
use culvert_tests::{
    capture::Capture,
    cluster::{Cluster, pods::Pod},
    metrics::Scrape,
    wait::wait_for,
};

use crate::{NODES, SOON, install::rules};

pub const WEB_HTTP: &str = "10.96.0.50:80";
pub const WEB_ECHO: &str = "10.96.0.50:7000";
pub const VAULT: &str = "10.96.0.51:7000";
const SHOP: &str = include_str!("shop.yaml");
const ONCE: &str = include_str!("once.yaml");
const LINE: [&str; 2] = ["--exchange", "line"];
const TEN: [&str; 2] = ["--count", "10"];

pub fn annotated(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(SHOP)?;
    for what in ["deploy/web", "deploy/vault", "statefulset/db"] {
        cluster.rollout("shop", what)?;
    }
    for label in ["app=web", "app=vault", "app=client"] {
        cluster.meshed("shop", label, true)?;
    }
    let client = cluster.ready("shop", "app=client")?;
    cluster
        .connect(&client, WEB_ECHO, &["--count", "40"])?
        .all()?;
    let both = cluster.exec(
        &client,
        &["culvert-testapp", "requests", WEB_HTTP, "--count", "40"],
    )?;
    let both = both.ok()?.stdout;
    for node in NODES {
        let scrape = cluster.proxy_metrics(node)?;
        let labels = server("web", "client");
        for what in ["request_total", "tcp_open_total"] {
            let seen = scrape.sum(what, &labels);
            ensure!(
                seen > 0.0,
                "n{node}: {}; {both}",
                scrape.nearest(what, &labels)
            );
        }
    }
    Ok(())
}

/// What a server's proxy counts of a client that proved who it is.
fn server<'a>(workload: &'a str, client: &'a str) -> [(&'a str, &'a str); 4] {
    let id = match client {
        "client" => "spiffe://cluster.local/ns/shop/sa/client",
        "once" => "spiffe://cluster.local/ns/shop/sa/once",
        "late" => "spiffe://cluster.local/ns/outside/sa/late",
        other => other,
    };
    [
        ("direction", "inbound"),
        ("tls", "true"),
        ("client_id", id),
        (kind(workload), workload),
    ]
}

/// The label that names a workload.
fn kind(workload: &str) -> &'static str {
    match workload {
        "db" => "statefulset",
        "late" | "client" => "pod",
        _ => "deployment",
    }
}

/// How many connections a pod took from a client that proved who it is.
pub fn proved(scrape: &Scrape, workload: &str, client: &str) -> f64 {
    scrape.sum("tcp_open_total", &server(workload, client))
}

pub fn wire(cluster: &Cluster) -> anyhow::Result<()> {
    let client = cluster.ready("shop", "app=client")?;
    let vault = cluster.ready("shop", "app=vault")?;
    ensure!(client.node != vault.node, "both are on n{}", client.node);
    let capture = Capture::start(&cluster.wire())?;
    let secret = ["--send", "culvert-secret", "--count", "20"];
    cluster.connect(&client, VAULT, &secret)?.all()?;
    let captured = capture.stop()?;
    ensure!(captured.count(b"culvert-secret") == 0, "it can be read");
    captured.tls_only(vault.ip, 7000)?;
    // The same between pods that are not meshed: the capture would have seen it.
    let (plain, other) = (
        cluster.ready("outside", "app=plain")?,
        cluster.ready("outside", "app=other")?,
    );
    let capture = Capture::start(&cluster.wire())?;
    cluster.connect(&plain, &other.at(7000), &secret)?.all()?;
    ensure!(
        capture.stop()?.count(b"culvert-secret") > 0,
        "the capture is blind"
    );
    Ok(())
}

pub fn first_packet(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(ONCE)?;
    let done = cluster.kubectl(&[
        "-n",
        "shop",
        "wait",
        "--for=condition=complete",
        "job/once",
        "--timeout=60s",
    ]);
    let logs = cluster.kubectl(&["-n", "shop", "logs", "-l", "app=once", "--all-containers"]);
    done.map_err(|error| error.context(format!("{logs:?}")))?;
    let taken = proved(&cluster.proxy_metrics(2)?, "vault", "once");
    ensure!(
        taken == 12.0,
        "{taken} connections of 12 proved who they are"
    );
    let nodes: Vec<_> = cluster
        .pods("shop", "app=once")?
        .iter()
        .map(|pod| pod.node)
        .collect();
    ensure!(
        NODES.iter().all(|node| nodes.contains(node)),
        "they ran on {nodes:?}"
    );
    // What is over is not steered any more.
    wait_for("completed pods to be let go", SOON, || {
        let over = cluster.pods("shop", "app=once")?;
        let meshed = over.iter().filter(|pod| pod.is_meshed()).count();
        ensure!(meshed == 0, "{meshed} completed pods are meshed");
        Ok(())
    })
}

pub fn stateful(cluster: &Cluster) -> anyhow::Result<()> {
    let client = cluster.ready("shop", "app=client")?;
    for db in cluster.meshed("shop", "app=db", true)? {
        let before = proved(&cluster.proxy_metrics(db.node)?, "db", "client");
        let whoami = cluster.connect(&client, &db.at(7001), &LINE)?.whoami()?;
        ensure!(
            whoami.peer.ip() == client.ip,
            "{} sees {}",
            db.name,
            whoami.peer
        );
        ensure!(
            whoami.local.ip() == db.ip,
            "{} is asked as {}",
            db.name,
            whoami.local
        );
        let after = proved(&cluster.proxy_metrics(db.node)?, "db", "client");
        ensure!(after > before, "{} was not dialled with TLS", db.name);
    }
    Ok(())
}

pub fn untouched(cluster: &Cluster) -> anyhow::Result<()> {
    let (plain, other) = (
        cluster.ready("outside", "app=plain")?,
        cluster.ready("outside", "app=other")?,
    );
    for pod in [&plain, &other] {
        ensure!(
            pod.condition("culvert.io/Meshed").is_empty(),
            "{} has a condition",
            pod.name
        );
        let rules = rules(cluster, pod.node, pod.ip)?;
        ensure!(rules.is_empty(), "{} has rules {rules}", pod.name);
    }
    let meshed = cluster.ready("shop", "app=client")?;
    ensure!(
        !rules(cluster, meshed.node, meshed.ip)?.is_empty(),
        "a meshed pod has no rules"
    );
    talks(cluster, &plain, &other)?;
    talks(cluster, &plain, &meshed)?;
    talks(cluster, &meshed, &plain)
}

/// Each sees the address of the other.
fn talks(cluster: &Cluster, from: &Pod, to: &Pod) -> anyhow::Result<()> {
    let whoami = cluster.connect(from, &to.at(7001), &LINE)?.whoami()?;
    ensure!(
        whoami.peer.ip() == from.ip,
        "{} sees {} for {}",
        to.name,
        whoami.peer,
        from.name
    );
    Ok(())
}

pub fn strict(cluster: &Cluster) -> anyhow::Result<()> {
    let (plain, client) = (
        cluster.ready("outside", "app=plain")?,
        cluster.ready("shop", "app=client")?,
    );
    let vault = cluster.ready("shop", "app=vault")?;
    for at in [VAULT, &vault.at(7000), &vault.at(8080)] {
        cluster
            .connect(&plain, at, &["--count", "3", "--patience", "3"])?
            .refused()?;
    }
    cluster.connect(&client, VAULT, &TEN)?.all()?;
    // Ten probes of each kind later.
    let before = probes(cluster, &vault)?;
    wait_for("ten more probes", SOON, || {
        let now = probes(cluster, &vault)?;
        ensure!(now >= before + 10.0, "{now} after {before}");
        Ok(())
    })?;
    let now = cluster.ready("shop", "app=vault")?;
    ensure!(
        now.containers() == vault.containers(),
        "{:?}",
        now.containers()
    );
    Ok(())
}

/// How many connections of the kubelet were let through to a pod.
pub fn probes(cluster: &Cluster, pod: &Pod) -> anyhow::Result<f64> {
    let scrape = cluster.agent_metrics(pod.node)?;
    let name = "culvert_steering_total";
    let labels = [
        ("namespace", &*pod.namespace),
        ("pod", &*pod.name),
        ("decision", "passed_probe"),
    ];
    ensure!(
        scrape.matching(name, &labels).next().is_some(),
        "{}",
        scrape.nearest(name, &labels)
    );
    Ok(scrape.sum(name, &labels))
}

pub fn sick(cluster: &Cluster) -> anyhow::Result<()> {
    wait_for("the sick pod to be restarted", SOON, || {
        let sick = cluster.pod("shop", "app=sick")?;
        let restarted = sick
            .containers()
            .first()
            .is_some_and(|(_, times)| *times > 0);
        ensure!(restarted, "{}", sick.object["status"]);
        ensure!(sick.condition("Ready") == "False", "it is ready");
        Ok(())
    })?;
    cluster.kubectl(&["-n", "shop", "delete", "pod", "sick"])?;
    Ok(())
}
