// SPDX-License-Identifier: Apache-2.0
//! What manifests say beforehand: which endpoints a node uses, and what ports speak. All of it
//! changes on live objects.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use culvert_tests::{
    manifests::{Pod, service},
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const ECHO: u16 = 7000;
const HTTP: u16 = 7080;
/// Sent back by an echo server as it is, and no answer to a proxy that reads it.
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: raw\r\n\r\n";
const OPAQUE: &str = "config.linkerd.io/opaque-ports";
const ZONE: &str = "topology.kubernetes.io/zone";

#[test]
fn hints() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step(
        "endpoints of the client's zone, as zones come and go",
        zones,
    );
    suite.step("the annotation asks for the zone, too", topology_mode);
    suite.step("internalTrafficPolicy: Local stays on the node", local);
    suite.step(
        "a port that the service does not have is refused",
        undeclared,
    );
    suite.step("opaque ports of a service", opaque_service);
    suite.step("opaque ports of a pod, by its own address", opaque_pod);
    suite.step("appProtocol counts before opaque ports", app_protocol);
    suite.step("what can't be followed is named", mistakes);
    suite.finish()
}

/// `near` and its clients `client` on the first node, `far` and `other` on the second. The ports of
/// `near` and `far` are opaque on their own side, so that only the client's side can read.
fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("hints")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| {
        let listen = ["7000=echo", "7080=http", "7006=echo"];
        Pod::serving(name, node, &app, &listen).meshed()
    };
    let server = |name, node| {
        pod(name, node)
            .label("set", "servers")
            .annotation(OPAQUE, "7000,7080")
    };
    let sandbox = plan
        .pod(&pod("client", "n1"))?
        .pod(&pod("other", "n2"))?
        .pod(&server("near", "n1"))?
        .pod(&server("far", "n2"))?
        .object(&servers("plain", &json!({}), &json!({})))?
        .up()?;
    for (client, server) in [
        ("client", "near"),
        ("client", "far"),
        ("other", "near"),
        ("other", "far"),
    ] {
        sandbox.answers(client, server, ECHO)?;
    }
    Ok(sandbox)
}

/// A service over both servers.
fn servers(name: &str, annotations: &Value, fields: &Value) -> Value {
    let mut object = service(name, ("set", "servers"), &[ECHO, HTTP]);
    object["metadata"]["annotations"] = annotations.clone();
    for (field, value) in fields.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    object
}

fn node(name: &str, zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {ZONE: zone}}})
}

/// `IP:PORT` of a service, once it has an address.
fn at(sandbox: &Sandbox, service: &str, port: u16) -> anyhow::Result<String> {
    wait_for(&format!("the address of {service}"), SOON, || {
        Ok::<_, anyhow::Error>(format!("{}:{port}", sandbox.service_ip("client", service)?))
    })
}

/// The servers that 16 connections of a client to a service reach.
fn reached(sandbox: &Sandbox, client: &str, service: &str) -> anyhow::Result<Vec<&'static str>> {
    let node = if client == "client" { "n1" } else { "n2" };
    let opened = |server: &str| {
        let labels = [
            ("direction", "outbound"),
            ("pod", client),
            ("dst_pod", server),
        ];
        sandbox.metric(Daemon::Proxy(node), "tcp_open_total", &labels)
    };
    let before = (opened("near")?, opened("far")?);
    let at = at(sandbox, service, ECHO)?;
    // A proxy that hears of a service later than its client waits in vain.
    let flags = ["--count", "16", "--concurrent", "16", "--patience", "2"];
    sandbox.connect(client, &at, &flags)?.all()?;
    let after = (opened("near")?, opened("far")?);
    let mut reached = Vec::new();
    reached.extend((after.0 > before.0).then_some("near"));
    reached.extend((after.1 > before.1).then_some("far"));
    Ok(reached)
}

fn reaches(
    sandbox: &Sandbox,
    client: &str,
    service: &str,
    expected: &[&str],
) -> anyhow::Result<()> {
    wait_for(&format!("{client} to reach {expected:?}"), SOON, || {
        let reached = reached(sandbox, client, service)?;
        ensure!(reached == expected, "it reaches {reached:?}");
        Ok(())
    })
}

