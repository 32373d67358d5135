// SPDX-License-Identifier: Apache-2.0
//! What programs do to their sockets, in a meshed pod against strict servers and in an unmeshed pod
//! against unmeshed ones: the mesh must not be noticed, and every connection goes through it.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    calls::{call, nothing_more, same},
    manifests::Pod,
    require,
    sandbox::{Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(15);
const LISTEN: [&str; 5] = [
    "7000=echo",
    "7010=echo+fast-open",
    "7011=echo+mptcp",
    "7016=ring",
    "7018=echo+fast-open+mptcp",
];
const ECHO: [&str; 3] = ["send: ok", "receive: ok", "received: ping"];

#[test]
fn sockets() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step("connect() without blocking", nonblocking);
    suite.step("connect() without blocking, refused", nonblocking_refused);
    suite.step("bind() before connect()", bound);
    suite.step("one port to two destinations", two_destinations);
    suite.step("TCP Fast Open of a client", fast_open_client);
    suite.step("TCP Fast Open of a server", fast_open_server);
    suite.step("MPTCP of a client", mptcp_client);
    suite.step("MPTCP of a server", mptcp_server);
    suite.step("two servers share a port", shared_port);
    suite.step("an address of somebody else as source", foreign_source);
    suite.step("one socket connects again and again", again);
    suite.step("UDP is left alone", udp);
    suite.step("io_uring of a client and a server", ring);
    suite.finish()
}

/// `client` on the first node, `server` and `second` on the second; the same unmeshed with `-plain`.
fn sandbox() -> anyhow::Result<Sandbox> {
    let mut plan = Plan::new("sockets")?;
    let app = plan.testapp().to_owned();
    for (name, node) in [("client", "n1"), ("server", "n2"), ("second", "n2")] {
        let pod = |name: &str| Pod::serving(name, node, &app, &LISTEN);
        plan = plan.pod(&pod(name).strict())?;
        plan = plan.pod(&pod(&format!("{name}-plain")))?;
    }
    let sandbox = plan.up()?;
    sandbox.answers("client", "server", 7000)?;
    Ok(sandbox)
}

fn nonblocking(sandbox: &Sandbox) -> anyhow::Result<()> {
    let begin = [
        "connect: EINPROGRESS",
        "poll: ok",
        "writable: true",
        "SO_ERROR: ok",
    ];
    same(
        sandbox,
        "nonblocking",
        7000,
        nothing_more,
        &[&begin[..], &ECHO].concat(),
    )
}

/// As with every proxy that ends TCP, connect() succeeds first; then it is over at once.
fn nonblocking_refused(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (suffix, error) in [("", "ECONNRESET"), ("-plain", "ECONNREFUSED")] {
        let to = sandbox.at(&format!("server{suffix}"), 7999)?;
        let called = call(sandbox, &format!("client{suffix}"), "nonblocking", &to, &[])?;
        let begin = called.did.first().map(String::as_str);
        ensure!(begin == Some("connect: EINPROGRESS"), "{called:?}");
        let end = called.did.last().is_some_and(|last| last.ends_with(error));
        ensure!(
            end,
            "client{suffix}: {called:?}, expected {error} in the end"
        );
    }
    Ok(())
}

fn bound(sandbox: &Sandbox) -> anyhow::Result<()> {
    let begin = ["bind: ok", "connect: ok", "the port is kept: true"];
    let expected = [&begin[..], &ECHO].concat();
    for port in [0, 33444] {
        let own = |suffix: &str| local(sandbox, suffix, port);
        same(sandbox, "bound", 7000, own, &expected).context("to the pod's address")?;
        let any = |_: &str| Ok(vec!["--local".to_owned(), format!("0.0.0.0:{}", port + 1)]);
        same(sandbox, "bound", 7000, any, &expected).context("to any address")?;
    }
    Ok(())
}

fn local(sandbox: &Sandbox, suffix: &str, port: u16) -> anyhow::Result<Vec<String>> {
    let local = sandbox.at(&format!("client{suffix}"), port)?;
    Ok(vec!["--local".to_owned(), local])
}

fn other(sandbox: &Sandbox, suffix: &str) -> anyhow::Result<Vec<String>> {
    let other = sandbox.at(&format!("second{suffix}"), 7000)?;
    Ok(vec!["--other".to_owned(), other])
}

fn two_destinations(sandbox: &Sandbox) -> anyhow::Result<()> {
    let more =
        |suffix: &str| Ok([other(sandbox, suffix)?, local(sandbox, suffix, 33555)?].concat());
    let begin = ["bind: ok", "connect: ok", "bind: ok", "connect: ok"];
    let expected = [&begin[..], &ECHO, &ECHO].concat();
    same(sandbox, "two-destinations", 7000, more, &expected)
}

