// SPDX-License-Identifier: Apache-2.0
//! What others do to the files while the agent is there.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use culvert_tests::{sandbox::Sandbox, wait::wait_for};
use serde_json::{Value, json};

use crate::ground::{PRIMARY, SOON, World, types};

/// Longer than repairs at once take.
const LOOP: Duration = Duration::from_secs(6);

pub fn rewritten(sandbox: &Sandbox, world: &mut World) -> anyhow::Result<()> {
    let before = world.repairs(sandbox, "conflist")?;
    for revision in 1..=3 {
        world.primary["x-revision"] = json!({ "number": revision });
        world.write_primary(&world.primary)?;
        world.is_chained(sandbox)?;
    }
    // By another name, as a network that is upgraded.
    let (old, new) = (PRIMARY, "05-upgraded.conflist");
    let at = |name: &str| world.cni.net.join(name);
    fs::rename(at(old), at(new))?;
    wait_for("the agent to follow the name", SOON, || {
        let text = fs::read_to_string(world.ours())?;
        ensure!(text.contains(new), "{text}");
        Ok(())
    })?;
    fs::rename(at(new), at(old))?;
    world.is_chained(sandbox)?;
    let now = world.repairs(sandbox, "conflist")?;
    ensure!(now == before, "what the network does is no repair: {now}");
    world.pod_is_meshed(sandbox, "rewritten")
}

pub fn by_hand(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let ours = world.ours();
    let right = fs::read(&ours)?;
    let wrong = [
        ("emptied", Some(String::new())),
        ("unchained", Some(world.primary.to_string())),
        ("deleted", None),
    ];
    for (name, text) in wrong {
        let before = world.repairs(sandbox, "conflist")?;
        match text {
            Some(text) => fs::write(&ours, text)?,
            None => fs::remove_file(&ours)?,
        }
        is_repaired(sandbox, world, "conflist", before)?;
        ensure!(fs::read(&ours)? == right, "{name}: it is another");
    }
    let program = world.cni.bin.join("culvert-cni");
    let before = world.repairs(sandbox, "program")?;
    fs::remove_file(&program)?;
    is_repaired(sandbox, world, "program", before)?;
    ensure!(program.exists(), "the plugin is not there");
    world.pod_is_meshed(sandbox, "healed")
}

fn is_repaired(sandbox: &Sandbox, world: &World, what: &str, before: f64) -> anyhow::Result<()> {
    wait_for(&format!("the agent to repair the {what}"), SOON, || {
        let now = world.repairs(sandbox, what)?;
        ensure!(now > before, "{now} repairs");
        Ok(())
    })?;
    world.is_chained(sandbox)
}

pub fn broken(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let right = fs::read(world.ours())?;
    let text = world.primary.to_string();
    let half = text.get(..text.len() / 2).context("no half")?;
    fs::write(world.cni.net.join(PRIMARY), half)?;
    wait_for("the agent to say so", SOON, || {
        let log = sandbox.logs("agent")?;
        ensure!(log.contains("could not chain after"), "it does not");
        Ok(())
    })?;
    ensure!(fs::read(world.ours())? == right, "ours is another");
    world.pod_is_meshed(sandbox, "broken")?;
    world.write_primary(&world.primary)?;
    world.is_chained(sandbox)
}

/// As istio-cni and linkerd-cni do it: an entry in the first file there is.
pub fn other_mesh(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let ours = world.ours();
    let before = types(&ours)?;
    let mut list: Value = serde_json::from_slice(&fs::read(&ours)?)?;
    let plugins = list["plugins"].as_array_mut().context("no plugins")?;
    // It is there, and does nothing here.
    plugins.push(json!({"type": "portmap", "x-other-mesh": true}));
    plugins.push(json!({"type": "loopback", "x-other-mesh": true}));
    fs::write(&ours, list.to_string())?;
    wait_for("our plugin to be the last again", SOON, || {
        let now = types(&ours)?;
        let kinds: Vec<_> = now.iter().map(String::as_str).collect();
        let [.., other, last] = kinds[..] else {
            anyhow::bail!("{now:?}")
        };
        ensure!((other, last) == ("loopback", "culvert-cni"), "{now:?}");
        ensure!(now.len() == before.len() + 1, "{now:?}");
        Ok(())
    })?;
    let mut list: Value = serde_json::from_slice(&fs::read(&ours)?)?;
    let plugins = list["plugins"].as_array_mut().context("no plugins")?;
    plugins.retain(|plugin| plugin["type"] != "loopback");
    fs::write(&ours, list.to_string())?;
    world.is_chained(sandbox)?;
    ensure!(types(&ours)? == before, "{:?}", types(&ours)?);
    Ok(())
}

/// As Cilium does it with `cni.exclusive`.
pub fn in_a_loop(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let before = world.repairs(sandbox, "conflist")?;
    let begin = Instant::now();
    while begin.elapsed() < LOOP {
        match fs::remove_file(world.ours()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    let repairs = world.repairs(sandbox, "conflist")? - before;
    ensure!(
        (3.0..=10.0).contains(&repairs),
        "{repairs} repairs in {LOOP:?}"
    );
    let log = sandbox.logs("agent")?;
    ensure!(
        log.contains("cni.exclusive=false"),
        "it does not say what to do"
    );
    wait_for("the last repair", SOON, || types(&world.ours()).map(drop))?;
    world.pod_is_meshed(sandbox, "peace")
}
