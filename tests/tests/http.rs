// SPDX-License-Identifier: Apache-2.0
//! HTTP through the mesh, request by request: servers and clients of which every byte is ours,
//! curl, nginx, h2load, Node's http and http2, and PyPI's websockets.

#[path = "http/cost.rs"]
mod cost;
#[path = "http/identity.rs"]
mod identity;
#[path = "http/tools.rs"]
mod tools;

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use culvert_tests::{
    manifests::Pod,
    programs::{CLIENT, PLAIN, Server, plan, python, requests::counted, source},
    require,
    sandbox::Sandbox,
    suite::Suite,
};
use tempfile::TempDir;

const PROGRAMS: [&str; 9] = [
    "bash", "curl", "h2load", "mariadb", "mariadbd", "nginx", "node", "openssl", "python3",
];
/// What one program may take.
const PATIENCE: Duration = Duration::from_secs(25);
const NGINX: Server = Server::new("nginx", 8080);

/// What a client of `http1_server.py` does.
const HTTP1: [(&str, &str); 17] = [
    ("HTTP/1.0 and 1.1, kept and closed", "versions"),
    ("100 requests on one kept connection", "keep_alive"),
    ("50 requests in a pipeline", "pipeline"),
    ("chunks and trailers, both ways", "chunked"),
    ("Expect: 100-continue, taken and refused", "expectation"),
    ("103 before the answer", "early_hints"),
    ("HEAD, 204, 304, and any status", "without_body"),
    (
        "OPTIONS *, absolute targets, odd paths and methods",
        "targets",
    ),
    ("large headers and many", "headers"),
    ("a tunnel by CONNECT, and one refused", "tunnel"),
    ("an upgrade, and one refused", "upgrade"),
    ("100 MiB each way", "large"),
    ("server-sent events, one by one", "server_events"),
    ("a request byte by byte", "slow_writer"),
    (
        "a client that goes away is gone for the server",
        "client_aborts",
    ),
    ("half an answer never looks whole", "server_aborts"),
    ("a request that comes late", "late"),
];
/// What a client of `http2.js` does.
const HTTP2: [(&str, &str); 8] = [
    ("1,000 streams", "many"),
    ("trailers, both ways", "trailers"),
    ("a stream both ways, part by part", "bothDirections"),
    ("resets from either side", "resets"),
    ("100 MiB each way", "large"),
    ("streams that nobody reads, and others", "slowStream"),
    ("103 before the answer", "early"),
    ("a client that is slow to begin", "late"),
];

#[test]
fn http() -> anyhow::Result<()> {
    if !require::programs(&PROGRAMS)? || !require::python()? {
        return Ok(());
    }
    let files = TempDir::with_prefix("culvert-http-")?;
    let mut suite = Suite::new(sandbox(files.path())?);
    for (name, check) in HTTP1 {
        suite.step(&format!("HTTP/1: {name}"), |sandbox| {
            requests(sandbox, "web", |host| http1(host, check))
        });
    }
    for (name, check) in [("keep-alive and trailers", "http1"), ("CONNECT", "tunnel")] {
        suite.step(&format!("Node's http: {name}"), |sandbox| {
            requests(sandbox, "node", |host| node(host, check))
        });
    }
    for (name, check) in HTTP2 {
        suite.step(&format!("Node's http2: {name}"), |sandbox| {
            requests(sandbox, "node", |host| node(host, check))
        });
    }
    suite.step("WebSockets", |sandbox| {
        requests(sandbox, "websocket", |host| {
            vec![python(), source("websocket.py"), host.to_owned()]
        })
    });
    for (name, step) in tools::STEPS
        .iter()
        .chain(&identity::STEPS)
        .chain(&cost::STEPS)
    {
        suite.step(name, |sandbox| step(sandbox, files.path()));
    }
    suite.finish()
}

type Step = (&'static str, fn(&Sandbox, &Path) -> anyhow::Result<()>);

/// Servers on the second node, strict, and one that lets in anybody; clients on the first.
fn sandbox(files: &Path) -> anyhow::Result<Sandbox> {
    let web = ["python3", &source("http1_server.py")].map(str::to_owned);
    let node = ["node", &source("http2.js"), "serve"].map(str::to_owned);
    let websocket = [&python(), &source("websocket.py"), "serve"].map(str::to_owned);
    let servers = [
        server("web", &web, 9400).strict(),
        server("node", &node, 9501).strict(),
        server("websocket", &websocket, 9600).strict(),
        server("open", &web, 9400).meshed(),
        server("web-plain", &web, 9400),
    ];
    let mut plan = plan("http", files, &[NGINX])?;
    for pod in &servers {
        plan = plan.pod(pod)?;
    }
    plan.pod(&cost::unusual(files, cost::DATABASE)?.strict())?
        .pod(&cost::unusual(
            files,
            &format!("{}{PLAIN}", cost::DATABASE),
        )?)?
        .up()
}

fn server(name: &str, command: &[String], port: u16) -> Pod {
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    Pod::new(name, "n2", &command).tcp_probe(port)
}

fn http1(host: &str, check: &str) -> Vec<String> {
    ["python3", &source("http1_client.py"), host, check]
        .map(str::to_owned)
        .to_vec()
}

fn node(host: &str, check: &str) -> Vec<String> {
    ["node", &source("http2.js"), host, check]
        .map(str::to_owned)
        .to_vec()
}

/// Runs a program in a pod; what it says behind `ok`.
fn said(sandbox: &Sandbox, pod: &str, command: &[String]) -> anyhow::Result<String> {
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    let said = sandbox.exec_for(PATIENCE, pod, &command)?.ok()?.stdout;
    let said = said.strip_prefix("ok ");
    Ok(said.context("it did not say ok")?.trim().to_owned())
}

/// Runs a program of the client, which says how many requests it sent. Both proxies must have
/// counted just these.
fn requests(
    sandbox: &Sandbox,
    server: &str,
    command: impl FnOnce(&str) -> Vec<String>,
) -> anyhow::Result<()> {
    let host = sandbox.ip(server)?.to_string();
    counted(sandbox, server, || {
        let sent = said(sandbox, CLIENT, &command(&host))?;
        Ok((sent.parse()?, ()))
    })
}
