// SPDX-License-Identifier: Apache-2.0
//! Who gets in, what travels between the nodes, and what attackers get.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use culvert_tests::{
    app::hold::Held,
    capture::Capture,
    manifests::Pod,
    process::{Running, run},
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    tls::{self, Authority, Credentials, Ending, Hello},
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(10);
const ECHO: u16 = 7000;

#[test]
fn policy() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step(
        "meshed and unmeshed under permissive and strict",
        combinations,
    );
    suite.step("between meshed pods the wire has TLS only", wire);
    suite.step(
        "plaintext to a strict pod is refused and counted",
        plaintext_to_strict,
    );
    suite.step("the right certificate is let in", right_certificate);
    suite.step(
        "a certificate of an unknown authority is refused",
        unknown_authority,
    );
    suite.step("no certificate is refused", no_certificate);
    suite.step("another pod's name is refused", another_name);
    suite.step(
        "TLS of others: refused when strict, relayed when permissive",
        foreign_tls,
    );
    suite.step("random bytes are refused and harm nobody", random_bytes);
    suite.step("a server with another identity gets no byte", impostor);
    suite.finish()
}

/// On the first node the clients, `mesh` and `plain`; on the second the servers `open` (meshed,
/// permissive), `strict`, and `outside` (unmeshed); `near` is strict and on the first node.
fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("policy")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &["7000=echo"]);
    let sandbox = plan
        .pod(&pod("mesh", "n1").meshed())?
        .pod(&pod("plain", "n1"))?
        .pod(&pod("near", "n1").strict())?
        .pod(&pod("open", "n2").meshed())?
        .pod(&pod("strict", "n2").strict())?
        .pod(&pod("outside", "n2"))?
        .up()?;
    sandbox.answers("mesh", "strict", ECHO)?;
    is_meshed(&sandbox, "open")?;
    Ok(sandbox)
}

/// Until the first node has heard that a pod is meshed, it dials a permissive one in plaintext.
fn is_meshed(sandbox: &Sandbox, server: &str) -> anyhow::Result<()> {
    let id = format!("spiffe://cluster.local/ns/default/sa/{server}");
    let labels = [
        ("direction", "outbound"),
        ("tls", "true"),
        ("server_id", id.as_str()),
    ];
    wait_for(&format!("{server} to be dialled with TLS"), SOON, || {
        sandbox
            .connect("mesh", &sandbox.at(server, ECHO)?, &[])?
            .all()?;
        let opened = sandbox.metric(Daemon::Proxy("n1"), "tcp_open_total", &labels)?;
        ensure!(opened > 0.0, "no connection to {id}");
        Ok(())
    })
}

fn combinations(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (client, server, in_) in [
        ("mesh", "open", true),
        ("mesh", "strict", true),
        ("mesh", "near", true),
        ("mesh", "outside", true),
        ("plain", "open", true),
        ("plain", "strict", false),
        ("plain", "near", false),
        ("plain", "outside", true),
        ("open", "plain", true),
        ("strict", "plain", true),
        ("strict", "mesh", true),
    ] {
        let report = sandbox.connect(client, &sandbox.at(server, ECHO)?, &["--count", "20"])?;
        let as_expected = if in_ { report.all() } else { report.refused() };
        as_expected.with_context(|| format!("{client} → {server}"))?;
    }
    Ok(())
}

fn wire(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (client, server, tls) in [
        ("mesh", "open", true),
        ("mesh", "strict", true),
        ("mesh", "near", true),
        ("mesh", "outside", false),
        ("plain", "open", false),
    ] {
        on_the_wire(sandbox, client, server, tls)
            .with_context(|| format!("{client} → {server}"))?;
    }
    Ok(())
}

fn on_the_wire(sandbox: &Sandbox, client: &str, server: &str, tls: bool) -> anyhow::Result<()> {
    let marker = format!("marker-{client}-{server}-in-the-clear");
    let captures = ["n1", "n2"].map(|node| Capture::start(&sandbox.node(node)));
    let sent = sandbox.connect(
        client,
        &sandbox.at(server, ECHO)?,
        &["--send", &marker, "--count", "5"],
    );
    for capture in captures {
        let captured = capture?.stop()?;
        let clear = captured.count(marker.as_bytes());
        ensure!(
            (clear == 0) == tls || !tls && server == "near",
            "{clear} packets hold the marker"
        );
        if tls && !captured.streams(sandbox.ip(server)?, ECHO).is_empty() {
            captured.tls_only(sandbox.ip(server)?, ECHO)?;
        }
    }
    sent?.all()?;
    Ok(())
}

