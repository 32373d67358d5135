// SPDX-License-Identifier: Apache-2.0
//! The traps that the design names, each forced.

use std::{collections::BTreeSet, os::unix::process::CommandExt, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_api::agent::{FromProxy, VERSIONS};
use culvert_tests::{
    app::{hold::Held, peer::Answers},
    manifests::{NAMESPACE, Pod, service},
    process::run,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(15);
const PROXY_UID: u32 = 2102;

#[test]
fn traps() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step(
        "a client binds the port of a live dial",
        port_of_a_live_dial,
    );
    suite.step(
        "a dial avoids the ports of live clients",
        ports_of_live_clients,
    );
    suite.step(
        "a connection to the listener's own port ends",
        listeners_own_port,
    );
    suite.step(
        "a socket bound to a device is refused and counted",
        bound_to_a_device,
    );
    suite.step(
        "a bound address and port are kept towards the proxy",
        bound_to_a_port,
    );
    suite.step(
        "a probe of a closed port fails, one of an open port passes",
        probes,
    );
    suite.step("an excluded port is left alone", excluded_port);
    suite.step("an old peer of the agent is told apart", old_peer);
    suite.step("another user is no proxy", another_user);
    suite.finish()
}

fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("traps")?;
    let app = plan.testapp().to_owned();
    let pod =
        |name, node| Pod::serving(name, node, &app, &["7000=echo", "7001=whoami", "7009=echo"]);
    let excluded = "culvert.io/skip-outbound-ports";
    let sandbox = plan
        .pod(&pod("client", "n1").meshed().annotation(excluded, "7009"))?
        .pod(&pod("plain", "n1"))?
        .pod(&pod("server", "n2").meshed())?
        .pod(&pod("strict", "n2").strict())?
        .object(&service("strict", ("app", "strict"), &[7000]))?
        .up()?;
    sandbox.answers("client", "server", 7000)?;
    Ok(sandbox)
}

/// The client's ports as the application sees them: the ports of the proxy's dials.
fn dial_ports(sandbox: &Sandbox, pod: &str, client: &str) -> anyhow::Result<BTreeSet<u16>> {
    let shown = sandbox.exec(
        pod,
        &["ss", "-Htn", "state", "established", "sport", "=", ":7000"],
    )?;
    let begin = format!("{client}:");
    let peers = shown.ok()?.stdout;
    let peers = peers
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    let ports = peers.filter_map(|peer| peer.strip_prefix(&begin)?.parse().ok());
    Ok(ports.collect())
}

/// An unmeshed client binds each port from which the proxy dialled the application for it. The
/// kernel has one table for both, so that its SYN can't be answered while the dial lives: it must
/// harm nobody, and the port must work again as soon as the dial is over.
fn port_of_a_live_dial(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (at, ip) = (
        sandbox.at("server", 7000)?,
        sandbox.ip("plain")?.to_string(),
    );
    let mut hold = sandbox.spawn_app("plain", &["hold", &at, "--connections", "3"])?;
    let held: Held = hold.next(SOON)?;
    let all = dial_ports(sandbox, "server", &ip)?;
    let dials: Vec<_> = all
        .iter()
        .filter(|port| !held.ports.contains(port))
        .collect();
    ensure!(
        dials.len() == 3,
        "ss shows {all:?}, the client's own are {:?}",
        held.ports
    );
    ensure!(
        dials.iter().all(|port| **port >= 61000),
        "the dials come from {dials:?}"
    );
    let bind = |port| format!("{ip}:{port}");
    for port in &dials {
        let report = sandbox.connect("plain", &at, &["--bind", &bind(*port), "--patience", "2"])?;
        let ended = report.all().or_else(|_| report.none("connect: timeout"));
        ended.with_context(|| format!("from the dial's port {port}"))?;
    }
    hold.say("and the first ones live on")?;
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 3, "{held:?}");
    hold.finish(SOON)?.ok()?;
    for port in dials {
        let report = sandbox.connect("plain", &at, &["--bind", &bind(port)])?;
        report
            .all()
            .with_context(|| format!("from {port} after the dial's end"))?;
    }
    Ok(())
}

