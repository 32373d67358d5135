// SPDX-License-Identifier: Apache-2.0
//! Releases that are one apart (`tests/recorded`), and what a later one may say or have left on
//! disk. What one crate can show alone is tested there.

#[path = "versions/relay.rs"]
mod relay;

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    manifests::Pod,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    tls::{self, Authority, CULVERT_TCP, Ending, Hello},
    wait::wait_for,
};

use self::relay::Relay;

const SOON: Duration = Duration::from_secs(20);
const ECHO: u16 = 7000;

#[test]
fn versions() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step(
        "agent and proxy work with what an earlier release understands of them",
        earlier_eyes,
    );
    suite.step(
        "a peer with later protocols only is refused",
        later_protocol,
    );
    suite.step(
        "a peer with a later protocol and ours is served",
        both_protocols,
    );
    suite.step("a later proxy's state is kept for that", later_proxy_state);
    suite.step(
        "control refuses a later control's reports and keeps them",
        later_reports,
    );
    suite.finish()
}

fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("versions")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &["7000=echo"]);
    let sandbox = plan
        .pod(&pod("client", "n1").meshed())?
        .pod(&pod("late", "n1"))?
        .pod(&pod("server", "n2").strict())?
        .pod(&pod("plain", "n1"))?
        .up()?;
    sandbox.answers("client", "server", ECHO)?;
    Ok(sandbox)
}

/// All that an agent and a proxy say to each other is cut down to what the recorded release knows.
fn earlier_eyes(sandbox: &Sandbox) -> anyhow::Result<()> {
    for node in ["n1", "n2"] {
        let run = sandbox.node_root(node).join("run");
        let (socket, real) = (run.join("proxy.sock"), run.join("agent.sock"));
        sandbox.kill("proxy", Some(node), true)?;
        fs::rename(&socket, &real)?;
        let relay = Relay::start(&socket, &real)?;
        sandbox.start("proxy", Some(node))?;
        sandbox.ready(Daemon::Proxy(node))?;
        let worked = lives_through(sandbox, node);
        sandbox.kill("proxy", Some(node), true)?;
        fs::rename(&real, &socket)?;
        sandbox.start("proxy", Some(node))?;
        sandbox.ready(Daemon::Proxy(node))?;
        worked?;
        relay.verdict(&[
            "hello",
            "key",
            "pod",
            "snapshot_end",
            "sockets",
            "ack",
            "want",
            "keep",
        ])?;
        if node == "n1" {
            relay.verdict(&["withdraw", "withdrawn", "remove"])?;
        }
    }
    sandbox.answers("client", "server", ECHO)
}

/// A pod enters and leaves, and there are connections enough to ask for sockets.
fn lives_through(sandbox: &Sandbox, node: &str) -> anyhow::Result<()> {
    let many = ["--count", "200", "--concurrent", "50"];
    let server = sandbox.at("server", ECHO)?;
    sandbox.answers("client", "server", ECHO)?;
    sandbox.connect("client", &server, &many)?.all()?;
    if node != "n1" {
        return Ok(());
    }
    let app = sandbox.testapp().to_owned();
    let late = Pod::serving("late", "n1", &app, &["7000=echo"]);
    sandbox.apply(&late.clone().meshed())?;
    sandbox.answers("late", "server", ECHO)?;
    sandbox.apply(&late)?;
    wait_for("late to leave the mesh", SOON, || {
        let refused = sandbox.connect("late", &server, &[])?.succeeded == 0;
        ensure!(refused, "it still gets through to a strict pod");
        Ok(())
    })
}

// === ALPN ===

fn offers(sandbox: &Sandbox, alpn: &[&[u8]]) -> anyhow::Result<Ending> {
    let hello = Hello {
        alpn: alpn.iter().map(|name| name.to_vec()).collect(),
        ..Hello::mesh("server", b"is anybody there")
    };
    let addr: SocketAddr = sandbox.at("server", ECHO)?.parse()?;
    let own = Authority::of_sandbox(sandbox)?.sign("plain")?;
    tls::connect(&sandbox.pod("plain"), addr, &hello, Some(own))
}

fn refused(sandbox: &Sandbox) -> anyhow::Result<f64> {
    let labels = [("pod", "server")];
    sandbox.metric(Daemon::Proxy("n2"), "inbound_tcp_errors_total", &labels)
}

fn later_protocol(sandbox: &Sandbox) -> anyhow::Result<()> {
    let before = refused(sandbox)?;
    match offers(sandbox, &[b"culvert/later", b"culvert/tcp2"])? {
        Ending::Refused(why) => ensure!(why.contains("NoApplicationProtocol"), "{why}"),
        answered => anyhow::bail!("{answered:?}"),
    }
    wait_for("it to be counted", SOON, || {
        let now = refused(sandbox)?;
        ensure!(now > before, "{now}");
        Ok::<_, anyhow::Error>(())
    })?;
    sandbox.answers("client", "server", ECHO)
}

fn both_protocols(sandbox: &Sandbox) -> anyhow::Result<()> {
    let ending = offers(sandbox, &[b"culvert/later", CULVERT_TCP])?;
    ensure!(
        ending == Ending::Answered(b"is anybody there".to_vec()),
        "{ending:?}"
    );
    Ok(())
}

// === state ===

fn logged(sandbox: &Sandbox, of: &str, text: &str) -> anyhow::Result<()> {
    wait_for(&format!("{of} to log {text:?}"), SOON, || {
        ensure!(sandbox.logs(of)?.contains(text), "it did not");
        Ok::<_, anyhow::Error>(())
    })
}

fn is_kept(path: &Path, content: &str) -> anyhow::Result<()> {
    let now = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    ensure!(now == content, "{} is now {now}", path.display());
    Ok(())
}

fn later_proxy_state(sandbox: &Sandbox) -> anyhow::Result<()> {
    let file = sandbox.node_root("n1").join("proxy-state/state.json");
    let later = r#"{"version":2,"later":[]}"#;
    sandbox.kill("proxy", Some("n1"), true)?;
    fs::write(&file, later)?;
    sandbox.start("proxy", Some("n1"))?;
    sandbox.ready(Daemon::Proxy("n1"))?;
    logged(sandbox, "proxy", "it has version 2, expected 1")?;
    is_kept(&file.with_file_name("state.json.v2"), later)?;
    sandbox.answers("client", "server", ECHO)
}

fn later_reports(sandbox: &Sandbox) -> anyhow::Result<()> {
    let file = sandbox.root().join("control/reports.json");
    sandbox.kill("control", None, true)?;
    let ours = fs::read(&file)?;
    let later = r#"{"version":2,"pods":{}}"#;
    fs::write(&file, later)?;
    sandbox.start("control", None)?;
    let told = logged(sandbox, "control", "it has version 2, expected 1");
    let kept = is_kept(&file, later);
    let served = sandbox.answers("client", "server", ECHO);
    sandbox.kill("control", None, true)?;
    fs::write(&file, ours)?;
    sandbox.start("control", None)?;
    sandbox.ready(Daemon::Control)?;
    told?;
    kept?;
    served?;
    sandbox.answers("client", "server", ECHO)
}