fn zones(sandbox: &Sandbox) -> anyhow::Result<()> {
    let close = json!({"trafficDistribution": "PreferClose"});
    sandbox.apply_object(&servers("close", &json!({}), &close))?;
    reaches(sandbox, "client", "close", &["near", "far"]).context("no zones yet")?;
    sandbox.apply_object(&node("n1", "east"))?;
    sandbox.apply_object(&node("n2", "west"))?;
    reaches(sandbox, "client", "close", &["near"])?;
    reaches(sandbox, "other", "close", &["far"])?;
    reaches(sandbox, "client", "plain", &["near", "far"]).context("nobody asked")?;
    sandbox.apply_object(&node("n2", "east"))?;
    reaches(sandbox, "client", "close", &["near", "far"])?;
    sandbox.apply_object(&node("n2", "west"))?;
    reaches(sandbox, "client", "close", &["near"])?;
    sandbox.apply_object(&servers("close", &json!({}), &json!({})))?;
    reaches(sandbox, "client", "close", &["near", "far"])
}

fn topology_mode(sandbox: &Sandbox) -> anyhow::Result<()> {
    let auto = json!({"service.kubernetes.io/topology-mode": "Auto"});
    sandbox.apply_object(&servers("auto", &auto, &json!({})))?;
    reaches(sandbox, "client", "auto", &["near"])?;
    sandbox.apply_object(&servers("auto", &json!({}), &json!({})))?;
    reaches(sandbox, "client", "auto", &["near", "far"])
}

fn local(sandbox: &Sandbox) -> anyhow::Result<()> {
    let policy = |policy| json!({"internalTrafficPolicy": policy});
    sandbox.apply_object(&servers("local", &json!({}), &policy("Local")))?;
    reaches(sandbox, "client", "local", &["near"])?;
    reaches(sandbox, "other", "local", &["far"])?;
    let mut elsewhere = servers("elsewhere", &json!({}), &policy("Local"));
    elsewhere["spec"]["selector"] = json!({"app": "far"});
    sandbox.apply_object(&elsewhere)?;
    reaches(sandbox, "other", "elsewhere", &["far"])?;
    let none = sandbox.connect("client", &at(sandbox, "elsewhere", ECHO)?, &[])?;
    none.refused().context("there is none on this node")?;
    elsewhere["spec"]["internalTrafficPolicy"] = "Cluster".into();
    sandbox.apply_object(&elsewhere)?;
    reaches(sandbox, "client", "elsewhere", &["far"])
}

fn undeclared(sandbox: &Sandbox) -> anyhow::Result<()> {
    let at = at(sandbox, "plain", 7006)?;
    sandbox.connect("client", &at, &[])?.refused()?;
    let labels = [("pod", "client"), ("error", "unresolved")];
    let counted = "outbound_tcp_errors_total";
    sandbox.metric_reaches(Daemon::Proxy("n1"), counted, &labels, 1.0)?;
    let mut wider = servers("plain", &json!({}), &json!({}));
    let ports = wider["spec"]["ports"].as_array_mut();
    ports
        .context("ports")?
        .push(json!({"name": "late", "port": 7006}));
    sandbox.apply_object(&wider)?;
    sandbox.answers_at("client", &at)
}

/// How many connections of the client were served as this.
fn served_as(sandbox: &Sandbox, protocol: &str) -> anyhow::Result<f64> {
    let labels = [("pod", "client"), ("protocol", protocol)];
    let name = "outbound_tcp_protocol_connections_total";
    sandbox.metric(Daemon::Proxy("n1"), name, &labels)
}

/// Waits until a request of the client to an address is served as this.
fn becomes(sandbox: &Sandbox, at: &str, protocol: &str) -> anyhow::Result<()> {
    wait_for(&format!("{at} to be served as {protocol}"), SOON, || {
        let before = served_as(sandbox, protocol)?;
        let flags = ["--send", REQUEST, "--patience", "5"];
        let report = sandbox.connect("client", at, &flags)?;
        let after = served_as(sandbox, protocol)?;
        ensure!(after > before, "it is not: {report:?}");
        Ok(())
    })
}

