// SPDX-License-Identifier: Apache-2.0
//! The agent chains its plugin into a container network that it did not make, and keeps it there:
//! the real agent, and a real containerd that knows of Culvert only what the agent installed.

#[path = "cni_install/ground.rs"]
mod ground;
#[path = "cni_install/healed.rs"]
mod healed;
#[path = "cni_install/late.rs"]
mod late;

use std::fs;

use anyhow::ensure;
use culvert_tests::{binaries, require, runtime::kubelet::serving, sandbox::Sandbox, suite::Suite};

use crate::ground::{Ground, NODE, World};

#[test]
fn cni_install() -> anyhow::Result<()> {
    if !require::root()? || !require::programs(&["containerd", "runc", "busybox"])? {
        return Ok(());
    }
    let ground = Ground::new()?;
    let sandbox = ground.sandbox()?;
    let mut suite = Suite::new(sandbox);
    suite.step("nothing is chained where no network is", |s| {
        no_network(s, &ground)
    });
    let mut world = None;
    suite.step("a network that appears is chained", |s| {
        world = Some(appears(s, &ground)?);
        Ok(())
    });
    if let Some(world) = &mut world {
        steps(&mut suite, world);
        if suite.has_failed() {
            world.containerd.print_log();
        }
    }
    drop(world);
    suite.finish()
}

fn steps(suite: &mut Suite, world: &mut World) {
    suite.step("a pod that the runtime adds is meshed", |s| {
        world.pod_is_meshed(s, "first")
    });
    suite.step("a network that is changed is followed", |s| {
        healed::rewritten(s, world)
    });
    suite.step("what is changed by hand is put right", |s| {
        healed::by_hand(s, world)
    });
    suite.step("a network that can't be read leaves what there is", |s| {
        healed::broken(s, world)
    });
    suite.step("what another mesh chains stays", |s| {
        healed::other_mesh(s, world)
    });
    suite.step("who takes it away in a loop gets no fight", |s| {
        healed::in_a_loop(s, world)
    });
    suite.step("after a reboot a pod waits for the agent", |s| {
        late::reboot(s, world)
    });
    suite.step("a pod is deleted whatever of Culvert is gone", |s| {
        late::deleted(s, world)
    });
}

fn no_network(sandbox: &Sandbox, ground: &Ground) -> anyhow::Result<()> {
    ensure!(ground.chained(sandbox)? == 0.0, "something is chained");
    let files = fs::read_dir(&ground.cni.net)?.count();
    ensure!(files == 0, "{files} files in {}", ground.cni.net.display());
    let installed = fs::read(ground.cni.bin.join("culvert-cni"))?;
    let product = fs::read(binaries::product("culvert-cni")?)?;
    ensure!(installed == product, "it is another program");
    Ok(())
}

fn appears(sandbox: &Sandbox, ground: &Ground) -> anyhow::Result<World> {
    let primary = ground.primary(sandbox)?;
    ground.write_primary(&primary)?;
    ground.is_chained(sandbox, &primary)?;
    let world = World::new(sandbox, ground.cni.clone(), primary)?;
    // The plugin of the sandbox's own pods and containerd's ask the same agent.
    let pod = serving("second", NODE, &["7000=echo"]).meshed();
    let kubelet = world.kubelet(sandbox);
    let pod = kubelet.run(&pod)?;
    sandbox.answers_at("client", &pod.at(7000))?;
    kubelet.remove(pod)?;
    Ok(world)
}
