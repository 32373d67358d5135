// SPDX-License-Identifier: Apache-2.0
//! Ports and descriptors that run out or clash, and traffic that NAT brings into a pod.

use std::{os::unix::process::CommandExt, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::{hold::Held, report::Report},
    manifests::{Pod, service},
    process::run,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(15);
const LONG: Duration = Duration::from_secs(180);
/// The user that proxies run as.
const PROXY_UID: u32 = 2102;
/// What the proxies' logs say when descriptors are scarce.
const SCARCE: &str = "about to run out of file descriptors";

#[test]
fn ports() -> anyhow::Result<()> {
    if !require::programs(&["iptables", "prlimit"])? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step("a range of 20 ports is used up", few_ports);
    suite.step("a client binds the ports of live dials and wires", clashes);
    suite.step("a pod dials the service that only itself is", own_service);
    suite.step("a node's port, without and with SNAT", node_port);
    suite.step("a pod dials itself by its node's port", hairpin);
    suite.step("a proxy without descriptors", no_descriptors);
    suite.step("28,000 connections of one pod, one after the other", many);
    suite.finish()
}

/// Strict `server` and permissive `open` on the second node, their clients on the first.
fn sandbox() -> anyhow::Result<Sandbox> {
    let mut plan = Plan::new("ports")?;
    let app = plan.testapp().to_owned();
    let pod = |name: &str, node| Pod::serving(name, node, &app, &["7000=echo", "7001=whoami"]);
    for name in ["client", "other", "few"] {
        plan = plan.pod(&pod(name, "n1").meshed())?;
    }
    for (name, node) in [("plain", "n1"), ("few-plain", "n1"), ("open-plain", "n2")] {
        plan = plan.pod(&pod(name, node))?;
    }
    let sandbox = plan
        .pod(&pod("server", "n2").strict())?
        .pod(&pod("open", "n2").meshed())?
        .object(&service("server", ("app", "server"), &[7000, 7001]))?
        .up()?;
    sandbox.answers("client", "server", 7000)?;
    Ok(sandbox)
}

fn errors(sandbox: &Sandbox, pod: &str, error: &str) -> anyhow::Result<f64> {
    let labels = [("pod", pod), ("error", error)];
    sandbox.metric(Daemon::Proxy("n1"), "outbound_tcp_errors_total", &labels)
}

/// To an address of a pod the application and the proxy's legs share the ports; to a service's the
/// application has all of them.
fn few_ports(sandbox: &Sandbox) -> anyhow::Result<()> {
    for pod in ["few", "few-plain"] {
        let range = "/proc/sys/net/ipv4/ip_local_port_range";
        sandbox
            .pod(pod)
            .run(move || Ok(std::fs::write(range, "40000 40019")?))?;
    }
    let service = format!("{}:7000", sandbox.service_ip("few", "server")?);
    for (pod, to, least) in [
        ("few", sandbox.at("server", 7000)?, 10),
        ("few", service, 20),
        ("few-plain", sandbox.at("open-plain", 7000)?, 20),
    ] {
        used_up(sandbox, pod, &to, least)?;
        // Nothing of it stays.
        used_up(sandbox, pod, &to, least).context("once more")?;
    }
    Ok(())
}

/// 25 connections at once, of which at most 20 have a port and at least `least` work; the others are
/// refused by connect().
fn used_up(sandbox: &Sandbox, pod: &str, to: &str, least: u64) -> anyhow::Result<()> {
    let flags = ["--count", "25", "--concurrent", "25", "--reset"];
    let report = wait_for(&format!("{least} ports of {pod}"), SOON, || {
        let report = sandbox.connect(pod, to, &flags)?;
        ensure!(report.succeeded >= least, "{pod} → {to}: {report:?}");
        Ok(report)
    })?;
    let refused = report
        .failures
        .get("connect: EADDRNOTAVAIL")
        .copied()
        .unwrap_or_default();
    let all = report.succeeded <= 20 && refused + report.succeeded == 25;
    ensure!(all, "{pod} → {to}: {report:?}");
    Ok(())
}

/// All ports that a strict server's namespace has of a client: of wire connections, and of the
/// proxy's dials to the application. The client's own port is no other's affair.
fn clashes(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (at, ip) = (
        sandbox.at("server", 7000)?,
        sandbox.ip("client")?.to_string(),
    );
    let mut hold = sandbox.spawn_app("client", &["hold", &at, "--connections", "3"])?;
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 3, "{held:?}");
    let shown = ["ss", "-Htn", "state", "established", "sport", "=", ":7000"];
    let shown = sandbox.exec("server", &shown)?.ok()?.stdout;
    let peers = shown
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    let begin = format!("{ip}:");
    let ports: std::collections::BTreeSet<u16> = peers
        .filter_map(|peer| peer.strip_prefix(&begin)?.parse().ok())
        .collect();
    ensure!(
        ports.len() >= 6,
        "three wires and three dials, ss shows {ports:?}"
    );
    for port in ports {
        // A leg's own port is the one clash that the pod itself can see.
        let report = sandbox.connect("client", &at, &["--bind", &format!("{ip}:{port}")])?;
        let ended = report
            .all()
            .or_else(|_| report.none("connect: EADDRNOTAVAIL"));
        ended.with_context(|| format!("from port {port}"))?;
    }
    hold.say("and the first live on")?;
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 3, "{held:?}");
    hold.finish(SOON)?.ok()?;
    Ok(())
}

