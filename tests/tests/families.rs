// SPDX-License-Identifier: Apache-2.0
//! IPv4 and IPv6: sandboxes with both and with one.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    capture::Capture,
    manifests::{Pod, service},
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
const ECHO: u16 = 7000;
const WHOAMI: u16 = 7001;
/// On both families.
const LISTEN: [&str; 2] = ["[::]:7000=echo", "[::]:7001=whoami"];

#[test]
fn families() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(dual()?);
    suite.step("a dual pod is met over both families", met_over_both);
    suite.step("a service has the families that it asks for", services);
    suite.step("an IPv4 socket of IPv6 is an IPv4 connection", v4_mapped);
    suite.step("strict is strict in both families", strict_in_both);
    suite.step("a link-local address is no way in", link_local);
    suite.step("over IPv6 the wire has TLS only", wire);
    suite.finish()
}

#[test]
fn ipv6_only() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(of_families("v6", "IPv6")?);
    suite.step("the status has IPv6 only", |sandbox| {
        shows(sandbox, &["IPv6"])
    });
    suite.step("pods meet over IPv6", |sandbox| only(sandbox, Sandbox::at6));
    suite.step("a service is met over IPv6", |sandbox| {
        let ip = sandbox.service_ip6("client", "server")?;
        sandbox.met("client", ip, sandbox.ip6("client")?)
    });
    suite.step("connect() over IPv4 fails at once", |sandbox| {
        sandbox.unreachable("client", "10.244.2.2:7000")
    });
    suite.step("a strict pod is probed over IPv6", |sandbox| {
        let passed = sandbox.steering("n2", "server", "passed_probe")?;
        ensure!(passed > 0.0, "no probe was passed by");
        Ok(())
    });
    suite.step("a restarted proxy finds control over IPv6", restarted);
    suite.finish()
}

#[test]
fn ipv4_only() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(of_families("v4", "IPv4")?);
    suite.step("the status has IPv4 only", |sandbox| {
        shows(sandbox, &["IPv4"])
    });
    suite.step("pods meet over IPv4", |sandbox| only(sandbox, Sandbox::at));
    suite.step("connect() over IPv6 fails at once", |sandbox| {
        sandbox.unreachable("client", "[fd00:244:0:2::2]:7000")
    });
    suite.step("a family that comes later is steered too", family_comes);
    suite.finish()
}

/// `client` and `near` are on the first node, `server` and `open` (permissive) on the second; `plain`
/// and `far` are not meshed.
fn dual() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("families")?;
    let app = plan.testapp().to_owned();
    let [client, near, plain, far] =
        ["client", "near", "plain", "far"].map(|name| Pod::serving(name, "n1", &app, &LISTEN));
    let [strict, open] = ["server", "open"].map(|name| Pod::serving(name, "n2", &app, &LISTEN));
    let sandbox = plan
        .pod(&client.meshed())?
        .pod(&near.strict())?
        .pod(&plain)?
        .pod(&far)?
        .pod(&strict.strict())?
        .pod(&open.meshed())?
        .object(&of_policy("both", "PreferDualStack", &[]))?
        .object(&of_policy("six", "SingleStack", &["IPv6"]))?
        .object(&headless())?
        .object(&service("first", ("app", "server"), &[ECHO, WHOAMI]))?
        .up()?;
    sandbox.answers("client", "server", ECHO)?;
    Ok(sandbox)
}

/// A service of the strict server.
fn of_policy(name: &str, policy: &str, families: &[&str]) -> Value {
    let mut service = service(name, ("app", "server"), &[ECHO, WHOAMI]);
    service["spec"]["ipFamilyPolicy"] = json!(policy);
    if !families.is_empty() {
        service["spec"]["ipFamilies"] = json!(families);
    }
    service
}

fn headless() -> Value {
    let mut service = of_policy("headless", "RequireDualStack", &[]);
    service["spec"]["clusterIP"] = json!("None");
    service
}

