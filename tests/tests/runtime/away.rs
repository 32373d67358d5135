// SPDX-License-Identifier: Apache-2.0
//! Pods that are made while the node's agent is dead.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::hold::Held,
    process::Running,
    runtime::{
        chain::{Attachment, Chain, PodNetns, failure},
        kubelet::serving,
    },
    sandbox::{Daemon, Sandbox},
    wait::wait_for,
};
use serde_json::json;

use crate::world::{NODE, World, enrolled, opened};

const SOON: Duration = Duration::from_secs(30);

/// containerd fails, leaves nothing, and succeeds when its caller tries again.
pub fn opted_in(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let kubelet = world.kubelet(sandbox);
    let mut waits = kubelet.know(&serving("waits", NODE, &["7000=echo"]).strict())?;
    let before = enrolled(sandbox)?;
    sandbox.kill("agent", Some(NODE), true)?;
    let refused = world.containerd.cri.run(kubelet.config(&waits));
    let code = code_without_agent(world, &waits);
    sandbox.start("agent", Some(NODE))?;
    sandbox.ready(Daemon::Agent(NODE))?;
    let Err(refused) = refused else {
        anyhow::bail!("the pod runs without the mesh")
    };
    let refused = format!("{refused:#}");
    ensure!(refused.contains("culvert-agent is away"), "{refused}");
    ensure!(code? == 11, "the code is not that of \"try again later\"");
    waits.attempt = 1;
    let waits = kubelet.run_known(waits)?;
    sandbox.answers_at("client", &waits.at(7000))?;
    sandbox.connect("plain", &waits.at(7000), &[])?.refused()?;
    kubelet.remove(waits)?;
    ensure!(enrolled(sandbox)? == before, "more is enrolled than before");
    Ok(())
}

/// What containerd was told: it does not pass codes on.
fn code_without_agent(
    world: &World,
    known: &culvert_tests::runtime::kubelet::Known,
) -> anyhow::Result<u64> {
    let space = &world.containerd.space;
    let netns = PodNetns::new(space, "waits")?;
    let pod = Attachment::of(known, &netns.path);
    let result = json!({"cniVersion": "1.0.0"});
    let refused = Chain::new(space)?.culvert("ADD", &pod, Some(&result))?;
    Ok(failure(&refused)?.code)
}

/// From a pod known to be unmeshed that starts without the agent to one that is meshed, with its
/// connections open all the way.
pub fn adopted(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let kubelet = world.kubelet(sandbox);
    let known = kubelet.know(&serving("passes", NODE, &["7000=echo", "7001=whoami"]))?;
    let state = sandbox.node_root(NODE).join("state");
    wait_for("the agent to know the pod", SOON, || {
        let known_unmeshed = fs::read_to_string(state.join("opt-in.json"))?;
        ensure!(known_unmeshed.contains(known.uid()), "{known_unmeshed}");
        Ok(())
    })?;
    let before = enrolled(sandbox)?;
    sandbox.kill("agent", Some(NODE), true)?;
    let passed = kubelet.run_known(known);
    let notes = fs::read_dir(state.join("passed")).map(Iterator::count);
    let mut held = passed.as_ref().ok().map(|pod| hold(sandbox, &pod.at(7000)));
    sandbox.start("agent", Some(NODE))?;
    sandbox.ready(Daemon::Agent(NODE))?;
    let mut passed = passed.context("a pod known to be unmeshed")?;
    let held = held.as_mut().context("no connection")?;
    let held = held
        .as_mut()
        .map_err(|error| anyhow::anyhow!("{error:#}"))?;
    ensure!(notes? == 1, "the plugin left no note");
    wait_for("the agent to take the note", SOON, || {
        let notes = fs::read_dir(state.join("passed"))?.count();
        ensure!(notes == 0, "{notes} notes");
        Ok(())
    })?;
    ensure!(enrolled(sandbox)? == before, "an unmeshed pod is enrolled");
    let annotations = &mut passed.known.object["metadata"]["annotations"];
    annotations["culvert.io/inject"] = "enabled".into();
    kubelet.publish(&passed.known)?;
    let mut failed = Vec::new();
    wait_for("the pod to be meshed", SOON, || {
        let served = opened(sandbox, NODE, "inbound", "passes", "client")?;
        let report = sandbox.connect("client", &passed.at(7001), &["--exchange", "line"])?;
        failed.extend(report.failures.into_keys());
        let now = opened(sandbox, NODE, "inbound", "passes", "client")?;
        ensure!(now > served, "it is served as plaintext");
        Ok(())
    })?;
    ensure!(
        failed.is_empty(),
        "it was enrolled, and there was {failed:?}"
    );
    held.say("and the old one lives")?;
    let still: Held = held.next(SOON)?;
    ensure!(still.working == 1, "the old connection broke: {still:?}");
    let served = opened(sandbox, "n2", "inbound", "client", "passes")?;
    kubelet
        .connect(&passed, &sandbox.at("client", 7000)?, &[])?
        .all()?;
    let now = opened(sandbox, "n2", "inbound", "client", "passes")?;
    ensure!(now > served, "it talks plaintext");
    kubelet.remove(passed)?;
    ensure!(enrolled(sandbox)? == before, "it is still enrolled");
    Ok(())
}

fn hold(sandbox: &Sandbox, at: &str) -> anyhow::Result<Running> {
    let mut hold = sandbox.spawn_app("client", &["hold", at])?;
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 1, "{held:?}");
    Ok(hold)
}