fn own_service(sandbox: &Sandbox) -> anyhow::Result<()> {
    let own = sandbox.ip("server")?;
    let service = format!("{}:7001", sandbox.service_ip("server", "server")?);
    let report = sandbox.connect("server", &service, &["--exchange", "line"])?;
    ensure!(report.whoami()?.local.ip() == own, "{report:?}");
    ensure!(report.whoami()?.peer.ip() == own, "{report:?}");
    Ok(())
}

/// Ports of the second node that lead to a pod's port 7001, as kube-proxy and portmap make them.
const NODE_PORTS: [(u16, &str, bool); 5] = [
    (30080, "open", false),
    (30081, "open", true),
    (30082, "server", false),
    (30083, "server", true),
    (30084, "open-plain", true),
];

fn iptables(sandbox: &Sandbox, rule: &str) -> anyhow::Result<()> {
    let rule: Vec<_> = rule.split(' ').map(str::to_owned).collect();
    let rules = sandbox.node("n2").run(move || {
        let mut iptables = Command::new("iptables");
        run(iptables.args(["-w", "-t", "nat"]).args(rule), SOON)?.ok()
    });
    rules.map(drop)
}

fn node_ports(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (port, pod, snat) in NODE_PORTS {
        let to = sandbox.at(pod, 7001)?;
        let of_node = format!("-p tcp -m addrtype --dst-type LOCAL --dport {port}");
        iptables(
            sandbox,
            &format!("-A PREROUTING {of_node} -j DNAT --to-destination {to}"),
        )?;
        if snat {
            let of_port = format!("-p tcp -m conntrack --ctstate DNAT --ctorigdstport {port}");
            iptables(sandbox, &format!("-A POSTROUTING {of_port} -j MASQUERADE"))?;
        }
    }
    Ok(())
}

/// The second node's address, from the interface to the first.
fn node_ip(sandbox: &Sandbox) -> anyhow::Result<String> {
    sandbox.node("n2").run(|| {
        let mut ip = Command::new("ip");
        let shown = run(ip.args(["-4", "-o", "addr", "show", "eth0"]), SOON)?
            .ok()?
            .stdout;
        let addr = shown
            .split_whitespace()
            .nth(3)
            .and_then(|addr| addr.split('/').next());
        Ok(addr.context("the node has no address")?.to_owned())
    })
}

