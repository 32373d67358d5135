// SPDX-License-Identifier: Apache-2.0
//! Meshed pods on two nodes talk as if nothing was there.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::ensure;
use culvert_tests::{
    app::{
        hold::Held,
        report::{Closed, Report},
    },
    manifests::{Pod, service},
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(10);
const LISTEN: [&str; 7] = [
    "7000=echo",
    "7001=whoami",
    "7002=greet",
    "7003=count",
    "7004=reset",
    "7005=close",
    "7006=late",
];

#[test]
fn traffic() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step("two nodes, both directions, and same node", everywhere);
    suite.step(
        "each connection is mutual TLS under both identities",
        identities,
    );
    suite.step("a service address reaches all of its pods", service_address);
    suite.step(
        "another endpoint is tried when one refuses",
        another_endpoint,
    );
    suite.step("a pod dials itself", itself);
    suite.step("the application sees the real addresses", real_addresses);
    suite.step("ss shows the real addresses", addresses_of_ss);
    suite.step("loopback is left alone", loopback);
    suite.step("UDP is left alone", udp);
    suite.step("FIN is passed on each way alone", half_close);
    suite.step("bytes with FIN at once arrive whole", bytes_and_fin);
    suite.step("RST is passed on both ways", resets);
    suite.step("a closed port is refused at once", closed_port);
    suite.step("a server that speaks first is not delayed", speaks_first);
    suite.step(
        "a server that restarts gets its port again",
        restarted_server,
    );
    suite.step("many bytes come back as they were sent", many_bytes);
    suite.step("1,000 concurrent connections", concurrent);
    suite.step("10,000 sequential connections", sequential);
    suite.step("nothing is left open", nothing_open);
    suite.finish()
}

/// `a` and `c` on the first node, `b` on the second; the services `bc` and `only-a`. Unmeshed `d` and
/// `e` are the service `de`, on a port on which only `d` listens.
fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("traffic")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &LISTEN).meshed();
    plan.pod(&pod("a", "n1"))?
        .pod(&pod("b", "n2").label("service", "bc"))?
        .pod(&pod("c", "n1").label("service", "bc"))?
        .object(&service("bc", ("service", "bc"), &[7000, 7001]))?
        .pod(&Pod::serving("d", "n2", &app, &["7000=echo", "7200=echo"]).label("service", "de"))?
        .pod(&Pod::serving("e", "n2", &app, &["7000=echo"]).label("service", "de"))?
        .object(&service("de", ("service", "de"), &[7200]))?
        .object(&service("only-a", ("app", "a"), &[7000, 7001]))?
        .up()
}

fn everywhere(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("b", "c")] {
        sandbox
            .connect(from, &sandbox.at(to, 7000)?, &["--count", "10"])?
            .all()?;
    }
    Ok(())
}

fn identities(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (from, from_node, to, to_node) in [("a", "n1", "b", "n2"), ("a", "n1", "c", "n1")] {
        sandbox.connect(from, &sandbox.at(to, 7000)?, &[])?.all()?;
        let (client, server) = (spiffe(from), spiffe(to));
        let out = [
            ("direction", "outbound"),
            ("tls", "true"),
            ("pod", from),
            ("server_id", &server),
        ];
        sandbox.metric_reaches(Daemon::Proxy(from_node), "tcp_open_total", &out, 1.0)?;
        let inside = [
            ("direction", "inbound"),
            ("tls", "true"),
            ("pod", to),
            ("client_id", &client),
        ];
        sandbox.metric_reaches(Daemon::Proxy(to_node), "tcp_open_total", &inside, 1.0)?;
    }
    Ok(())
}

fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

fn service_address(sandbox: &Sandbox) -> anyhow::Result<()> {
    let ip = sandbox.service_ip("a", "bc")?;
    let mut wanted: Vec<IpAddr> = vec![sandbox.ip("b")?, sandbox.ip("c")?];
    wait_for("both pods to be reached", SOON, || {
        let report = sandbox.connect("a", &format!("{ip}:7001"), &["--exchange", "line"])?;
        ensure!(
            report.seen()?.peer.ip() == ip,
            "getpeername() is {}",
            report.seen()?.peer
        );
        let reached = report.whoami()?.local.ip();
        wanted.retain(|ip| *ip != reached);
        ensure!(wanted.is_empty(), "{wanted:?} was never reached");
        Ok(())
    })?;
    sandbox
        .connect("b", &format!("{ip}:7000"), &["--count", "50"])?
        .all()?;
    Ok(())
}

fn another_endpoint(sandbox: &Sandbox) -> anyhow::Result<()> {
    let ip = sandbox.service_ip("a", "de")?;
    sandbox
        .connect("a", &format!("{ip}:7200"), &["--count", "100"])?
        .all()?;
    Ok(())
}

