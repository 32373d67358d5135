// SPDX-License-Identifier: Apache-2.0
//! gRPC by grpcio through the mesh: every kind of call, and one channel's calls on all replicas.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use culvert_tests::{
    programs::{
        CLIENT, python,
        replicas::{CALLS, REPLICAS, Shares, plan},
        requests::{Requests, counted},
        source, spiffe,
    },
    require,
    sandbox::{Daemon, Sandbox},
    suite::Suite,
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(10);
/// What a client of `calls_server.py` does.
const CHECKS: [(&str, &str); 8] = [
    ("200 unary calls with metadata", "unary"),
    (
        "streams from the client, from the server, both ways",
        "streams",
    ),
    ("a deadline, which the server learns of", "deadline"),
    ("a client that cancels", "cancel"),
    (
        "every status, in trailers and without anything else",
        "errors",
    ),
    ("messages of 10 MiB", "large"),
    ("1,000 calls at once", "concurrent"),
    (
        "streams that nobody reads, and calls beside them",
        "slow_stream",
    ),
];
/// Those that are the server's fault, as Linkerd sees it.
const FAILURES: [u16; 6] = [2, 4, 7, 13, 14, 15];

#[test]
fn grpc() -> anyhow::Result<()> {
    if !require::root()? || !require::python()? {
        return Ok(());
    }
    let mut suite = Suite::new(plan("grpc")?.up()?);
    for (name, check) in CHECKS {
        suite.step(name, |sandbox| {
            counted(sandbox, CALLS, || {
                Ok((client(sandbox, check)?.parse()?, ()))
            })
        });
    }
    suite.step("one channel's calls are spread over the replicas", spread);
    suite.step("each status is counted and judged", statuses);
    suite.step("the server is told who calls", client_id);
    suite.step("a server that is killed amidst an answer", |sandbox| {
        client(sandbox, "die")?;
        counted_as(sandbox, "14", "failure")
    });
    suite.finish()
}

/// What the client says behind `ok`.
fn client(sandbox: &Sandbox, check: &str) -> anyhow::Result<String> {
    let host = sandbox.service_ip(CLIENT, CALLS)?.to_string();
    let command = [&*python(), &*source("calls_client.py"), &*host, check];
    let said = sandbox.exec(CLIENT, &command)?.ok()?.stdout;
    let said = said.strip_prefix("ok ").context("it did not say ok")?;
    Ok(said.trim().to_owned())
}

fn spread(sandbox: &Sandbox) -> anyhow::Result<()> {
    let shares: Shares = counted(sandbox, CALLS, || {
        Ok((900, serde_json::from_str(&client(sandbox, "spread")?)?))
    })?;
    eprintln!("    {shares:?}");
    let least = shares.values().min().copied().unwrap_or_default();
    ensure!(
        shares.len() == REPLICAS && least > 900 * 15 / 100,
        "of 900 calls, {shares:?}"
    );
    Ok(())
}

/// By both proxies.
fn statuses(sandbox: &Sandbox) -> anyhow::Result<()> {
    let before = Requests::to(sandbox, CALLS)?;
    client(sandbox, "errors")?;
    wait_for("the answers", SOON, || {
        let now = Requests::to(sandbox, CALLS)?;
        ensure!(now.answered >= before.answered + 18.0, "{now:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    for code in 1..=16_u16 {
        let status = code.to_string();
        let class = match FAILURES.contains(&code) {
            true => "failure",
            false => "success",
        };
        counted_as(sandbox, &status, class)?;
    }
    counted_as(sandbox, "0", "success")
}

fn counted_as(sandbox: &Sandbox, status: &str, class: &str) -> anyhow::Result<()> {
    let (client_id, server_id) = (spiffe(CLIENT), spiffe(CALLS));
    let sides = [
        ("n1", ("direction", "outbound"), ("server_id", &*server_id)),
        ("n2", ("direction", "inbound"), ("client_id", &*client_id)),
    ];
    for (node, direction, id) in sides {
        let scrape = sandbox.scrape(Daemon::Proxy(node))?;
        let labels = [direction, id, ("tls", "true"), ("grpc_status", status)];
        let all = scrape.sum("response_total", &labels);
        let judged = [
            &labels[..],
            &[("classification", class), ("status_code", "200")],
        ]
        .concat();
        let so = scrape.sum("response_total", &judged);
        let nearest = scrape.nearest("response_total", &judged);
        ensure!(
            so > 0.0 && so == all,
            "{so} of {all} with status {status} are a {class}; {nearest}"
        );
    }
    Ok(())
}

fn client_id(sandbox: &Sandbox) -> anyhow::Result<()> {
    let said: Vec<String> = serde_json::from_str(&client(sandbox, "client_id")?)?;
    let id = "client.default.serviceaccount.identity.culvert.cluster.local";
    ensure!(said == [id], "the server was told {said:?}");
    Ok(())
}