fn node_port(sandbox: &Sandbox) -> anyhow::Result<()> {
    node_ports(sandbox)?;
    let node = node_ip(sandbox)?;
    for client in ["plain", "client"] {
        for (port, pod, snat) in NODE_PORTS {
            let to = format!("{node}:{port}");
            // Who says nothing to a strict pod is waited for.
            let exchange = if pod == "server" { "echo" } else { "line" };
            let report = sandbox.connect(client, &to, &["--exchange", exchange])?;
            let what = || format!("{client} → {to} → {pod}, SNAT {snat}");
            if pod == "server" {
                // A client that no mesh speaks for: never let in, and never told by a time-out.
                report.refused().with_context(what)?;
                let slow = report.failures.keys().any(|name| name.ends_with("timeout"));
                ensure!(!slow, "{}: {report:?}", what());
                continue;
            }
            let (seen, said) = (report.seen().with_context(what)?, report.whoami()?);
            ensure!(seen.peer.to_string() == to, "{}: {seen:?}", what());
            ensure!(
                said.local.to_string() == sandbox.at(pod, 7001)?,
                "{}: {said:?}",
                what()
            );
            let real = said.peer.ip() == sandbox.ip(client)?;
            ensure!(real != snat, "{}: {said:?}", what());
        }
    }
    let labels = [
        ("pod", "open"),
        ("direction", "inbound"),
        ("tls", "no_identity"),
    ];
    sandbox.metric_reaches(Daemon::Proxy("n2"), "tcp_open_total", &labels, 4.0)?;
    Ok(())
}

/// Lets the node's bridge send out of a port what came in by it, as kubelet has CNI plugins do.
fn hairpin_mode(sandbox: &Sandbox) -> anyhow::Result<()> {
    sandbox.node("n2").run(|| {
        let mut ip = Command::new("ip");
        let ports: serde_json::Value =
            run(ip.args(["-j", "link", "show", "master", "cni0"]), SOON)?.json()?;
        for port in ports.as_array().into_iter().flatten() {
            let name = port["ifname"].as_str().context("a link has no name")?;
            let mut bridge = Command::new("bridge");
            run(
                bridge.args(["link", "set", "dev", name, "hairpin", "on"]),
                SOON,
            )?
            .ok()?;
        }
        Ok(())
    })
}

/// As without a mesh this needs SNAT: else a pod gets a packet from its own address by the wire.
fn hairpin(sandbox: &Sandbox) -> anyhow::Result<()> {
    hairpin_mode(sandbox)?;
    let node = node_ip(sandbox)?;
    let flags = ["--exchange", "line", "--patience", "3"];
    let reach = |pod: &str, port: u16| sandbox.connect(pod, &format!("{node}:{port}"), &flags);
    for (pod, port) in [("open", 30081), ("open-plain", 30084)] {
        let said = reach(pod, port)?
            .whoami()
            .with_context(|| format!("{pod} → {port}"))?;
        ensure!(said.local.to_string() == sandbox.at(pod, 7001)?, "{said:?}");
        ensure!(said.peer.ip() != sandbox.ip(pod)?, "{said:?}");
    }
    reach("open", 30080)?.refused()?;
    // A strict pod is no exception for itself: what comes by the wire needs an identity.
    let to = format!("{node}:30083");
    sandbox
        .connect("server", &to, &["--patience", "3"])?
        .refused()?;
    Ok(())
}

/// Sets how many files the first node's proxy may open.
fn limit_files(sandbox: &Sandbox, limit: &str) -> anyhow::Result<()> {
    let pid = sandbox.pid(Daemon::Proxy("n1"))?;
    let mut prlimit = Command::new("prlimit");
    prlimit
        .args(["--pid", &pid.to_string(), &format!("--nofile={limit}:")])
        // Without CAP_SYS_RESOURCE one's own processes only.
        .uid(PROXY_UID)
        .gid(PROXY_UID);
    run(&mut prlimit, SOON)?.ok()?;
    Ok(())
}

