// SPDX-License-Identifier: Apache-2.0
//! What is lost: a proxy's time, the keys, files, a whole machine but its disk.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::{hold::Held, report::Report},
    capture::Capture,
    manifests::Pod,
    sandbox::{Daemon, Sandbox},
    wait::wait_for,
};
use serde_json::Value;

use super::{LONG, NODES, SECRET, SOON, Step, serves, unmeshed_is_refused, waiting};

pub const STEPS: [(&str, Step); 12] = [
    ("connections wait for a client's proxy that stalls", |s| {
        stalls(s, "n1", "client")
    }),
    ("connections wait for a server's proxy that stalls", |s| {
        stalls(s, "n2", "server")
    }),
    ("the client's keys are lost while control is down", |s| {
        keys_lost(s, "n1")
    }),
    ("the server's keys are lost while control is down", |s| {
        keys_lost(s, "n2")
    }),
    ("a proxy's state is damaged", proxy_state),
    ("a proxy's state is damaged while control is down", |s| {
        without_control(s, proxy_state_alone)
    }),
    (
        "a clock that was set back outdates no report",
        clock_set_back,
    ),
    ("control's reports are damaged", reports),
    ("an agent's record is damaged", record),
    ("the list of unmeshed pods is damaged", opt_in),
    ("the server's node is rebooted", |s| rebooted(s, &["n2"])),
    ("both nodes are rebooted", |s| rebooted(s, &NODES)),
];

/// What is done while nobody may see the secret.
fn unseen(sandbox: &Sandbox, doing: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let wires = NODES.map(|node| Capture::only(&sandbox.node(node), SECRET.as_bytes()));
    let done = doing();
    for wire in wires {
        let seen = wire?.stop()?.count(SECRET.as_bytes());
        ensure!(seen == 0, "{seen} packets in plaintext; {done:?}");
    }
    done
}

fn stalls(sandbox: &Sandbox, node: &str, pod: &str) -> anyhow::Result<()> {
    let at = sandbox.at("server", 7000)?;
    let mut held = sandbox.spawn_app("client", &["hold", &at, "--connections", "3"])?;
    let first: Held = held.next(SOON)?;
    ensure!(first.working == 3, "{first:?}");
    unseen(sandbox, || {
        sandbox.stall("proxy", Some(node))?;
        let flags = ["--count", "8", "--concurrent", "8", "--patience", "30"];
        let command = [&["connect", &at, "--send", SECRET][..], &flags].concat();
        let meanwhile = sandbox.spawn_app("client", &command)?;
        let waits = wait_for("8 connections to wait", SOON, || {
            let waiting = waiting(sandbox, pod)?;
            ensure!(waiting >= 8, "{waiting} wait");
            Ok(())
        });
        let refused = unmeshed_is_refused_by(sandbox, pod);
        sandbox.unstall("proxy", Some(node))?;
        waits?;
        refused?;
        let report: Report = meanwhile.finish(LONG)?.json()?;
        report.all().map(drop)
    })?;
    held.say("once more")?;
    let again: Held = held.next(SOON)?;
    ensure!(again.working == 3, "{again:?}");
    serves(sandbox, "20")
}

/// It may be taken, but it is not answered.
fn unmeshed_is_refused_by(sandbox: &Sandbox, pod: &str) -> anyhow::Result<()> {
    let at = sandbox.at(pod, 7000)?;
    let report = sandbox.connect("plain", &at, &["--patience", "1"])?;
    report.refused().map(drop)
}

fn without_control(
    sandbox: &Sandbox,
    step: impl FnOnce(&Sandbox) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    sandbox.kill("control", None, true)?;
    let stepped = step(sandbox);
    sandbox.start("control", None)?;
    sandbox.ready(Daemon::Control)?;
    stepped?;
    recovers(sandbox)
}

fn recovers(sandbox: &Sandbox) -> anyhow::Result<()> {
    wait_for("everything to work again", LONG, || serves(sandbox, "5"))
}

