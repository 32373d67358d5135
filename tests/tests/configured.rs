// SPDX-License-Identifier: Apache-2.0
//! What flags of the processes change: the life of certificates, time-outs, the access log.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::{hold::Held, requests::Requested},
    manifests::Pod,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const RENEWALS: Duration = Duration::from_secs(40);

/// Certificates are renewed at 70 % of their life.
const FLAGS: [&str; 6] = [
    "--control-arg=--issuance-lifetime",
    "--control-arg=8s",
    "--proxy-arg=--half-open-timeout",
    "--proxy-arg=2s",
    "--proxy-arg=--access-log",
    "--proxy-arg=json",
];

#[test]
fn configured() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let plan = FLAGS
        .iter()
        .fold(Plan::new("configured")?, |plan, flag| plan.flag(flag));
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &["7000=echo", "7007=keep"]).strict();
    let sandbox = plan
        .pod(&pod("client", "n1"))?
        .pod(&pod("server", "n2"))?
        .pod(&logged("logged", &app, "json"))?
        .pod(&logged("apache", &app, "apache"))?
        .up()?;
    sandbox.answers("client", "server", 7000)?;
    let mut suite = Suite::new(sandbox);
    suite.step(
        "half of a connection is closed when the other half is over for long",
        half_open,
    );
    suite.step("each connection is a line of the access log", access_log);
    suite.step("each request is a line, for pods that ask for it", requests);
    suite.step("certificates are renewed under open connections", renewed);
    suite.finish()
}

fn half_open(sandbox: &Sandbox) -> anyhow::Result<()> {
    let at = sandbox.at("server", 7007)?;
    let begin = Instant::now();
    let flags = ["--exchange", "half-close", "--patience", "15"];
    let report = sandbox.connect("client", &at, &flags)?;
    let took = begin.elapsed();
    let ended = report.all().or_else(|_| report.none("read: ECONNRESET"));
    ended.context("the server never ends its half, so the proxy must")?;
    ensure!(
        took >= Duration::from_secs(2),
        "it was ended after {took:?}: {report:?}"
    );
    Ok(())
}

fn access_log(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (at, client) = (
        sandbox.at("server", 7000)?,
        sandbox.ip("client")?.to_string(),
    );
    sandbox
        .connect("client", &at, &["--send", "twelve bytes"])?
        .all()?;
    for (direction, pod, id_of, peer) in [
        ("outbound", "client", "server_id", "server"),
        ("inbound", "server", "client_id", "client"),
    ] {
        let line = wait_for(&format!("the {direction} line"), SOON, || {
            line(&sandbox.logs("proxy")?, direction, pod)
        })?;
        let id = format!("spiffe://cluster.local/ns/default/sa/{peer}");
        for (field, value) in [("tls", "true"), ("original_dst", &at), (id_of, &id)] {
            ensure!(line[field] == value, "{field} is not {value}: {line}");
        }
        let src = line["src"].as_str().unwrap_or_default();
        ensure!(src.starts_with(&client), "{line}");
    }
    Ok(())
}

/// The line of a connection that carried twelve bytes each way.
fn line(logs: &str, direction: &str, pod: &str) -> anyhow::Result<Value> {
    let lines = logs
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut of_pod = lines.filter(|line| line["direction"] == direction && line["pod"] == pod);
    let found = of_pod.find(|line| line["rx_bytes"] == 12 && line["tx_bytes"] == 12);
    found.with_context(|| format!("no such line among\n{logs}"))
}

/// A pod whose requests are logged.
fn logged(name: &str, app: &Path, format: &str) -> Pod {
    let pod = Pod::serving(name, "n2", app, &["7800=http"]).strict();
    pod.annotation("culvert.io/access-log", format)
}

fn requests(sandbox: &Sandbox) -> anyhow::Result<()> {
    for pod in ["logged", "apache"] {
        let at = sandbox.at(pod, 7800)?;
        let app = sandbox.testapp().to_str().context("the path is no UTF-8")?;
        let command = [app, "requests", &at, "--count", "3"];
        let requested: Requested = sandbox.exec("client", &command)?.json()?;
        requested.all()?;
    }
    let client = sandbox.ip("client")?.to_string();
    let logs = wait_for("three lines of each format", SOON, || {
        let logs = sandbox.logs("proxy")?;
        let found = [json_requests(&logs).len(), apache_requests(&logs).len()];
        ensure!(found == [3, 3], "{found:?} among\n{logs}");
        Ok(logs)
    })?;
    for line in json_requests(&logs) {
        let address = line["client.addr"].as_str().unwrap_or_default();
        ensure!(address.starts_with(&client), "{line}");
        let id = "spiffe://cluster.local/ns/default/sa/client";
        ensure!(line["client.id"] == id && line["status"] == 200, "{line}");
        ensure!(
            line["method"] == "GET" && line["version"] == "HTTP/1.1",
            "{line}"
        );
    }
    for line in apache_requests(&logs) {
        ensure!(
            line.starts_with(&client) && line.ends_with("HTTP/1.1\" 200"),
            "{line}"
        );
    }
    Ok(())
}

fn json_requests(logs: &str) -> Vec<Value> {
    let lines = logs
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["method"].is_string() && line["pod"] == "logged")
        .collect()
}

fn apache_requests(logs: &str) -> Vec<&str> {
    let of = |line: &&str| line.contains("] \"GET ") && !line.starts_with('{');
    logs.lines().filter(of).collect()
}

fn renewed(sandbox: &Sandbox) -> anyhow::Result<()> {
    let at = sandbox.at("server", 7000)?;
    let mut hold = sandbox.spawn_app("client", &["hold", &at, "--connections", "3"])?;
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 3, "{held:?}");
    let both = [("n1", "client"), ("n2", "server")];
    let first = both.map(|(node, pod)| certificates(sandbox, node, pod));
    let begin = Instant::now();
    for ((node, pod), first) in both.into_iter().zip(first) {
        let first = first?;
        wait_for(&format!("two renewals of {pod}"), RENEWALS, || {
            sandbox.connect("client", &at, &["--count", "5"])?.all()?;
            let now = certificates(sandbox, node, pod)?;
            ensure!(now >= first + 2.0, "{now} certificates, {first} at first");
            Ok::<_, anyhow::Error>(())
        })?;
    }
    eprintln!("    two renewals took {} s", begin.elapsed().as_secs());
    hold.say("still the same connections")?;
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 3, "{held:?}");
    hold.finish(SOON)?.ok()?;
    Ok(())
}

/// How many certificates a workload has got so far.
fn certificates(sandbox: &Sandbox, node: &str, pod: &str) -> anyhow::Result<f64> {
    let id = format!("spiffe://cluster.local/ns/default/sa/{pod}");
    let labels = [("identity", id.as_str()), ("result", "success")];
    sandbox.metric(
        Daemon::Proxy(node),
        "control_identity_cert_refreshes_total",
        &labels,
    )
}