fn itself(sandbox: &Sandbox) -> anyhow::Result<()> {
    let ip = sandbox.ip("a")?;
    let own = sandbox.connect("a", &format!("{ip}:7001"), &["--exchange", "line"])?;
    ensure!(own.whoami()?.peer.ip() == ip, "{own:?}");
    let service = sandbox.service_ip("a", "only-a")?;
    let through = sandbox.connect("a", &format!("{service}:7001"), &["--exchange", "line"])?;
    ensure!(through.whoami()?.local.ip() == ip, "{through:?}");
    sandbox
        .connect("a", &format!("{service}:7000"), &["--count", "100"])?
        .all()?;
    Ok(())
}

fn real_addresses(sandbox: &Sandbox) -> anyhow::Result<()> {
    let client = sandbox.ip("a")?;
    for server in ["b", "c"] {
        let at = sandbox.at(server, 7001)?;
        let report = sandbox.connect("a", &at, &["--exchange", "line"])?;
        let (seen, said) = (report.seen()?.clone(), report.whoami()?);
        ensure!(
            seen.peer.to_string() == at && seen.local.ip() == client,
            "client: {seen:?}"
        );
        ensure!(
            said.local.to_string() == at && said.peer.ip() == client,
            "server: {said:?}"
        );
    }
    Ok(())
}

fn addresses_of_ss(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (client, at) = (sandbox.ip("a")?, sandbox.at("b", 7000)?);
    let mut hold = sandbox.spawn_app("a", &["hold", &at])?;
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 1, "{held:?}");
    let server = sandbox
        .exec("b", &["ss", "-Htn", "state", "established"])?
        .ok()?
        .stdout;
    let shown = server
        .lines()
        .any(|l| l.contains(&format!("{at} ")) && l.contains(&format!("{client}:")));
    ensure!(shown, "no {client} → {at} in\n{server}");
    let own = sandbox
        .exec("a", &["ss", "-Htn", "state", "established"])?
        .ok()?
        .stdout;
    let shown = own.lines().any(|line| line.trim_end().ends_with(&at));
    ensure!(shown, "no {at} in\n{own}");
    hold.finish(SOON)?.ok()?;
    Ok(())
}

fn loopback(sandbox: &Sandbox) -> anyhow::Result<()> {
    let report = sandbox.connect("a", "127.0.0.1:7001", &["--exchange", "line"])?;
    ensure!(report.whoami()?.peer.ip().is_loopback(), "{report:?}");
    sandbox
        .connect("a", "127.0.0.1:7999", &[])?
        .none("connect: ECONNREFUSED")?;
    Ok(())
}

/// The connect hook is called for UDP too.
fn udp(sandbox: &Sandbox) -> anyhow::Result<()> {
    let port = 5353;
    let receiver = sandbox.pod("b").run(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(socket)
    })?;
    let say = format!("echo below > /dev/udp/{}/{port}", sandbox.ip("b")?);
    sandbox.exec("a", &["bash", "-c", &say])?.ok()?;
    let mut datagram = [0; 16];
    let (length, from) = receiver.recv_from(&mut datagram)?;
    ensure!(
        &datagram[..length] == b"below\n" && from.ip() == sandbox.ip("a")?,
        "from {from}"
    );
    Ok(())
}

fn half_close(sandbox: &Sandbox) -> anyhow::Result<()> {
    let flags = ["--exchange", "half-close", "--bytes", "1000000"];
    let report = sandbox.connect("a", &sandbox.at("b", 7003)?, &flags)?;
    ensure!(report.seen()?.reply == "1000000\n", "{report:?}");
    let report = sandbox.connect("a", &sandbox.at("b", 7005)?, &["--exchange", "to-end"])?;
    ensure!(report.seen()?.reply.is_empty(), "{report:?}");
    closed(sandbox, 7005, "fin")
}

/// Data and the end of it are with the proxy before it has dialled.
fn bytes_and_fin(sandbox: &Sandbox) -> anyhow::Result<()> {
    let flags = ["--exchange", "half-close", "--count", "100"];
    for server in ["b", "c"] {
        let report = sandbox.connect("a", &sandbox.at(server, 7003)?, &flags)?;
        ensure!(report.seen()?.reply == "4\n", "{report:?}");
    }
    Ok(())
}

fn resets(sandbox: &Sandbox) -> anyhow::Result<()> {
    let report = sandbox.connect("a", &sandbox.at("b", 7004)?, &["--exchange", "to-end"])?;
    report.none("read: ECONNRESET")?;
    sandbox
        .connect("a", &sandbox.at("b", 7000)?, &["--reset"])?
        .all()?;
    closed(sandbox, 7000, "ECONNRESET")
}