/// Agent and proxy are gone, and the keys with them.
fn keys_lost(sandbox: &Sandbox, node: &str) -> anyhow::Result<()> {
    let pod = if node == "n1" { "client" } else { "server" };
    without_control(sandbox, |sandbox| {
        for part in ["agent", "proxy"] {
            sandbox.kill(part, Some(node), true)?;
        }
        for part in ["agent", "proxy"] {
            sandbox.start(part, Some(node))?;
        }
        sandbox.ready(Daemon::Agent(node))?;
        let connected = sandbox.metric_reaches(
            Daemon::Proxy(node),
            "culvert_proxy_agent_connected",
            &[],
            1.0,
        );
        connected?;
        wait_for("the proxy to say what it lacks", SOON, || {
            let why = waits_for(sandbox, node)?;
            ensure!(why.contains("certificate"), "it says {why:?}");
            let log = sandbox.logs("proxy")?;
            ensure!(log.contains("Could not get a certificate"), "{log}");
            Ok(())
        })?;
        unseen(sandbox, || {
            let mut dialled = Vec::new();
            for (from, to) in [("client", "server"), ("server", "client")] {
                let at = sandbox.at(to, 7000)?;
                let command = ["connect", &at, "--send", SECRET, "--patience", "20"];
                dialled.push((from, sandbox.spawn_app(from, &command)?));
            }
            for (from, dialled) in dialled {
                let report: Report = dialled.finish(LONG)?.json()?;
                report.refused().with_context(|| format!("from {from}"))?;
            }
            unmeshed_is_refused_by(sandbox, pod)
        })
    })
}

/// Why the proxy of a node is not ready.
fn waits_for(sandbox: &Sandbox, node: &str) -> anyhow::Result<String> {
    let status = sandbox.status()?;
    let mut processes = status["processes"].as_array().into_iter().flatten();
    let proxy = processes.find(|one| one["kind"] == "proxy" && one["node"] == node);
    let reason = proxy.and_then(|one| one["reason"].as_str());
    Ok(reason.unwrap_or_default().to_owned())
}

// --- files ---

/// Generations follow the nodes' clocks: a report of the future is one of before the step back.
fn clock_set_back(sandbox: &Sandbox) -> anyhow::Result<()> {
    let file = sandbox.root().join("control/reports.json");
    sandbox.kill("control", None, true)?;
    let mut reports: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let mut moved = 0;
    for known in reports.as_object_mut().into_iter().flatten() {
        let generation = known.1["generation"].as_u64().context("no generation")?;
        known.1["generation"] = (generation + 365 * 24 * 3_600_000).into();
        moved += 1;
    }
    ensure!(moved >= 2, "{moved} reports");
    overwrite(&file, &serde_json::to_vec(&reports)?)?;
    sandbox.start("control", None)?;
    recovers(sandbox)?;
    // Now it is to be believed that a pod leaves.
    let server = server(sandbox);
    sandbox.apply(&server)?;
    wait_for("the server to be dialled in plaintext", SOON, || {
        sandbox
            .connect("plain", &sandbox.at("server", 7000)?, &[])?
            .all()?;
        sandbox
            .connect("client", &sandbox.at("server", 7000)?, &[])?
            .all()
            .map(drop)
    })?;
    enrolled(sandbox, 0.0)?;
    sandbox.apply(&server.strict())?;
    enrolled(sandbox, 1.0)?;
    recovers(sandbox)
}

/// So many pods of the server's node are.
fn enrolled(sandbox: &Sandbox, pods: f64) -> anyhow::Result<()> {
    wait_for(&format!("{pods} pods to be enrolled"), SOON, || {
        let labels = [("state", "enrolled")];
        let now = sandbox.metric(Daemon::Agent("n2"), "culvert_agent_pods", &labels)?;
        ensure!(now == pods, "{now} are");
        Ok(())
    })
}

fn server(sandbox: &Sandbox) -> Pod {
    Pod::serving("server", "n2", sandbox.testapp(), &["7000=echo"])
}

/// With the owner and the mode that it has.
fn overwrite(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(file, bytes).with_context(|| file.display().to_string())
}

/// How files are found after a power cut, or after an operator's mistake.
fn damages(whole: &[u8]) -> [Vec<u8>; 4] {
    let half = whole[..whole.len() / 2].to_owned();
    [
        Vec::new(),
        half,
        b"\0\0\0\0\xff garbage".to_vec(),
        b"[]".to_vec(),
    ]
}

