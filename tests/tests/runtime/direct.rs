// SPDX-License-Identifier: Apache-2.0
//! The chain, called without a runtime.

use anyhow::{Context as _, ensure};
use culvert_tests::{
    manifests::Pod,
    runtime::{
        chain::{Attachment, Chain, NETWORK, PodNetns, failure},
        kubelet::{Known, serving},
    },
    sandbox::Sandbox,
};
use serde_json::{Value, json};

use crate::world::{NODE, World, enrolled};

const ORDERS: [[&str; 3]; 3] = [
    ["portmap", "culvert-cni", "bridge"],
    ["bridge", "culvert-cni", "portmap"],
    ["culvert-cni", "bridge", "portmap"],
];

fn known(sandbox: &Sandbox, world: &World, name: &str) -> anyhow::Result<Known> {
    let pod: Pod = serving(name, NODE, &["7000=echo"]).meshed();
    world.kubelet(sandbox).know(&pod)
}

/// The previous result comes back each time, byte for byte, and the pod is enrolled once.
pub fn repeated(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let chain = Chain::new(&world.containerd.space)?;
    let known = known(sandbox, world, "twice")?;
    let netns = PodNetns::new(&world.containerd.space, "twice")?;
    let pod = Attachment::of(&known, &netns.path);
    let before = enrolled(sandbox)?;
    let result = chain.add(&pod)?;
    for _ in 0..3 {
        let again: Value = chain.culvert("ADD", &pod, Some(&result))?.json()?;
        ensure!(again == result, "{again} instead of {result}");
        chain.culvert("CHECK", &pod, Some(&result))?.ok()?;
        ensure!(enrolled(sandbox)? == before + 1.0, "it is enrolled twice");
    }
    chain.delete(&pod, &ORDERS[0])?;
    let unknown = failure(&chain.culvert("CHECK", &pod, Some(&result))?)?;
    ensure!(unknown.code == 3, "CHECK after DEL: {}", unknown.text);
    ensure!(enrolled(sandbox)? == before, "it is still enrolled");
    world.kubelet(sandbox).forget(&known)
}

pub fn deleted(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let space = &world.containerd.space;
    let chain = Chain::new(space)?;
    let known = known(sandbox, world, "order")?;
    let before = enrolled(sandbox)?;
    for (nth, order) in ORDERS.iter().enumerate() {
        let netns = PodNetns::new(space, &format!("order-{nth}"))?;
        let pod = Attachment::of(&known, &netns.path);
        chain.add(&pod)?;
        ensure!(
            enrolled(sandbox)? == before + 1.0,
            "{order:?}: not enrolled"
        );
        // As of a container that never was.
        let stranger = Attachment {
            container: "stranger".to_owned(),
            ..pod.clone()
        };
        chain.delete(&stranger, &["culvert-cni"])?;
        ensure!(
            enrolled(sandbox)? == before + 1.0,
            "a stranger's DEL took it"
        );
        if nth == 1 {
            netns.remove()?;
        }
        for attachment in [pod.without_netns(), pod.without_netns(), pod] {
            // The reference plugins mind a namespace that is gone only when it is named.
            let gone = nth == 1 && !attachment.netns.is_empty();
            let order = if gone {
                &["culvert-cni"][..]
            } else {
                &order[..]
            };
            chain.delete(&attachment, order)?;
            ensure!(enrolled(sandbox)? == before, "{order:?}: still enrolled");
        }
    }
    world.kubelet(sandbox).forget(&known)
}

pub fn collected(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let space = &world.containerd.space;
    let chain = Chain::new(space)?;
    let before = enrolled(sandbox)?;
    let mut pods = Vec::new();
    for name in ["kept", "dropped"] {
        let known = known(sandbox, world, name)?;
        let netns = PodNetns::new(space, name)?;
        let pod = Attachment::of(&known, &netns.path);
        chain.add(&pod)?;
        pods.push((known, netns, pod));
    }
    let kept = &pods[0].2.container;
    let gc = |network: &str, container: &str| {
        let mut config = chain.config("culvert-cni", "1.1.0", None);
        config["name"] = network.into();
        let valid = json!([{"containerID": container, "ifname": "eth0"}]);
        config["cni.dev/valid-attachments"] = valid;
        let done = chain.plugin(
            "culvert-cni",
            "GC",
            &Attachment::default(),
            &config.to_string(),
        );
        done?.ok()
    };
    gc("another-network", "nobody")?;
    ensure!(
        enrolled(sandbox)? == before + 2.0,
        "another network's GC took a pod"
    );
    gc(NETWORK, kept)?;
    ensure!(
        enrolled(sandbox)? == before + 1.0,
        "GC left a pod, or took the valid one"
    );
    let config = chain.config("culvert-cni", "1.1.0", None).to_string();
    let status = chain.plugin("culvert-cni", "STATUS", &Attachment::default(), &config)?;
    status.ok().context("STATUS")?;
    for (known, _netns, pod) in &pods {
        chain.delete(pod, &ORDERS[0])?;
        world.kubelet(sandbox).forget(known)?;
    }
    ensure!(enrolled(sandbox)? == before, "not all are gone");
    Ok(())
}

/// Each is refused with the specification's code, and with words that lead to it.
pub fn mistakes(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let space = &world.containerd.space;
    let chain = Chain::new(space)?;
    let known = known(sandbox, world, "mistaken")?;
    let netns = PodNetns::new(space, "mistaken")?;
    let pod = Attachment::of(&known, &netns.path);
    let gone = Attachment::of(&known, &space.netns().join("gone"));
    let result = json!({"cniVersion": "1.0.0", "ips": []});
    let good = |version| {
        chain
            .config("culvert-cni", version, Some(&result))
            .to_string()
    };
    let alone = chain.config("culvert-cni", "1.0.0", None).to_string();
    let node = Attachment {
        netns: "/proc/self/ns/net".to_owned(),
        ..pod.clone()
    };
    let before = enrolled(sandbox)?;
    for (of, stdin, code, word) in [
        (&pod, alone.as_str(), 7, "chained"),
        (&gone, &good("1.0.0"), 4, "gone"),
        (&pod.without_netns(), &good("1.0.0"), 4, "CNI_NETNS"),
        (&node, &good("1.0.0"), 4, "agent's own"),
        (&pod, "{\"cniVersion\": \"1.0.0\",", 6, "decode"),
        (&pod, &good("0.2.0"), 1, "1.1.0"),
        (&pod, &good("9.0.0"), 1, "1.1.0"),
    ] {
        let refused = failure(&chain.plugin("culvert-cni", "ADD", of, stdin)?)?;
        let Some(at) = refused.text.find(word) else {
            anyhow::bail!("{word:?} is not in {}", refused.text)
        };
        ensure!(refused.code == code && at > 0, "{}", refused.text);
    }
    ensure!(enrolled(sandbox)? == before, "a mistake enrolled a pod");
    world.kubelet(sandbox).forget(&known)
}