/// Each client takes the port after that of the latest dial, which the next dial would take if the
/// proxy did not skip the ports of live clients.
fn ports_of_live_clients(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (at, ip) = (
        sandbox.at("server", 7000)?,
        sandbox.ip("plain")?.to_string(),
    );
    let mut holds = Vec::new();
    let mut latest = 61000;
    for _ in 0..30 {
        let before = dial_ports(sandbox, "server", &ip)?;
        let mut ports = (latest..=u16::MAX).chain(61000..latest);
        let port = ports
            .find(|port| !before.contains(port))
            .context("no port")?;
        let mut hold =
            sandbox.spawn_app("plain", &["hold", &at, "--bind", &format!("{ip}:{port}")])?;
        let held: Held = hold
            .next(SOON)
            .with_context(|| format!("from port {port}"))?;
        ensure!(held.working == 1, "from port {port}: {held:?}");
        holds.push((port, hold));
        let now = dial_ports(sandbox, "server", &ip)?;
        let mut new = now.difference(&before).filter(|new| **new != port);
        latest = *new
            .next()
            .with_context(|| format!("no new dial among {now:?}"))?;
    }
    for (port, mut hold) in holds {
        hold.say("all live on")?;
        let held: Held = hold.next(SOON)?;
        ensure!(held.working == 1, "from port {port}: {held:?}");
        hold.finish(SOON)?.ok()?;
    }
    Ok(())
}

fn listeners_own_port(sandbox: &Sandbox) -> anyhow::Result<()> {
    let shown = sandbox.exec("server", &["ss", "-Htln"])?.ok()?.stdout;
    let locals = shown
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3));
    let ports: Vec<u16> = locals
        .filter_map(|local| local.strip_prefix("127.0.0.1:")?.parse().ok())
        .collect();
    ensure!(
        ports.len() >= 2,
        "ss shows no two listeners on 127.0.0.1:\n{shown}"
    );
    for port in ports {
        for client in ["plain", "client", "server"] {
            let at = sandbox.at("server", port)?;
            let report = sandbox.connect(client, &at, &["--patience", "5"])?;
            report
                .refused()
                .with_context(|| format!("{client} → {at}"))?;
            let slow = report.failures.keys().any(|name| name.ends_with("timeout"));
            ensure!(!slow, "{client} → {at}: {:?}", report.failures);
        }
    }
    // A loop would go on for as long as there are descriptors.
    wait_for("nothing to be open", SOON, || {
        let live = [("state", "live")];
        let live = sandbox.metric(Daemon::Proxy("n2"), "culvert_proxy_sockets", &live)?;
        ensure!(live == 0.0, "{live} sockets are in use");
        Ok(())
    })?;
    sandbox
        .connect("plain", &sandbox.at("server", 7000)?, &[])?
        .all()?;
    Ok(())
}

fn steering(sandbox: &Sandbox, node: &str, pod: &str, decision: &str) -> anyhow::Result<f64> {
    let labels = [
        ("namespace", NAMESPACE),
        ("pod", pod),
        ("decision", decision),
    ];
    sandbox.metric(Daemon::Agent(node), "culvert_steering_total", &labels)
}

fn bound_to_a_device(sandbox: &Sandbox) -> anyhow::Result<()> {
    let before = steering(sandbox, "n1", "client", "refused_bound_device")?;
    let at = sandbox.at("server", 7000)?;
    sandbox
        .connect("client", &at, &["--device", "eth0"])?
        .none("connect: EPERM")?;
    let after = steering(sandbox, "n1", "client", "refused_bound_device")?;
    ensure!(
        after == before + 1.0,
        "counted {before} before and {after} after"
    );
    sandbox
        .connect("client", "127.0.0.1:7000", &["--device", "lo"])?
        .all()?;
    let excluded = sandbox.at("server", 7009)?;
    sandbox
        .connect("client", &excluded, &["--device", "eth0"])?
        .all()?;
    Ok(())
}

fn bound_to_a_port(sandbox: &Sandbox) -> anyhow::Result<()> {
    let bind = format!("{}:33333", sandbox.ip("client")?);
    for server in ["server", "strict"] {
        let at = sandbox.at(server, 7001)?;
        let report = sandbox.connect("client", &at, &["--bind", &bind, "--exchange", "line"])?;
        ensure!(report.seen()?.local.to_string() == bind, "{report:?}");
        ensure!(
            report.whoami()?.peer.ip() == sandbox.ip("client")?,
            "{report:?}"
        );
    }
    Ok(())
}