fn proxy_state(sandbox: &Sandbox) -> anyhow::Result<()> {
    let file = sandbox.node_root("n2").join("proxy-state/state.json");
    let whole = fs::read(&file)?;
    for damage in damages(&whole) {
        restarted_with(sandbox, &file, |file| overwrite(file, &damage))?;
        recovers(sandbox)?;
    }
    restarted_with(sandbox, &file, |file| {
        overwrite(file, &whole)?;
        chown(file, Some(0), Some(0))?;
        Ok(fs::set_permissions(
            file,
            fs::Permissions::from_mode(0o600),
        )?)
    })?;
    recovers(sandbox)
}

/// It has its keys, and takes unknown policies for strict.
fn proxy_state_alone(sandbox: &Sandbox) -> anyhow::Result<()> {
    let file = sandbox.node_root("n2").join("proxy-state/state.json");
    restarted_with(sandbox, &file, |file| overwrite(file, b"{"))?;
    unmeshed_is_refused(sandbox)?;
    let at = sandbox.at("server", 7000)?;
    let flags = ["--count", "10", "--patience", "20"];
    sandbox.connect("client", &at, &flags)?.all()?;
    let unknown = sandbox.at("client", 7000)?;
    sandbox
        .connect("server", &unknown, &flags[2..])?
        .refused()?;
    Ok(())
}

/// Restarts the proxy of `n2` with another state, and waits until it has said so.
fn restarted_with(
    sandbox: &Sandbox,
    file: &Path,
    damage: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let told = |s: &Sandbox| Ok::<_, anyhow::Error>(lines(&s.logs("proxy")?, "state.json"));
    let before = told(sandbox)?;
    sandbox.kill("proxy", Some("n2"), true)?;
    let damaged = damage(file);
    sandbox.start("proxy", Some("n2"))?;
    damaged?;
    wait_for("the proxy to say what is wrong", SOON, || {
        ensure!(told(sandbox)? > before, "it says nothing of the file");
        Ok(())
    })?;
    wait_for("the proxy to have its pods", SOON, || {
        let name = "culvert_proxy_agent_connected";
        let connected = sandbox.metric(Daemon::Proxy("n2"), name, &[])?;
        ensure!(connected == 1.0, "it is not connected");
        Ok(())
    })
}

fn lines(log: &str, with: &str) -> usize {
    log.lines().filter(|line| line.contains(with)).count()
}

/// Control does not start without them, and says what to do; what is known is served.
fn reports(sandbox: &Sandbox) -> anyhow::Result<()> {
    let file = sandbox.root().join("control/reports.json");
    let whole = fs::read(&file)?;
    for damage in damages(&whole).into_iter().take(3) {
        sandbox.kill("control", None, true)?;
        overwrite(&file, &damage)?;
        let before = lines(&sandbox.logs("control")?, "reports.json");
        sandbox.start("control", None)?;
        let told = wait_for("control to say what is wrong", SOON, || {
            let told = lines(&sandbox.logs("control")?, "reports.json");
            ensure!(told > before, "it says nothing of the file");
            Ok(())
        });
        let served = serves(sandbox, "5");
        sandbox.kill("control", None, true)?;
        overwrite(&file, &whole)?;
        sandbox.start("control", None)?;
        told?;
        served?;
        sandbox.ready(Daemon::Control)?;
    }
    recovers(sandbox)
}