/// What the node of the strict pod has refused so far.
fn refused(sandbox: &Sandbox, pod: &str) -> anyhow::Result<f64> {
    let scrape = sandbox.scrape(Daemon::Proxy("n2"))?;
    let labels = [("pod", pod)];
    let names = ["inbound_tcp_errors_total", "inbound_tcp_authz_deny_total"];
    Ok(names.iter().map(|name| scrape.sum(name, &labels)).sum())
}

/// Runs an attack on a pod: it must be counted, and an open connection must live on.
fn attack<T>(
    sandbox: &Sandbox,
    pod: &str,
    attack: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (mut bystander, before) = (bystander(sandbox, pod)?, refused(sandbox, pod)?);
    let started = sandbox.pid(Daemon::Proxy("n2"))?;
    let result = attack()?;
    wait_for("the attack to be counted", SOON, || {
        let after = refused(sandbox, pod)?;
        ensure!(
            after > before,
            "inbound errors and denials of {pod} stay at {before}"
        );
        Ok(())
    })?;
    bystander.say("still there")?;
    let held: Held = bystander.next(SOON)?;
    ensure!(
        held.working == 1,
        "the bystander lost its connection: {held:?}"
    );
    bystander.finish(SOON)?.ok()?;
    let start = sandbox.pid(Daemon::Proxy("n2"))?;
    ensure!(start == started, "the proxy was restarted");
    Ok(result)
}

fn bystander(sandbox: &Sandbox, pod: &str) -> anyhow::Result<Running> {
    let mut bystander = sandbox.spawn_app("mesh", &["hold", &sandbox.at(pod, ECHO)?])?;
    let held: Held = bystander.next(SOON)?;
    ensure!(held.working == 1, "{held:?}");
    Ok(bystander)
}

fn plaintext_to_strict(sandbox: &Sandbox) -> anyhow::Result<()> {
    attack(sandbox, "strict", || {
        let report =
            sandbox.connect("plain", &sandbox.at("strict", ECHO)?, &["--patience", "5"])?;
        report
            .none("read: ECONNRESET")
            .or_else(|_| report.none("write: ECONNRESET"))?;
        Ok(())
    })
}

fn say_hello(
    sandbox: &Sandbox,
    pod: &str,
    hello: &Hello,
    credentials: Option<Credentials>,
) -> anyhow::Result<Ending> {
    let addr: SocketAddr = sandbox.at(pod, ECHO)?.parse()?;
    tls::connect(&sandbox.pod("plain"), addr, hello, credentials)
}

/// Shows that the attackers of the next steps are refused for the reason that they are for.
fn right_certificate(sandbox: &Sandbox) -> anyhow::Result<()> {
    let authority = Authority::of_sandbox(sandbox)?;
    for pod in ["strict", "open"] {
        let hello = Hello::mesh(pod, b"let me in");
        let ending = say_hello(sandbox, pod, &hello, Some(authority.sign("plain")?))?;
        ensure!(
            ending == Ending::Answered(b"let me in".to_vec()),
            "{pod}: {ending:?}"
        );
    }
    Ok(())
}

fn is_refused(
    sandbox: &Sandbox,
    pod: &str,
    hello: &Hello,
    own: Option<Credentials>,
) -> anyhow::Result<()> {
    let ending = attack(sandbox, pod, || say_hello(sandbox, pod, hello, own))?;
    match ending {
        Ending::Refused(_) => Ok(()),
        Ending::Answered(_) => Err(anyhow!("{pod} answered")),
    }
}

fn unknown_authority(sandbox: &Sandbox) -> anyhow::Result<()> {
    for pod in ["strict", "open"] {
        let own = Authority::unknown()?.sign("mesh")?;
        is_refused(sandbox, pod, &Hello::mesh(pod, b"let me in"), Some(own))?;
    }
    Ok(())
}

fn no_certificate(sandbox: &Sandbox) -> anyhow::Result<()> {
    for pod in ["strict", "open"] {
        is_refused(sandbox, pod, &Hello::mesh(pod, b"let me in"), None)?;
    }
    Ok(())
}

fn another_name(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (pod, name) in [("strict", "open"), ("open", "strict")] {
        let own = Authority::of_sandbox(sandbox)?.sign("mesh")?;
        is_refused(sandbox, pod, &Hello::mesh(name, b"let me in"), Some(own))?;
    }
    Ok(())
}

fn foreign_tls(sandbox: &Sandbox) -> anyhow::Result<()> {
    let hello = Hello {
        server_name: "www.example.com".to_owned(),
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        payload: b"hello".to_vec(),
    };
    is_refused(sandbox, "strict", &hello, None)?;
    // The application is an echo: the client gets its own ClientHello back, and says so.
    match say_hello(sandbox, "open", &hello, None)? {
        Ending::Refused(why) if why.contains("ClientHello") => Ok(()),
        other => Err(anyhow!("it was not relayed: {other:?}")),
    }
}