fn probes(sandbox: &Sandbox) -> anyhow::Result<()> {
    // The pods of this test have TCP probes, `strict` too: they are ready, or up had failed.
    let passed = steering(sandbox, "n2", "strict", "passed_probe")?;
    ensure!(passed > 0.0, "no probe of the strict pod was passed by");
    let app = sandbox.testapp().to_owned();
    let never = Pod::serving("never", "n2", &app, &["7000=echo"])
        .strict()
        .tcp_probe(7999);
    sandbox.apply(&never)?;
    sandbox.apply_object(&service("never", ("app", "never"), &[7000]))?;
    wait_for("the probes to be made", SOON, || {
        let passed = steering(sandbox, "n2", "never", "passed_probe")?;
        ensure!(passed >= 2.0, "{passed} probes were passed by");
        Ok(())
    })?;
    let ready = is_ready(sandbox, "never")?;
    ensure!(!ready, "a pod is ready whose probed port is closed");
    sandbox.apply(&never.tcp_probe(7000))?;
    sandbox.delete_pod("never")?;
    Ok(())
}

/// What the published pod object says.
fn is_ready(sandbox: &Sandbox, pod: &str) -> anyhow::Result<bool> {
    let file = sandbox
        .root()
        .join("manifests")
        .join(format!("pod-{NAMESPACE}.{pod}.json"));
    let object: serde_json::Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    Ok(conditions
        .iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

fn excluded_port(sandbox: &Sandbox) -> anyhow::Result<()> {
    let before = steering(sandbox, "n1", "client", "excluded_out")?;
    sandbox
        .connect("client", &sandbox.at("server", 7009)?, &["--count", "5"])?
        .all()?;
    let after = steering(sandbox, "n1", "client", "excluded_out")?;
    ensure!(after == before + 5.0, "{before} before, {after} after");
    sandbox
        .connect("client", &sandbox.at("strict", 7009)?, &[])?
        .refused()?;
    Ok(())
}

/// Talks to the first node's agent as a proxy of this user would.
fn peer(sandbox: &Sandbox, uid: u32, hello: &str) -> anyhow::Result<Answers> {
    let socket = sandbox.node_root("n1").join("run/proxy.sock");
    let mut peer = Command::new(sandbox.testapp());
    peer.arg("peer")
        .arg(socket)
        .args([hello, "--patience", "3"])
        .uid(uid)
        .gid(uid);
    run(&mut peer, SOON)?.json()
}

fn refusals(sandbox: &Sandbox) -> anyhow::Result<f64> {
    sandbox.metric(
        Daemon::Agent("n1"),
        "culvert_agent_proxy_connections_refused_total",
        &[],
    )
}

fn old_peer(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut versions = VERSIONS;
    (versions.newest, versions.oldest) = (0, 0);
    let hello = serde_json::to_string(&FromProxy::Hello { versions })?;
    let before = refusals(sandbox)?;
    let answers = peer(sandbox, PROXY_UID, &hello)?;
    ensure!(
        answers.end != "timeout",
        "the agent did not hang up: {answers:?}"
    );
    let types: Vec<_> = answers.messages.iter().map(|m| m["type"].clone()).collect();
    ensure!(
        types.iter().all(|t| t == "hello"),
        "the agent told it {types:?}"
    );
    ensure!(refusals(sandbox)? == before + 1.0, "it was not counted");
    let logs = sandbox.logs("agent")?;
    ensure!(
        logs.contains("speaks versions"),
        "the agent does not say why:\n{logs}"
    );
    sandbox
        .connect("client", &sandbox.at("server", 7000)?, &[])?
        .all()?;
    Ok(())
}

fn another_user(sandbox: &Sandbox) -> anyhow::Result<()> {
    let hello = serde_json::to_string(&FromProxy::Hello { versions: VERSIONS })?;
    let before = refusals(sandbox)?;
    for uid in [1000, 65534] {
        let answers = peer(sandbox, uid, &hello)?;
        ensure!(
            answers.messages.is_empty(),
            "user {uid} was told {:?}",
            answers.messages
        );
        ensure!(
            answers.end != "timeout",
            "the agent did not hang up on user {uid}"
        );
    }
    ensure!(refusals(sandbox)? >= before + 1.0, "it was not counted");
    sandbox
        .connect("client", &sandbox.at("server", 7000)?, &[])?
        .all()?;
    Ok(())
}