/// One pod opens more connections than the proxy has descriptors for: that pod's are refused at once,
/// another pod's go on, nothing else breaks, and all is well again when they are over.
fn no_descriptors(sandbox: &Sandbox) -> anyhow::Result<()> {
    let files = |name| sandbox.metric(Daemon::Proxy("n1"), name, &[]);
    let (open, most) = (files("process_open_fds")?, files("process_max_fds")?);
    limit_files(sandbox, &(2.0 * open + 400.0).to_string())?;
    let used = flooded(sandbox);
    limit_files(sandbox, &most.to_string())?;
    used?;
    let at = sandbox.at("server", 7000)?;
    let flags = ["--count", "300", "--concurrent", "300", "--patience", "30"];
    wait_for("all to be well again", SOON, || {
        sandbox.connect("client", &at, &flags)?.all().map(drop)
    })
}

fn flooded(sandbox: &Sandbox) -> anyhow::Result<()> {
    let at = sandbox.at("server", 7000)?;
    let said = sandbox.logs("proxy")?.matches(SCARCE).count();
    let (shed, spared) = (
        errors(sandbox, "client", "loadshed")?,
        errors(sandbox, "other", "loadshed")?,
    );
    let mut hold = sandbox.spawn_app("client", &["hold", &at, "--connections", "40"])?;
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 40, "{held:?}");
    let flood = [
        "connect",
        &at,
        "--count",
        "0",
        "--concurrent",
        "800",
        "--until-eof",
    ];
    let flood = sandbox.spawn_app("client", &flood)?;
    wait_for("connections to be refused", SOON, || {
        let now = errors(sandbox, "client", "loadshed")?;
        ensure!(now > shed + 100.0, "{shed} before, {now} now");
        Ok(())
    })?;
    sandbox
        .connect("other", &at, &["--count", "30"])?
        .all()
        .context("of the other pod")?;
    let report: Report = flood.finish(SOON)?.json()?;
    // What a reset is called depends on the call that meets it.
    let names = ["ECONNRESET", "EPIPE", "ENOTCONN"];
    let reset = |name: &String| names.iter().any(|end| name.ends_with(end));
    let resets = report.failures.keys().all(reset);
    ensure!(resets && report.succeeded > 0, "{report:?}");
    ensure!(
        errors(sandbox, "other", "loadshed")? == spared,
        "the other pod's were refused"
    );
    hold.say("those that were there live on")?;
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 40, "{held:?}");
    let agent = sandbox.metric(Daemon::Proxy("n1"), "culvert_proxy_agent_connected", &[])?;
    ensure!(agent == 1.0, "the link to the agent is lost");
    let logs = sandbox.logs("proxy")?;
    let said = logs.matches(SCARCE).count() - said;
    ensure!((1..5).contains(&said), "said {said} times");
    ensure!(!logs.contains("Too many open files"), "{logs}");
    Ok(())
}

/// Linux has 28,232 ports to one destination, and each of these connections leaves a TIME_WAIT in the
/// client's namespace for a minute. To a pod's own address legs have the same ports, and take few.
fn many(sandbox: &Sandbox) -> anyhow::Result<()> {
    let service = format!("{}:7000", sandbox.service_ip("client", "server")?);
    for (from, to, count) in [
        ("client", service, "28000"),
        ("other", sandbox.at("server", 7000)?, "16000"),
    ] {
        let flags = ["--count", count, "--concurrent", "4"];
        let report = sandbox.connect_for(LONG, from, &to, &flags)?;
        report.all().with_context(|| format!("{from} → {to}"))?;
        eprintln!(
            "    {count} connections, connect {:?}, exchange {:?}",
            report.connect, report.exchange
        );
    }
    Ok(())
}