/// The pod is cut off until it is deleted; no other is touched.
fn record(sandbox: &Sandbox) -> anyhow::Result<()> {
    let app = sandbox.testapp().to_owned();
    let doomed = Pod::serving("doomed", "n2", &app, &["7000=echo"]).strict();
    sandbox.apply(&doomed)?;
    sandbox.answers("client", "doomed", 7000)?;
    sandbox.kill("agent", Some("n2"), true)?;
    let file = record_of(sandbox, "doomed")?;
    let whole = fs::read(&file)?;
    overwrite(&file, &whole[..whole.len() / 2])?;
    sandbox.start("agent", Some("n2"))?;
    sandbox.ready(Daemon::Agent("n2"))?;
    let log = sandbox.logs("agent")?;
    ensure!(log.contains("that makes no sense aside"), "{log}");
    ensure!(log.contains("is lost or broken: it is cut off"), "{log}");
    unseen(sandbox, || {
        let flags = ["--send", SECRET, "--patience", "2"];
        let (doomed, server) = (sandbox.at("doomed", 7000)?, sandbox.at("server", 7000)?);
        sandbox
            .connect("plain", &doomed, &["--patience", "1"])?
            .refused()?;
        sandbox
            .connect("doomed", &server, &flags)?
            .refused()
            .map(drop)
    })?;
    serves(sandbox, "10")?;
    sandbox.delete_pod("doomed")?;
    let netns = sandbox.pod("doomed");
    wait_for("the pod to go", SOON, || {
        ensure!(!netns.path().exists(), "its namespace is still there");
        Ok(())
    })?;
    wait_for("what is left of its record to go", SOON, || {
        let left = broken(sandbox)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

fn record_of(sandbox: &Sandbox, pod: &str) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(sandbox.node_root("n2").join("state/pods"))?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let name = format!("\"name\": \"{pod}\"");
    let of_pod = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains(&name));
    paths
        .find(of_pod)
        .with_context(|| format!("no record of {pod}"))
}

fn broken(sandbox: &Sandbox) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(sandbox.node_root("n2").join("state/pods"))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths
        .filter(|path| path.extension().is_some_and(|end| end == "broken"))
        .collect())
}

/// What it does not say, is not known: the pod waits for the agent.
fn opt_in(sandbox: &Sandbox) -> anyhow::Result<()> {
    let app = sandbox.testapp().to_owned();
    let file = sandbox.node_root("n2").join("state/opt-in.json");
    sandbox.kill("agent", Some("n2"), true)?;
    let whole = fs::read(&file)?;
    let waited = overwrite(&file, &whole[..whole.len() / 2]).and_then(|()| {
        sandbox.apply(&Pod::serving("newcomer", "n2", &app, &["7000=echo"]).strict())?;
        wait_for("ADD to be refused", SOON, || {
            let status = sandbox.sandbox("status", &["-o", "json"])?.stdout;
            ensure!(status.contains("opt-in.json"), "status says {status}");
            Ok(())
        })
    });
    sandbox.start("agent", Some("n2"))?;
    waited?;
    sandbox.answers("client", "newcomer", 7000)?;
    let at = sandbox.at("newcomer", 7000)?;
    sandbox
        .connect("plain", &at, &["--patience", "1"])?
        .refused()?;
    ensure!(
        fs::read(&file)? != whole[..whole.len() / 2],
        "it is not written anew"
    );
    sandbox.delete_pod("newcomer")?;
    serves(sandbox, "5")
}

// --- machines ---

/// The pods come again as the same pods, with other namespaces and addresses.
fn rebooted(sandbox: &Sandbox, nodes: &[&str]) -> anyhow::Result<()> {
    let before = [uid(sandbox, "server")?, uid(sandbox, "client")?];
    for node in nodes {
        sandbox.reboot(node)?;
    }
    for node in nodes {
        sandbox.ready(Daemon::Agent(node))?;
        sandbox.ready(Daemon::Proxy(node))?;
    }
    let begun = Instant::now();
    wait_for("everything to work again", LONG, || serves(sandbox, "5"))?;
    let took = begun.elapsed();
    ensure!(took < SOON, "it took {took:?}, as if neighbours were stale");
    let after = [uid(sandbox, "server")?, uid(sandbox, "client")?];
    ensure!(before == after, "{before:?} became {after:?}");
    for node in NODES {
        let enrolled = [("state", "enrolled")];
        let pods = sandbox.metric(Daemon::Agent(node), "culvert_agent_pods", &enrolled)?;
        ensure!(pods == 1.0, "{pods} pods are enrolled on {node}");
        let records = fs::read_dir(sandbox.node_root(node).join("state/pods"))?.count();
        let expected = if node == "n1" { 2 } else { 1 };
        ensure!(records == expected, "{records} records on {node}");
    }
    Ok(())
}

fn uid(sandbox: &Sandbox, pod: &str) -> anyhow::Result<String> {
    let file = sandbox
        .root()
        .join(format!("manifests/pod-default.{pod}.json"));
    let text = fs::read(&file).with_context(|| file.display().to_string())?;
    let object: Value = serde_json::from_slice(&text)?;
    let uid = object["metadata"]["uid"].as_str();
    Ok(uid.context("no uid")?.to_owned())
}
