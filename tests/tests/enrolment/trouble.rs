// SPDX-License-Identifier: Apache-2.0
//! Joining and leaving in a hurry, all at once, and while a part is down.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{app::report::Report, capture::Capture, sandbox::Daemon, wait::wait_for};

use super::{
    LONG, Open, SOON, Sandbox, Step, connects, dialled, is_meshed, is_plain, leave, mover,
    namespace, rules_go, state_is,
};

const FLIPS: u64 = 20;
const SECRET: &str = "not-for-the-wire";

pub const STEPS: [(&str, Step); 8] = [
    ("twenty flips in a hurry under load", hurry),
    ("a whole namespace joins and leaves", whole_namespace),
    ("joining and leaving while the agent is down", without_agent),
    (
        "the agent is killed while a pod joins and leaves",
        agent_killed,
    ),
    ("joining while control is down", joins_without_control),
    ("leaving while control is down", leaves_without_control),
    ("the proxy is killed while a pod joins", proxy_killed),
    ("a pod is deleted while it joins", deleted),
];

/// New connections both ways all the time; each flip comes before the last one is through.
fn hurry(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut open = Open::all(sandbox)?;
    let flags = ["--count", "0", "--until-eof", "--patience", "30"];
    let pairs = [
        ("meshed-far", "mover"),
        ("plain-near", "mover"),
        ("mover", "meshed-far"),
        ("mover", "plain-near"),
    ];
    let mut loads = Vec::new();
    for (from, to) in pairs {
        let at = sandbox.at(to, 7000)?;
        let load = sandbox.spawn_app(from, &[&["connect", &at][..], &flags].concat())?;
        loads.push((format!("{from} → {to}"), load));
    }
    for flip in 0..FLIPS {
        sandbox.apply(&match flip % 2 {
            0 => mover(sandbox).meshed(),
            _ => mover(sandbox),
        })?;
        // Not luck: the moments are to differ.
        thread::sleep(Duration::from_millis(37 * (flip % 7)));
        if flip % 5 == 4 {
            open.flow()?;
        }
    }
    is_plain(sandbox)?;
    let mut wrong = Vec::new();
    for (which, load) in loads {
        let report: Report = load.finish(LONG)?.json()?;
        eprintln!("    {which}: {} {:?}", report.attempted, report.failures);
        if let Err(error) = report.all() {
            wrong.push(format!("{which}: {error}"));
        }
    }
    open.end()?;
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    leave(sandbox)
}

fn whole_namespace(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut open = Open::all(sandbox)?;
    for _ in 0..2 {
        sandbox.apply_object(&namespace(Some("enabled")))?;
        is_meshed(sandbox)?;
        state_is(sandbox, "enrolled", 2.0)?;
        open.work()?;
        sandbox.apply_object(&namespace(None))?;
        is_plain(sandbox)?;
        open.work()?;
    }
    open.end()?;
    rules_go(sandbox)
}

fn without_agent(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut open = Open::all(sandbox)?;
    for joins in [true, false] {
        sandbox.kill("agent", Some("n2"), true)?;
        sandbox.apply(&match joins {
            true => mover(sandbox).strict(),
            false => mover(sandbox),
        })?;
        let meanwhile = connects(sandbox, "meshed-far").and_then(|report| {
            report.all()?;
            open.work()
        });
        sandbox.start("agent", Some("n2"))?;
        meanwhile?;
        match joins {
            true => is_meshed(sandbox)?,
            false => is_plain(sandbox)?,
        }
        open.work()?;
    }
    open.end()?;
    rules_go(sandbox)
}

/// Right after the change, so that it is somewhere on the way.
fn agent_killed(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut open = Open::all(sandbox)?;
    for pause in [0, 40, 80] {
        for joins in [true, false] {
            sandbox.apply(&match joins {
                true => mover(sandbox).strict(),
                false => mover(sandbox),
            })?;
            thread::sleep(Duration::from_millis(pause));
            sandbox.kill("agent", Some("n2"), true)?;
            sandbox.start("agent", Some("n2"))?;
            sandbox.ready(Daemon::Agent("n2"))?;
            match joins {
                true => is_meshed(sandbox).with_context(|| format!("{pause} ms"))?,
                false => is_plain(sandbox).with_context(|| format!("{pause} ms"))?,
            }
            open.work().with_context(|| format!("after {pause} ms"))?;
        }
    }
    open.end()?;
    rules_go(sandbox)
}