fn random_bytes(sandbox: &Sandbox) -> anyhow::Result<()> {
    for seed in 0..20_u64 {
        let bytes = garbage(seed);
        let addr: SocketAddr = sandbox.at("strict", ECHO)?.parse()?;
        let answer = attack(sandbox, "strict", || raw(sandbox, addr, bytes.clone()))?;
        ensure!(answer.len() <= 7, "{bytes:?} was answered with {answer:?}");
    }
    let addr: SocketAddr = sandbox.at("open", ECHO)?.parse()?;
    let bytes = garbage(1);
    ensure!(
        raw(sandbox, addr, bytes.clone())? == bytes,
        "what a permissive pod gets is relayed"
    );
    Ok(())
}

/// Every other one begins like a handshake record, half of these like a ClientHello.
fn garbage(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(600)
    .collect();
    match seed % 4 {
        0 => bytes[..6].copy_from_slice(&[22, 3, 1, 2, 0, 1]),
        2 => bytes[..3].copy_from_slice(&[22, 3, 1]),
        _ => bytes[0] = b'x',
    }
    bytes
}

/// Sends bytes and FIN from an unmeshed pod, and reads what comes back.
fn raw(sandbox: &Sandbox, addr: SocketAddr, bytes: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    sandbox.pod("plain").run(move || {
        let mut stream = TcpStream::connect_timeout(&addr, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut answer = Vec::new();
        // A refusal may come before all is written.
        if stream.write_all(&bytes).is_ok() {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut answer);
        }
        Ok(answer)
    })
}

/// The second node is made to send what is for `strict` to `outside`, where a pretender listens on
/// `strict`'s address. The client's node still knows that the address is `strict`'s.
fn impostor(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (target, thief) = (
        sandbox.ip("strict")?.to_string(),
        sandbox.ip("outside")?.to_string(),
    );
    let own = format!("{target}/32");
    ip(
        sandbox.pod("outside").path(),
        &["addr", "add", &own, "dev", "lo"],
    )?;
    ip(
        sandbox.node("n2").path(),
        &["route", "add", &own, "via", &thief],
    )?;
    let result = pretend_to_be_strict(sandbox);
    ip(sandbox.node("n2").path(), &["route", "del", &own])?;
    ip(
        sandbox.pod("outside").path(),
        &["addr", "del", &own, "dev", "lo"],
    )?;
    sandbox.answers("mesh", "strict", ECHO)?;
    result
}

fn pretend_to_be_strict(sandbox: &Sandbox) -> anyhow::Result<()> {
    let of_mesh = Authority::of_sandbox(sandbox)?;
    for (what, credentials) in [
        ("another identity", Some(of_mesh.sign("outside")?)),
        (
            "an unknown authority",
            Some(Authority::unknown()?.sign("strict")?),
        ),
        ("plaintext", None),
    ] {
        gets_nothing(sandbox, credentials).with_context(|| format!("a server with {what}"))?;
    }
    Ok(())
}

fn gets_nothing(sandbox: &Sandbox, credentials: Option<Credentials>) -> anyhow::Result<()> {
    let labels = [("pod", "mesh")];
    let before = sandbox.metric(Daemon::Proxy("n1"), "outbound_tcp_errors_total", &labels)?;
    let addr: SocketAddr = sandbox.at("strict", 7100)?.parse()?;
    let pretender = tls::pretend(&sandbox.pod("outside"), addr, credentials)?;
    let flags = ["--send", "for strict only", "--patience", "10"];
    let report = sandbox.connect("mesh", &addr.to_string(), &flags)?;
    report.refused()?;
    let overheard = thread::JoinHandle::join(pretender).map_err(|_| anyhow!("it panicked"))??;
    ensure!(
        overheard.plaintext.is_empty(),
        "it heard {:?}",
        overheard.plaintext
    );
    ensure!(
        overheard.first.first() == Some(&22),
        "it was sent {:?}",
        overheard.first
    );
    let least = before + 1.0;
    sandbox.metric_reaches(
        Daemon::Proxy("n1"),
        "outbound_tcp_errors_total",
        &labels,
        least,
    )?;
    Ok(())
}

fn ip(netns: &std::path::Path, args: &[&str]) -> anyhow::Result<()> {
    let name = netns
        .file_name()
        .and_then(|name| name.to_str())
        .context("no name")?;
    run(Command::new("ip").args(["-n", name]).args(args), SOON)?.ok()?;
    Ok(())
}