/// An echo server sends a request back, unless a proxy on the way reads it.
fn is_echoed(sandbox: &Sandbox, at: &str) -> anyhow::Result<()> {
    let report = sandbox.connect("client", at, &["--send", REQUEST])?;
    report.all().map(drop)
}

fn opaque_service(sandbox: &Sandbox) -> anyhow::Result<()> {
    let with = |list: &str| servers("raw", &json!({OPAQUE: list}), &json!({}));
    sandbox.apply_object(&servers("raw", &json!({}), &json!({})))?;
    let at = at(sandbox, "raw", ECHO)?;
    becomes(sandbox, &at, "http/1")?;
    for (list, protocol) in [
        ("7000", "opaq"),
        ("8000", "http/1"),
        ("6999-7001", "opaq"),
        ("", "http/1"),
        ("p7000", "opaq"),
    ] {
        sandbox.apply_object(&with(list))?;
        becomes(sandbox, &at, protocol).with_context(|| format!("the list {list:?}"))?;
    }
    is_echoed(sandbox, &at)
}

fn opaque_pod(sandbox: &Sandbox) -> anyhow::Result<()> {
    let at = sandbox.at("far", ECHO)?;
    becomes(sandbox, &at, "opaq")?;
    is_echoed(sandbox, &at)?;
    becomes(sandbox, &sandbox.at("far", 7006)?, "http/1")
}

fn app_protocol(sandbox: &Sandbox) -> anyhow::Result<()> {
    let typed = |protocol: &str| {
        let mut object = servers("typed", &json!({OPAQUE: "7080"}), &json!({}));
        object["spec"]["ports"][1]["appProtocol"] = protocol.into();
        object
    };
    sandbox.apply_object(&typed("http"))?;
    let at = at(sandbox, "typed", HTTP)?;
    for (protocol, served) in [
        ("http", "http/1"),
        ("kubernetes.io/h2c", "http/2"),
        ("linkerd.io/opaque", "opaq"),
        ("kubernetes.io/ws", "http/1"),
        ("mysql", "opaq"),
    ] {
        sandbox.apply_object(&typed(protocol))?;
        becomes(sandbox, &at, served).with_context(|| format!("appProtocol {protocol}"))?;
    }
    is_said(sandbox, "says appProtocol \\\"mysql\\\" of port 7080")
}

fn mistakes(sandbox: &Sandbox) -> anyhow::Result<()> {
    sandbox.apply_object(&servers("raw", &json!({OPAQUE: "7000,"}), &json!({})))?;
    is_said(
        sandbox,
        "Service default/raw has a list of opaque ports that can't be read",
    )?;
    let fields = json!({"sessionAffinity": "ClientIP", "trafficDistribution": "PreferSameNode"});
    sandbox.apply_object(&servers("sticky", &json!({}), &fields))?;
    sandbox.apply_object(&node("n7", "east"))?;
    for (place, reason) in [
        (
            "service default/sticky",
            "got spec.sessionAffinity \"ClientIP\"",
        ),
        (
            "service default/sticky",
            "got spec.trafficDistribution \"PreferSameNode\"",
        ),
        ("node n7", "there is no such node"),
    ] {
        wait_for(&format!("{place} to be refused"), SOON, || {
            let status = sandbox.status()?;
            let mut problems = status["problems"].as_array().into_iter().flatten();
            let named = problems.any(|problem| {
                let text = problem["reason"].as_str().unwrap_or_default();
                problem["place"] == place && text.starts_with(reason)
            });
            ensure!(named, "{}", status["problems"]);
            Ok::<_, anyhow::Error>(())
        })?;
    }
    Ok(())
}

fn is_said(sandbox: &Sandbox, text: &str) -> anyhow::Result<()> {
    wait_for(&format!("control to say {text}"), SOON, || {
        let logs = sandbox.logs("control")?;
        let plain = text.replace("\\\"", "\"");
        ensure!(logs.contains(text) || logs.contains(&plain), "it does not");
        Ok::<_, anyhow::Error>(())
    })
}
