// SPDX-License-Identifier: Apache-2.0
//! What the runtime does while the agent is not there.

use std::{fs, time::Duration};

use anyhow::ensure;
use culvert_tests::{
    runtime::{
        chain::{Attachment, Chain, PodNetns, failure},
        kubelet::{Known, serving},
    },
    sandbox::{Daemon, Sandbox},
    wait::wait_for,
};
use serde_json::json;

use crate::ground::{NODE, World};

const SOON: Duration = Duration::from_secs(30);

/// The configuration is on the disk, the sockets are gone with `/run`, and containerd comes first.
pub fn reboot(sandbox: &Sandbox, world: &mut World) -> anyhow::Result<()> {
    let known = {
        let kubelet = world.kubelet(sandbox);
        kubelet.know(&serving("late", NODE, &["7000=echo"]).strict())?
    };
    sandbox.kill("agent", Some(NODE), true)?;
    world.containerd.kill()?;
    for name in ["cni.sock", "proxy.sock"] {
        fs::remove_file(sandbox.node_root(NODE).join("run").join(name))?;
    }
    world.containerd.resume()?;
    let refused = refused(sandbox, world, &known);
    sandbox.start("agent", Some(NODE))?;
    sandbox.ready(Daemon::Agent(NODE))?;
    refused?;
    world.is_chained(sandbox)?;
    let mut known = known;
    known.attempt = 1;
    let kubelet = world.kubelet(sandbox);
    let pod = kubelet.run_known(known)?;
    sandbox.answers_at("client", &pod.at(7000))?;
    sandbox.connect("plain", &pod.at(7000), &[])?.refused()?;
    kubelet.remove(pod)
}

fn refused(sandbox: &Sandbox, world: &World, known: &Known) -> anyhow::Result<()> {
    ensure!(
        world.ours().exists(),
        "the configuration went with the agent"
    );
    let kubelet = world.kubelet(sandbox);
    let Err(refused) = world.containerd.cri.run(kubelet.config(known)) else {
        anyhow::bail!("the pod runs without the mesh")
    };
    let refused = format!("{refused:#}");
    ensure!(refused.contains("culvert-agent is away"), "{refused}");
    // containerd does not pass codes on.
    let space = &world.containerd.space;
    let netns = PodNetns::new(space, "late")?;
    let chain = Chain::of(space, &world.ours(), world.cni.bin.clone())?;
    let result = json!({"cniVersion": "1.0.0"});
    let pod = Attachment::of(known, &netns.path);
    let code = failure(&chain.culvert("ADD", &pod, Some(&result))?)?.code;
    ensure!(
        code == 11,
        "the code is {code}, not that of \"try again later\""
    );
    Ok(())
}

/// By and by: the agent, its sockets, the configuration, the plugin.
pub fn deleted(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let kubelet = world.kubelet(sandbox);
    let enrolled = || {
        let state = [("state", "enrolled")];
        sandbox.metric(Daemon::Agent(NODE), "culvert_agent_pods", &state)
    };
    let before = enrolled()?;
    let mut pods = Vec::new();
    for name in ["one", "two", "three"] {
        pods.push(kubelet.run(&serving(name, NODE, &["7000=echo"]).meshed())?);
    }
    ensure!(enrolled()? == before + 3.0, "not all are enrolled");
    sandbox.kill("agent", Some(NODE), true)?;
    let program = world.cni.bin.join("culvert-cni");
    let gone = [
        sandbox.node_root(NODE).join("run/cni.sock"),
        world.ours(),
        program,
    ];
    let removed = pods.into_iter().zip(&gone).try_for_each(|(pod, file)| {
        fs::remove_file(file)?;
        ready(world)?;
        kubelet.remove(pod)
    });
    sandbox.start("agent", Some(NODE))?;
    sandbox.ready(Daemon::Agent(NODE))?;
    removed?;
    world.is_chained(sandbox)?;
    wait_for(
        "the agent to let go of all",
        Duration::from_secs(90),
        || {
            let left = enrolled()?;
            ensure!(left == before, "{left} are enrolled, {before} were before");
            Ok(())
        },
    )
}

/// containerd reads its directory again when something changes there.
fn ready(world: &World) -> anyhow::Result<()> {
    wait_for("containerd's network", SOON, || {
        world.containerd.cri.ready()
    })
}
