// SPDX-License-Identifier: Apache-2.0
//! What the steps share.

use anyhow::Context as _;
use culvert_tests::{
    runtime::{
        containerd::Containerd,
        kubelet::{Kubelet, RunningPod, serving},
    },
    sandbox::{Daemon, Sandbox},
};
use serde_json::Value;

/// Where containerd is.
pub const NODE: &str = "n1";

/// containerd and two pods of it.
pub struct World {
    /// The runtime.
    pub containerd: Containerd,
    /// Meshed and permissive, with 7000=echo and 7001=whoami.
    pub web: RunningPod,
    /// Meshed and strict, with 7000=echo.
    pub strict: RunningPod,
}

// === impl World ===

impl World {
    /// Starts containerd and the pods.
    pub fn new(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let containerd = Containerd::start(sandbox, NODE)?;
        let kubelet = Kubelet {
            sandbox,
            containerd: &containerd,
        };
        let web = serving("web", NODE, &["7000=echo", "7001=whoami"]).meshed();
        let strict = serving("strict", NODE, &["7000=echo"]).strict();
        let pods = kubelet
            .run(&web)
            .and_then(|web| Ok((web, kubelet.run(&strict)?)));
        let (web, strict) = pods.inspect_err(|_| containerd.print_log())?;
        for pod in [&web, &strict] {
            sandbox.answers_at("client", &pod.at(7000))?;
        }
        Ok(Self {
            containerd,
            web,
            strict,
        })
    }

    /// Who runs pods.
    pub fn kubelet<'a>(&'a self, sandbox: &'a Sandbox) -> Kubelet<'a> {
        Kubelet {
            sandbox,
            containerd: &self.containerd,
        }
    }

    /// The network namespace of a pod, as the agent wrote it down.
    pub fn netns_of(&self, sandbox: &Sandbox, uid: &str) -> anyhow::Result<String> {
        let dir = sandbox.node_root(NODE).join("state/pods");
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let record: Value = serde_json::from_slice(&std::fs::read(path)?)?;
            if record["workload"]["uid"] == uid {
                let netns = record["netns"].as_str();
                return Ok(netns.context("a record without netns")?.to_owned());
            }
        }
        anyhow::bail!("the agent has no record of {uid}")
    }
}

/// How many mTLS connections a pod served to, or dialled as, a peer.
pub fn opened(
    sandbox: &Sandbox,
    node: &str,
    direction: &str,
    pod: &str,
    peer: &str,
) -> anyhow::Result<f64> {
    let id = format!("spiffe://cluster.local/ns/default/sa/{peer}");
    let labels = [
        ("direction", direction),
        ("tls", "true"),
        ("pod", pod),
        ("client_id", &id),
    ];
    sandbox.metric(Daemon::Proxy(node), "tcp_open_total", &labels)
}

/// How many pods containerd's node steers.
pub fn enrolled(sandbox: &Sandbox) -> anyhow::Result<f64> {
    let state = [("state", "enrolled")];
    sandbox.metric(Daemon::Agent(NODE), "culvert_agent_pods", &state)
}