fn of_families(name: &str, families: &str) -> anyhow::Result<Sandbox> {
    let plan = Plan::new(name)?.flag("--ip-families").flag(families);
    let app = plan.testapp().to_owned();
    let client = Pod::serving("client", "n1", &app, &LISTEN).meshed();
    let plain = Pod::serving("plain", "n1", &app, &LISTEN);
    let near = Pod::serving("near", "n1", &app, &LISTEN).strict();
    let server = Pod::serving("server", "n2", &app, &LISTEN).strict();
    plan.pod(&client)?
        .pod(&plain)?
        .pod(&near)?
        .pod(&server)?
        .object(&service("server", ("app", "server"), &[ECHO, WHOAMI]))?
        .up()
}

/// Strict servers let in who proves an identity only, so that each of these is mutual TLS.
fn met_over_both(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (client, server) in [
        ("client", "server"),
        ("client", "near"),
        ("near", "server"),
        ("server", "near"),
        ("near", "near"),
        ("client", "plain"),
    ] {
        let (from, to) = (sandbox.ips(client)?, sandbox.ips(server)?);
        for (source, to) in from.into_iter().zip(to) {
            sandbox.met(client, to, source)?;
        }
    }
    is_counted(sandbox, "server")
}

/// By the identities that the client's node saw.
fn is_counted(sandbox: &Sandbox, server: &str) -> anyhow::Result<()> {
    let id = format!("spiffe://cluster.local/ns/default/sa/{server}");
    let labels = [
        ("direction", "outbound"),
        ("tls", "true"),
        ("server_id", id.as_str()),
    ];
    sandbox.metric_reaches(Daemon::Proxy("n1"), "tcp_open_total", &labels, 4.0)?;
    Ok(())
}

fn services(sandbox: &Sandbox) -> anyhow::Result<()> {
    let [v4, v6] = sandbox.ips("client")?;
    sandbox.met("client", sandbox.service_ip("client", "both")?, v4)?;
    sandbox.met("client", sandbox.service_ip6("client", "both")?, v6)?;
    sandbox.met("client", sandbox.service_ip6("client", "six")?, v6)?;
    sandbox.met("client", sandbox.service_ip("client", "first")?, v4)?;
    ensure!(sandbox.service_ip6("client", "first").is_err());
    ensure!(sandbox.service_ip6("client", "headless")? == sandbox.ip6("server")?);
    ensure!(sandbox.service_ip("client", "headless")? == sandbox.ip("server")?);
    let families = |name: &str| -> anyhow::Result<usize> {
        let status = sandbox.status()?;
        let all = status["services"].as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|one| one["name"] == name);
        let ips = found.and_then(|one| one["clusterIps"].as_array());
        ips.map(Vec::len).context("no such service")
    };
    ensure!(families("both")? == 2 && families("six")? == 1 && families("first")? == 1);
    Ok(())
}

/// As dual-stack programs dial and listen: the pods here listen on `[::]`.
fn v4_mapped(sandbox: &Sandbox) -> anyhow::Result<()> {
    let source = sandbox.ip("client")?;
    for server in ["server", "open", "near", "client"] {
        let IpAddr::V4(ip) = sandbox.ip(server)? else {
            anyhow::bail!("{server} has no IPv4 address");
        };
        sandbox.met("client", ip.to_ipv6_mapped().into(), source)?;
        let capture = Capture::start(&sandbox.node("n1"))?;
        let to = SocketAddr::new(ip.to_ipv6_mapped().into(), ECHO).to_string();
        let sent = sandbox.connect("client", &to, &["--send", "mapped-in-the-clear"]);
        let clear = capture.stop()?.count(b"mapped-in-the-clear");
        ensure!(clear == 0, "{clear} packets to {server} hold the text");
        sent?.all()?;
    }
    Ok(())
}

fn strict_in_both(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (server, is_in) in [("server", false), ("near", false), ("open", true)] {
        for to in [sandbox.at(server, ECHO)?, sandbox.at6(server, ECHO)?] {
            let report = sandbox.connect("plain", &to, &["--patience", "5"])?;
            let as_expected = if is_in {
                report.all()
            } else {
                report.refused()
            };
            as_expected.with_context(|| format!("plain → {server} at {to}"))?;
        }
    }
    Ok(())
}