const FAST_CONNECT: [&str; 5] = [
    "TCP_FASTOPEN_CONNECT: ok",
    "connect: ok",
    ECHO[0],
    ECHO[1],
    ECHO[2],
];
const FAST_SEND: [&str; 3] = ["MSG_FASTOPEN: ok", ECHO[1], ECHO[2]];

fn fast_open_client(sandbox: &Sandbox) -> anyhow::Result<()> {
    fast_open(sandbox, "fast-open-connect", 7000, &FAST_CONNECT)?;
    fast_open(sandbox, "fast-open-send", 7000, &FAST_SEND)
}

/// Twice each: the second has a cookie of the server's, where it gives one.
fn fast_open(sandbox: &Sandbox, way: &str, port: u16, did: &[&str]) -> anyhow::Result<()> {
    same(sandbox, way, port, nothing_more, &[did, did].concat())
}

/// Unmeshed there is a cookie and data in the SYN; meshed there is neither, and nothing is lost.
fn fast_open_server(sandbox: &Sandbox) -> anyhow::Result<()> {
    for pod in ["server", "server-plain"] {
        sandbox
            .pod(pod)
            .run(|| Ok(fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3")?))?;
    }
    fast_open(sandbox, "fast-open-connect", 7010, &FAST_CONNECT)?;
    fast_open(sandbox, "fast-open-send", 7010, &FAST_SEND)?;
    let nstat = ["nstat", "-asz", "TcpExtTCPFastOpenPassive"];
    for (pod, taken) in [("server", false), ("server-plain", true)] {
        let shown = sandbox.exec(pod, &nstat)?.ok()?.stdout;
        let last = shown.lines().last().unwrap_or_default();
        let count = last.split_whitespace().nth(1).unwrap_or_default();
        ensure!((count != "0") == taken, "{pod} took data of SYNs: {last}");
    }
    // A client of no mesh, that has a cookie of before: the proxy's listener takes no data with it.
    let to = sandbox.at("server", 7010)?;
    let called = call(sandbox, "client-plain", "fast-open-send", &to, &[])?;
    let refused = called
        .did
        .last()
        .is_some_and(|last| last.ends_with("ECONNRESET"));
    ensure!(refused, "{called:?}");
    Ok(())
}

fn mptcp_client(sandbox: &Sandbox) -> anyhow::Result<()> {
    same(
        sandbox,
        "mptcp",
        7000,
        nothing_more,
        &[&["connect: ok"][..], &ECHO].concat(),
    )?;
    fast_open(sandbox, "mptcp-fast-open-connect", 7000, &FAST_CONNECT)?;
    fast_open(sandbox, "mptcp-fast-open-send", 7000, &FAST_SEND)?;
    // A strict server lets in what came through the mesh only: so did that.
    for way in ["mptcp", "mptcp-fast-open-connect", "mptcp-fast-open-send"] {
        let to = sandbox.at("server", 7000)?;
        let called = call(sandbox, "client-plain", way, &to, &[])?;
        let refused = called
            .did
            .last()
            .is_some_and(|last| last.ends_with("ECONNRESET"));
        ensure!(refused, "{way} of a stranger: {called:?}");
    }
    Ok(())
}

/// Go's servers listen so from 1.24 on.
fn mptcp_server(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (way, did) in [
        (
            "bound",
            &["bind: ok", "connect: ok", "the port is kept: true"][..],
        ),
        ("mptcp", &["connect: ok"]),
    ] {
        let more = |suffix: &str| local(sandbox, suffix, 0);
        let expected = [did, &ECHO].concat();
        same(sandbox, way, 7011, more, &expected).context(way.to_owned())?;
    }
    fast_open(sandbox, "mptcp-fast-open-send", 7018, &FAST_SEND)?;
    let shown = sandbox.exec("server", &["ss", "-HMln"])?.ok()?.stdout;
    ensure!(
        shown.contains(":7011"),
        "the server's socket is no MPTCP one:\n{shown}"
    );
    Ok(())
}

/// Two processes, of which one says a greeting and the other echoes.
fn shared_port(sandbox: &Sandbox) -> anyhow::Result<()> {
    let start = |behaviour| {
        let listen = format!("7100={behaviour}+reuse-port");
        sandbox.spawn_app("server", &["serve", "--listen", &listen])
    };
    let _one = start("whoami")?;
    let two = start("greet")?;
    let (whoami, greet) = ("{", "220");
    answered_by(sandbox, &[whoami, greet])?;
    drop(two);
    for _ in 0..10 {
        ensure!(who_answers(sandbox)?.starts_with(whoami));
    }
    let _two = start("greet")?;
    answered_by(sandbox, &[whoami, greet])
}

fn who_answers(sandbox: &Sandbox) -> anyhow::Result<String> {
    let to = sandbox.at("server", 7100)?;
    let report = sandbox.connect("client", &to, &["--exchange", "line"])?;
    Ok(report.seen()?.reply.clone())
}

/// Waits until each has answered.
fn answered_by(sandbox: &Sandbox, all: &[&str]) -> anyhow::Result<()> {
    let mut missing = all.to_vec();
    wait_for("both servers to answer", SOON, || {
        let reply = who_answers(sandbox)?;
        missing.retain(|begin| !reply.starts_with(begin));
        ensure!(missing.is_empty(), "{missing:?} did not");
        Ok(())
    })
}

/// IP_FREEBIND alone allows nothing but the bind(). What IP_TRANSPARENT sends is never answered,
/// where there is no mesh; the proxy answers it, and dials from the pod's own address.
fn foreign_source(sandbox: &Sandbox) -> anyhow::Result<()> {
    let foreign = ["--local", "192.0.2.77:0"];
    for suffix in ["", "-plain"] {
        let (pod, to) = (
            format!("client{suffix}"),
            sandbox.at(&format!("server{suffix}"), 7000)?,
        );
        let free = call(sandbox, &pod, "free-bind", &to, &foreign)?;
        free.expect(&["option: ok", "bind: ok", "connect: ENETUNREACH"])?;
        let transparent = call(sandbox, &pod, "transparent", &to, &foreign)?;
        let connect = if suffix.is_empty() {
            "connect: ok"
        } else {
            "connect: timeout"
        };
        let mut expected = vec!["option: ok", "bind: ok", connect];
        expected.extend(ECHO.iter().filter(|_| suffix.is_empty()));
        transparent.expect(&expected).with_context(|| pod.clone())?;
    }
    Ok(())
}

/// The mark of a steered connection does not stay with its socket.
fn again(sandbox: &Sandbox) -> anyhow::Result<()> {
    let round = ["AF_UNSPEC: ok", "connect: ok", ECHO[0], ECHO[1], ECHO[2]];
    let expected = [&["connect: ok"][..], &ECHO, &round, &round, &round].concat();
    same(
        sandbox,
        "again",
        7000,
        |suffix| other(sandbox, suffix),
        &expected,
    )
}

fn udp(sandbox: &Sandbox) -> anyhow::Result<()> {
    let datagram = |length| ["send: ok", "receive: ok", length];
    let mut round = vec!["connect: ok"];
    for length in ["length: 1", "length: 1200", "length: 1200"] {
        round.extend(datagram(length));
    }
    round.extend(["AF_UNSPEC: ok", "getpeername: ENOTCONN"]);
    let expected = [&round[..], &round].concat();
    for suffix in ["", "-plain"] {
        let server = format!("server{suffix}");
        let echo = sandbox.pod(&server).spawn(|| {
            let socket = std::net::UdpSocket::bind(("0.0.0.0", 7300))?;
            socket.set_read_timeout(Some(SOON))?;
            let mut datagram = [0; 2048];
            for _ in 0..6 {
                let (length, from) = socket.recv_from(&mut datagram)?;
                socket.send_to(&datagram[..length], from)?;
            }
            Ok(())
        })?;
        wait_for("the UDP server", SOON, || {
            let shown = sandbox.exec(&server, &["ss", "-Huln"])?.ok()?.stdout;
            ensure!(shown.contains(":7300"), "{shown}");
            Ok(())
        })?;
        let to = sandbox.at(&server, 7300)?;
        call(sandbox, &format!("client{suffix}"), "udp", &to, &[])?.expect(&expected)?;
        echo.join()
            .map_err(|_| anyhow::anyhow!("the UDP server panicked"))??;
    }
    Ok(())
}

fn ring(sandbox: &Sandbox) -> anyhow::Result<()> {
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    ensure!(
        disabled.trim() != "2",
        "io_uring is disabled on this machine (kernel.io_uring_disabled)"
    );
    let expected = [&["io_uring_setup: ok", "connect: ok"][..], &ECHO].concat();
    same(sandbox, "ring", 7000, nothing_more, &expected).context("the client")?;
    same(sandbox, "ring", 7016, nothing_more, &expected).context("and the server")
}