/// Waits until `b` has logged a connection that ended so.
fn closed(sandbox: &Sandbox, port: u16, end: &str) -> anyhow::Result<()> {
    wait_for(&format!("a {end} on port {port}"), SOON, || {
        let logs = sandbox.logs("b")?;
        let all = logs
            .lines()
            .filter_map(|line| serde_json::from_str::<Closed>(line).ok());
        let of_port: Vec<_> = all.filter(|closed| closed.port == port).collect();
        ensure!(
            of_port.iter().any(|closed| closed.end == end),
            "{:?}",
            of_port.last()
        );
        Ok(())
    })
}

fn closed_port(sandbox: &Sandbox) -> anyhow::Result<()> {
    let report = sandbox.connect("a", &sandbox.at("b", 7999)?, &["--patience", "3"])?;
    report.refused()?;
    no_timeout(&report)
}

fn no_timeout(report: &Report) -> anyhow::Result<()> {
    let slow = report.failures.keys().any(|name| name.ends_with("timeout"));
    ensure!(!slow, "{:?}", report.failures);
    Ok(())
}

fn speaks_first(sandbox: &Sandbox) -> anyhow::Result<()> {
    let flags = ["--exchange", "line", "--count", "50"];
    let report = sandbox.connect("a", &sandbox.at("b", 7002)?, &flags)?;
    report.all()?;
    ensure!(
        report.exchange.p50_us < 50_000,
        "the greeting took {:?}",
        report.exchange
    );
    let late = sandbox.connect("a", &sandbox.at("b", 7006)?, &["--exchange", "line"])?;
    ensure!(late.seen()?.reply == "220 ready\n", "{late:?}");
    Ok(())
}

/// The server ends its connections first, so that TIME_WAITs of its port are left in its namespace.
fn restarted_server(sandbox: &Sandbox) -> anyhow::Result<()> {
    let at = sandbox.at("b", 7100)?;
    for _ in 0..3 {
        let server = sandbox.spawn_app("b", &["serve", "--listen", "7100=close"])?;
        wait_for("the server to have its port", SOON, || {
            let shown = sandbox
                .exec("b", &["ss", "-Htln", "sport", "=", ":7100"])?
                .ok()?;
            ensure!(!shown.stdout.is_empty(), "it does not listen");
            Ok(())
        })?;
        sandbox
            .connect("a", &at, &["--exchange", "to-end", "--count", "20"])?
            .all()?;
        drop(server);
    }
    Ok(())
}

fn many_bytes(sandbox: &Sandbox) -> anyhow::Result<()> {
    let flags = ["--bytes", "67108864", "--send", "0123456789abcde"];
    sandbox
        .connect("a", &sandbox.at("b", 7000)?, &flags)?
        .all()?;
    let flags = ["--bytes", "1048576", "--count", "32", "--concurrent", "8"];
    sandbox
        .connect("b", &sandbox.at("a", 7000)?, &flags)?
        .all()?;
    Ok(())
}

fn concurrent(sandbox: &Sandbox) -> anyhow::Result<()> {
    let flags = [
        "--count",
        "1000",
        "--concurrent",
        "1000",
        "--patience",
        "30",
    ];
    sandbox
        .connect("a", &sandbox.at("b", 7000)?, &flags)?
        .all()?;
    Ok(())
}

fn sequential(sandbox: &Sandbox) -> anyhow::Result<()> {
    let patience = Duration::from_secs(120);
    let report = sandbox.connect_for(
        patience,
        "a",
        &sandbox.at("b", 7000)?,
        &["--count", "10000"],
    )?;
    report.all()?;
    eprintln!(
        "    connect {:?}, request {:?}",
        report.connect, report.exchange
    );
    Ok(())
}

fn nothing_open(sandbox: &Sandbox) -> anyhow::Result<()> {
    // Connections on which nothing is said, and some that are given up at once.
    let at = sandbox.at("b", 7000)?;
    let flags = ["--exchange", "open", "--count", "500", "--concurrent", "20"];
    sandbox.connect("a", &at, &flags)?.all()?;
    sandbox
        .connect("a", &at, &[&flags[..], &["--reset"]].concat())?
        .all()?;
    for node in ["n1", "n2"] {
        wait_for(
            &format!("all connections of {node} to be closed"),
            SOON,
            || {
                let scrape = sandbox.scrape(Daemon::Proxy(node))?;
                let live = scrape.sum("culvert_proxy_sockets", &[("state", "live")]);
                let open = scrape.sum("tcp_open_connections", &[]);
                ensure!(
                    live == 0.0 && open == 0.0,
                    "{live} sockets and {open} connections are open"
                );
                Ok(())
            },
        )?;
    }
    Ok(())
}
