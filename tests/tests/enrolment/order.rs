// SPDX-License-Identifier: Apache-2.0
//! Steer, report, acknowledged, strict; withdraw, acknowledged, grace, unsteer.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use culvert_tests::{sandbox::Daemon, wait::wait_for};

use super::{
    LONG, SOON, Sandbox, Step, connects, dialled, is_meshed, is_plain, leave, mover, rules,
    rules_go, state_is,
};

/// How long control waits for the acknowledgements of other nodes.
const PATIENCE: Duration = Duration::from_secs(5);

pub const STEPS: [(&str, Step); 4] = [
    ("strict waits for a node that does not hear", |s| {
        deaf(s, strict_waits)
    }),
    ("leaving waits for a node that does not hear", |s| {
        deaf(s, leaving_waits)
    }),
    ("strict waits for a node whose proxy is stalled", stalled),
    ("the rules stay with a connection of the mesh", rules_stay),
];

/// The other node's proxy lives and can't hear control, whose packets to it go nowhere.
fn deaf(sandbox: &Sandbox, step: impl Fn(&Sandbox) -> anyhow::Result<()>) -> anyhow::Result<()> {
    // So that it follows the pod.
    connects(sandbox, "meshed-far")?.all()?;
    route_to_node(sandbox, "add")?;
    let stepped = step(sandbox);
    route_to_node(sandbox, "del")?;
    stepped?;
    wait_for("the node to hear again", LONG, || {
        connects(sandbox, "meshed-far")?.all().map(drop)
    })?;
    leave(sandbox)
}

fn route_to_node(sandbox: &Sandbox, verb: &str) -> anyhow::Result<()> {
    let netns = format!("cv-{}-control", sandbox.name());
    let mut ip = std::process::Command::new("ip");
    ip.args(["-n", &netns, "route", verb, "blackhole", "10.245.0.1/32"]);
    culvert_tests::process::run(&mut ip, SOON)?.ok()?;
    Ok(())
}

fn strict_waits(sandbox: &Sandbox) -> anyhow::Result<()> {
    let begun = Instant::now();
    sandbox.apply(&mover(sandbox).strict())?;
    state_is(sandbox, "enrolled", 2.0).context("steered")?;
    dialled(sandbox, "meshed-near", "true").context("reported")?;
    dialled(sandbox, "meshed-far", "no_identity")
        .context("who does not know yet gets through in plaintext")?;
    connects(sandbox, "plain-far")?.all()?;
    wait_for("it to be strict", SOON, || {
        connects(sandbox, "plain-near")?.refused().map(drop)
    })?;
    ensure!(
        begun.elapsed() >= PATIENCE,
        "strict after {:?}, before the other node could know",
        begun.elapsed()
    );
    connects(sandbox, "meshed-near")?.all()?;
    connects(sandbox, "meshed-far")?.refused()?;
    let control = sandbox.logs("control")?;
    ensure!(
        control.contains("Nodes did not acknowledge a report"),
        "control does not say that it waited: {control}"
    );
    Ok(())
}

fn leaving_waits(sandbox: &Sandbox) -> anyhow::Result<()> {
    route_to_node(sandbox, "del")?;
    sandbox.apply(&mover(sandbox).strict())?;
    is_meshed(sandbox)?;
    route_to_node(sandbox, "add")?;
    let begun = Instant::now();
    sandbox.apply(&mover(sandbox))?;
    dialled(sandbox, "meshed-near", "no_identity").context("withdrawn")?;
    state_is(sandbox, "withdrawing", 1.0)?;
    dialled(sandbox, "meshed-far", "true").context("who does not know yet is served")?;
    connects(sandbox, "plain-far")?
        .all()
        .context("who knows already is served")?;
    state_is(sandbox, "withdrawing", 0.0)?;
    ensure!(
        begun.elapsed() >= PATIENCE,
        "unsteered after {:?}, before the other node could know",
        begun.elapsed()
    );
    connects(sandbox, "meshed-far")?
        .refused()
        .context("stale knowledge is an error, never plaintext")?;
    connects(sandbox, "plain-far")?.all()?;
    Ok(())
}

fn stalled(sandbox: &Sandbox) -> anyhow::Result<()> {
    connects(sandbox, "meshed-far")?.all()?;
    sandbox.stall("proxy", Some("n1"))?;
    let begun = Instant::now();
    let strict = sandbox.apply(&mover(sandbox).strict()).and_then(|()| {
        dialled(sandbox, "meshed-near", "true")?;
        connects(sandbox, "plain-near")?.all()?;
        wait_for("it to be strict", SOON, || {
            connects(sandbox, "plain-near")?.refused().map(drop)
        })
    });
    let took = begun.elapsed();
    sandbox.unstall("proxy", Some("n1"))?;
    strict?;
    ensure!(took >= PATIENCE, "strict after {took:?}");
    sandbox.ready(Daemon::Proxy("n1"))?;
    wait_for("the stalled node to know", SOON, || {
        connects(sandbox, "meshed-far")?.all().map(drop)
    })?;
    is_meshed(sandbox)?;
    leave(sandbox)
}

fn rules_stay(sandbox: &Sandbox) -> anyhow::Result<()> {
    ensure!(rules(sandbox)? == 0, "there are rules before it joins");
    sandbox.apply(&mover(sandbox).meshed())?;
    is_meshed(sandbox)?;
    let at = sandbox.at("plain-far", 7000)?;
    let held = sandbox.spawn_app("mover", &["hold", &at])?;
    wait_for("the connection", SOON, || {
        let shown = sandbox.exec("mover", &["ss", "-Htn"])?.ok()?.stdout;
        ensure!(shown.contains(&at), "{shown}");
        Ok(())
    })?;
    sandbox.apply(&mover(sandbox))?;
    is_plain(sandbox)?;
    state_is(sandbox, "draining", 1.0)?;
    ensure!(rules(sandbox)? > 0, "they went before the connection");
    held.finish(SOON)?.ok()?;
    rules_go(sandbox)
}