/// It can prove no identity yet: it is dialled in plaintext as before, and what it dials itself is
/// refused unless it is known to be outside of the mesh.
fn joins_without_control(sandbox: &Sandbox) -> anyhow::Result<()> {
    wait_for("the keys of the last time to go", SOON, || {
        let id = "spiffe://cluster.local/ns/default/sa/mover";
        let name = "control_identity_cert_expiration_timestamp_seconds";
        let left = sandbox.metric(Daemon::Proxy("n2"), name, &[("identity", id)])?;
        ensure!(left == 0.0, "they are there");
        Ok(())
    })?;
    let mut open = Open::all(sandbox)?;
    let wires = ["n1", "n2"].map(|node| Capture::only(&sandbox.node(node), SECRET.as_bytes()));
    sandbox.kill("control", None, true)?;
    let joined = sandbox.apply(&mover(sandbox).strict()).and_then(|()| {
        state_is(sandbox, "enrolled", 2.0)?;
        open.work()?;
        for from in ["plain-far", "plain-near", "meshed-far"] {
            connects(sandbox, from)?.all().context(from)?;
        }
        let at = sandbox.at("meshed-far", 7000)?;
        let flags = ["--send", SECRET, "--patience", "20"];
        sandbox.connect("mover", &at, &flags)?.refused()?;
        Ok(())
    });
    sandbox.start("control", None)?;
    joined?;
    is_meshed(sandbox).context("by itself, when control is back")?;
    wait_for("it to be strict", SOON, || {
        connects(sandbox, "plain-far")?.refused().map(drop)
    })?;
    sandbox.answers("mover", "meshed-far", 7000)?;
    open.end()?;
    // A capture ends when the wire is silent for a moment.
    for wire in wires {
        let seen = wire?.stop()?.count(SECRET.as_bytes());
        ensure!(seen == 0, "{seen} packets in plaintext");
    }
    Ok(())
}

/// Peers can't be told, so it stays in the mesh until they can.
fn leaves_without_control(sandbox: &Sandbox) -> anyhow::Result<()> {
    sandbox.apply(&mover(sandbox).strict())?;
    is_meshed(sandbox)?;
    let mut open = Open::default();
    let at = sandbox.at("mover", 7000)?;
    open.add(sandbox, "meshed-far", std::slice::from_ref(&at))?;
    sandbox.kill("control", None, true)?;
    let left = sandbox.apply(&mover(sandbox)).and_then(|()| {
        state_is(sandbox, "withdrawing", 1.0)?;
        dialled(sandbox, "meshed-far", "true")?;
        dialled(sandbox, "meshed-near", "true")?;
        open.work()
    });
    sandbox.start("control", None)?;
    left?;
    is_plain(sandbox).context("by itself, when control is back")?;
    open.end()?;
    rules_go(sandbox)
}

fn proxy_killed(sandbox: &Sandbox) -> anyhow::Result<()> {
    for pause in [0, 50, 150] {
        sandbox.apply(&mover(sandbox).strict())?;
        thread::sleep(Duration::from_millis(pause));
        sandbox.kill("proxy", Some("n2"), true)?;
        sandbox.start("proxy", Some("n2"))?;
        sandbox.ready(Daemon::Proxy("n2"))?;
        wait_for("it to be strict", SOON, || {
            connects(sandbox, "plain-far")?.refused().map(drop)
        })?;
        wait_for("peers to know", SOON, || {
            connects(sandbox, "meshed-far")?.all().map(drop)
        })?;
        is_meshed(sandbox)?;
        leave(sandbox)?;
    }
    Ok(())
}

fn deleted(sandbox: &Sandbox) -> anyhow::Result<()> {
    let netns = sandbox.pod("mover");
    for pause in [0, 60, 300] {
        let pins = pins(sandbox)?;
        sandbox.apply(&mover(sandbox).strict())?;
        thread::sleep(Duration::from_millis(pause));
        sandbox.delete_pod("mover")?;
        wait_for("the pod to go", SOON, || {
            ensure!(!netns.path().exists(), "its namespace is still there");
            Ok(())
        })?;
        state_is(sandbox, "enrolled", 1.0)?;
        wait_for("its pins and records to go", SOON, || {
            let left = self::pins(sandbox)?;
            ensure!(left == pins, "{left:?}, before {pins:?}");
            let records = fs::read_dir(sandbox.node_root("n2").join("state/pods"))?.count();
            ensure!(records == 2, "{records} records");
            Ok(())
        })?;
        sandbox.apply(&mover(sandbox))?;
        sandbox.answers("plain-far", "mover", 7000)?;
        sandbox.answers("meshed-far", "mover", 7000)?;
    }
    Ok(())
}

/// How many directories of pods are pinned on the pod's node.
fn pins(sandbox: &Sandbox) -> anyhow::Result<usize> {
    let mut dirs = vec![sandbox.node_root("n2").join("bpf")];
    let mut found = 0;
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                found += 1;
                dirs.push(path);
            }
        }
    }
    Ok(found)
}