/// Neighbours of one link need no router for these, and nobody routes them.
fn link_local(sandbox: &Sandbox) -> anyhow::Result<()> {
    // The unsteered one shows that the way is there.
    for (server, is_in) in [("near", false), ("client", false), ("far", true)] {
        // eth0 is the second interface of every pod.
        let to = format!("[{}%2]:{ECHO}", sandbox.link_local(server)?);
        let report = sandbox.connect("plain", &to, &["--patience", "3"])?;
        let as_expected = if is_in {
            report.all()
        } else {
            report.refused()
        };
        as_expected.with_context(|| format!("{server} at {to}"))?;
    }
    Ok(())
}

fn wire(sandbox: &Sandbox) -> anyhow::Result<()> {
    for server in ["server", "open", "near"] {
        let marker = format!("marker-{server}-over-six");
        let captures = ["n1", "n2"].map(|node| Capture::start(&sandbox.node(node)));
        let to = sandbox.at6(server, ECHO)?;
        let sent = sandbox.connect("client", &to, &["--send", &marker, "--count", "5"]);
        for (node, capture) in ["n1", "n2"].into_iter().zip(captures) {
            let captured = capture?.stop()?;
            ensure!(captured.count(marker.as_bytes()) == 0, "{server} on {node}");
            if node == "n1" || server != "near" {
                captured.tls_only(sandbox.ip6(server)?, ECHO)?;
            }
        }
        sent?.all()?;
    }
    Ok(())
}

fn shows(sandbox: &Sandbox, families: &[&str]) -> anyhow::Result<()> {
    let status = sandbox.status()?;
    ensure!(status["ipFamilies"] == json!(families), "{status}");
    let v6 = families == ["IPv6"];
    for pod in status["pods"].as_array().into_iter().flatten() {
        let ips = pod["ips"].as_array().cloned().unwrap_or_default();
        ensure!(ips.len() == 1 && ips[0] == pod["ip"], "{pod}");
        let ip: IpAddr = ips[0].as_str().unwrap_or_default().parse()?;
        ensure!(ip.is_ipv6() == v6, "{pod}");
    }
    Ok(())
}

fn only(
    sandbox: &Sandbox,
    at: impl Fn(&Sandbox, &str, u16) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    for (from, server) in [
        ("client", "server"),
        ("server", "client"),
        ("server", "server"),
    ] {
        let (to, source): (SocketAddr, SocketAddr) = (
            at(sandbox, server, WHOAMI)?.parse()?,
            at(sandbox, from, WHOAMI)?.parse()?,
        );
        // Who is strict refuses until it is known that it is meshed; who waits for its first word
        // would wait long.
        let echo = SocketAddr::new(to.ip(), ECHO).to_string();
        wait_for("the server to answer", SOON, || {
            sandbox.connect(from, &echo, &[])?.all().map(drop)
        })?;
        sandbox.met(from, to.ip(), source.ip())?;
    }
    Ok(())
}

/// Nobody but the pods' own node knows these addresses: strict refuses whoever proves no identity.
fn family_comes(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (pod, host) in [("client", "1"), ("plain", "2"), ("near", "3")] {
        sandbox.add_address(pod, &format!("fd01::{host}/64"), "eth0")?;
    }
    let [client, plain, near] = ["fd01::1", "fd01::2", "fd01::3"].map(str::parse);
    let (client, plain, near): (IpAddr, IpAddr, IpAddr) = (client?, plain?, near?);
    wait_for("the new family to be steered", SOON, || {
        sandbox.met("client", plain, client)
    })?;
    let strict = SocketAddr::new(near, ECHO).to_string();
    wait_for("the new family to be strict", SOON, || {
        sandbox
            .connect("plain", &strict, &["--patience", "2"])?
            .refused()
            .map(drop)
    })?;
    sandbox.met("plain", client, plain)
}

fn restarted(sandbox: &Sandbox) -> anyhow::Result<()> {
    let pid = sandbox.pid(Daemon::Proxy("n1"))?;
    sandbox.kill("proxy", Some("n1"), false)?;
    sandbox.replaced(Daemon::Proxy("n1"), pid)?;
    sandbox.kill("control", None, false)?;
    sandbox.ready(Daemon::Control)?;
    only(sandbox, Sandbox::at6)
}
