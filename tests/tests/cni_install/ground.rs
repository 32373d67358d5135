// SPDX-License-Identifier: Apache-2.0
//! A sandbox whose agent installs, and a containerd that finds what it installed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    binaries,
    manifests::Pod,
    runtime::{
        containerd::{Cni, Containerd, conflist},
        kubelet::{Kubelet, serving},
        space::Space,
    },
    sandbox::{Daemon, Plan, Sandbox},
    wait::wait_for,
};
use serde_json::Value;
use tempfile::TempDir;

/// The only node.
pub const NODE: &str = "n1";
/// The name of the agent's configuration.
pub const OURS: &str = "00-culvert.conflist";
/// The name of the network's.
pub const PRIMARY: &str = "10-network.conflist";
/// What may take a poll of the agent.
pub const SOON: Duration = Duration::from_secs(20);

/// The directories of a node that is to be chained.
#[derive(Debug)]
pub struct Ground {
    _dir: TempDir,
    /// What the runtime is told of.
    pub cni: Cni,
}

/// containerd, which knows only what the agent installed.
#[derive(Debug)]
pub struct World {
    /// The runtime.
    pub containerd: Containerd,
    /// Its directories.
    pub cni: Cni,
    /// The network's configuration.
    pub primary: Value,
}

// === impl Ground ===

impl Ground {
    /// Directories in which the reference plugins are, and no network.
    pub fn new() -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("culvert-cni-install-")?;
        let cni = Cni::below(&dir.path().join("cni"))?;
        Ok(Self { _dir: dir, cni })
    }

    /// One node, and two pods of its own network.
    pub fn sandbox(&self) -> anyhow::Result<Sandbox> {
        let mut plan = Plan::new("cni-install")?.nodes(1);
        let plugin = binaries::product("culvert-cni")?;
        for (flag, value) in [
            ("--install-cni", Path::new("true")),
            ("--cni-net-dir", &self.cni.net),
            ("--cni-bin-dir", &self.cni.bin),
            ("--cni-plugin", &plugin),
        ] {
            plan = plan.flag(&format!("--agent-arg={flag}={}", value.display()));
        }
        let app = plan.testapp().to_owned();
        let pod = |name| Pod::serving(name, NODE, &app, &["7000=echo"]);
        plan.pod(&pod("client").meshed())?.pod(&pod("plain"))?.up()
    }

    /// The network of the sandbox's node, without Culvert.
    pub fn primary(&self, sandbox: &Sandbox) -> anyhow::Result<Value> {
        let mut list = conflist(&sandbox.node_root(NODE))?;
        let plugins = list["plugins"].as_array_mut();
        let plugins = plugins.context("the conflist has no plugins")?;
        plugins.retain(|plugin| plugin["type"] != "culvert-cni");
        Ok(list)
    }

    /// As a network's DaemonSet writes it.
    pub fn write_primary(&self, list: &Value) -> anyhow::Result<()> {
        write(&self.cni.net.join(PRIMARY), list)
    }

    /// What the agent says of it.
    pub fn chained(&self, sandbox: &Sandbox) -> anyhow::Result<f64> {
        sandbox.metric(Daemon::Agent(NODE), "culvert_agent_cni_chained", &[])
    }

    /// Waits until the agent has chained after this network.
    pub fn is_chained(&self, sandbox: &Sandbox, primary: &Value) -> anyhow::Result<()> {
        is_chained(sandbox, &self.cni, primary)
    }
}

// === impl World ===

impl World {
    /// Starts containerd.
    pub fn new(sandbox: &Sandbox, cni: Cni, primary: Value) -> anyhow::Result<Self> {
        let space = Space::new(sandbox, NODE)?;
        Ok(Self {
            containerd: Containerd::start_in(sandbox, space, &cni)?,
            cni,
            primary,
        })
    }

    /// Who runs pods.
    pub fn kubelet<'a>(&'a self, sandbox: &'a Sandbox) -> Kubelet<'a> {
        Kubelet {
            sandbox,
            containerd: &self.containerd,
        }
    }

    /// Runs a strict pod of this name to its end: who is meshed is let in, who is not is refused.
    pub fn pod_is_meshed(&self, sandbox: &Sandbox, name: &str) -> anyhow::Result<()> {
        let kubelet = self.kubelet(sandbox);
        let pod = kubelet.run(&serving(name, NODE, &["7000=echo"]).strict())?;
        sandbox.answers_at("client", &pod.at(7000))?;
        sandbox.connect("plain", &pod.at(7000), &[])?.refused()?;
        kubelet.remove(pod)
    }

    /// The file of the agent.
    pub fn ours(&self) -> PathBuf {
        self.cni.net.join(OURS)
    }

    /// Waits until the agent has chained after the network.
    pub fn is_chained(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        is_chained(sandbox, &self.cni, &self.primary)
    }

    /// Writes the network's configuration.
    pub fn write_primary(&self, list: &Value) -> anyhow::Result<()> {
        write(&self.cni.net.join(PRIMARY), list)
    }

    /// How often the agent put something right.
    pub fn repairs(&self, sandbox: &Sandbox, what: &str) -> anyhow::Result<f64> {
        let name = "culvert_agent_cni_repairs_total";
        sandbox.metric(Daemon::Agent(NODE), name, &[("what", what)])
    }
}

/// The types of the plugins in a file.
pub fn types(file: &Path) -> anyhow::Result<Vec<String>> {
    let list: Value = serde_json::from_slice(&fs::read(file)?)?;
    let plugins = list["plugins"].as_array().context("no plugins")?;
    let kinds = plugins.iter().filter_map(|plugin| plugin["type"].as_str());
    Ok(kinds.map(str::to_owned).collect())
}

fn is_chained(sandbox: &Sandbox, cni: &Cni, primary: &Value) -> anyhow::Result<()> {
    wait_for("the agent to chain after the network", SOON, || {
        let list: Value = serde_json::from_slice(&fs::read(cni.net.join(OURS))?)?;
        let (ours, theirs) = (list["plugins"].as_array(), primary["plugins"].as_array());
        let mut ours = ours.context("no plugins")?.clone();
        let last = ours.pop().context("no plugin")?;
        ensure!(last["type"] == "culvert-cni", "the last plugin is {last}");
        ensure!(Some(&ours) == theirs, "{ours:?} are not the network's");
        for field in ["name", "cniVersion", "x-revision"] {
            ensure!(list[field] == primary[field], "{field} is {}", list[field]);
        }
        let chained = sandbox.metric(Daemon::Agent(NODE), "culvert_agent_cni_chained", &[])?;
        ensure!(chained == 1.0, "the agent says {chained}");
        Ok(())
    })
}

/// In place, as most networks do it: the agent may read half of it.
fn write(path: &Path, list: &Value) -> anyhow::Result<()> {
    Ok(fs::write(path, serde_json::to_vec_pretty(list)?)?)
}
