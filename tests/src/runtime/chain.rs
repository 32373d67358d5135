// SPDX-License-Identifier: Apache-2.0
//! The node's chain of CNI plugins, called in ways that no well-behaved runtime would.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{kubelet::Known, space::Space};
use crate::{
    manifests::NAMESPACE,
    process::{Output, Running},
};

/// The network's name, another one than the runtimes'.
pub const NETWORK: &str = "direct";
const CNI_VERSION: &str = "1.0.0";
const PATIENCE: Duration = Duration::from_secs(60);

/// The plugins of containerd's configuration.
#[derive(Debug)]
pub struct Chain<'a> {
    space: &'a Space,
    bin: PathBuf,
    plugins: Vec<Value>,
}

/// What a runtime says of a container, as in the environment of a plugin.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: String,
}

/// A network namespace where runtimes keep theirs. It goes when dropped.
#[derive(Debug)]
pub struct PodNetns<'a> {
    space: &'a Space,
    /// Where it is mounted, inside and outside.
    pub path: PathBuf,
}

/// A plugin's `code`, `msg` and `details`.
#[derive(Debug)]
pub struct Failure {
    /// Of the specification, or of the plugin's own from 100.
    pub code: u64,
    /// The whole answer.
    pub text: String,
}

// === impl Attachment ===

impl Attachment {
    /// Of a pod that the manifests know.
    pub fn of(known: &Known, netns: &Path) -> Self {
        let (name, uid) = (known.name(), known.uid());
        Self {
            container: format!("direct-{uid}"),
            netns: netns.display().to_string(),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={name};K8S_POD_UID={uid}"
            ),
        }
    }

    /// As a runtime says it that forgot the namespace.
    pub fn without_netns(&self) -> Self {
        Self {
            netns: String::new(),
            ..self.clone()
        }
    }
}

// === impl Chain ===

impl<'a> Chain<'a> {
    /// As containerd has it.
    pub fn new(space: &'a Space) -> anyhow::Result<Self> {
        let file = space.path("cni/net.d/10-culvert.conflist");
        Self::of(space, &file, space.path("cni/bin"))
    }

    /// As a file has it.
    pub fn of(space: &'a Space, file: &Path, bin: PathBuf) -> anyhow::Result<Self> {
        let list: Value = serde_json::from_slice(&fs::read(file)?)?;
        let plugins = list["plugins"].as_array().cloned();
        Ok(Self {
            space,
            bin,
            plugins: plugins.context("the conflist has no plugins")?,
        })
    }

    /// What a plugin of the chain is told.
    pub fn config(&self, kind: &str, version: &str, previous: Option<&Value>) -> Value {
        let found = self.plugins.iter().find(|plugin| plugin["type"] == kind);
        let mut config = found.cloned().unwrap_or_else(|| json!({"type": kind}));
        config["cniVersion"] = version.into();
        config["name"] = NETWORK.into();
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        config
    }

    /// Runs a plugin with anything on its stdin.
    pub fn plugin(
        &self,
        kind: &str,
        verb: &str,
        of: &Attachment,
        stdin: &str,
    ) -> anyhow::Result<Output> {
        let plugin = self.bin.join(kind).display().to_string();
        let mut command = self.space.command(&plugin);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &of.container)
            .env("CNI_NETNS", &of.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", &of.args)
            .env("CNI_PATH", &self.bin);
        let mut running = Running::start(&mut command)?;
        running.say(stdin)?;
        running.finish(PATIENCE)
    }

    /// Runs `culvert-cni` with its configuration.
    pub fn culvert(
        &self,
        verb: &str,
        of: &Attachment,
        previous: Option<&Value>,
    ) -> anyhow::Result<Output> {
        let config = self.config("culvert-cni", CNI_VERSION, previous);
        self.plugin("culvert-cni", verb, of, &config.to_string())
    }

    /// Adds by all plugins, and answers what the last one said.
    pub fn add(&self, of: &Attachment) -> anyhow::Result<Value> {
        let mut result = None;
        for kind in self.kinds()? {
            let config = self.config(kind, CNI_VERSION, result.as_ref());
            let added = self.plugin(kind, "ADD", of, &config.to_string())?;
            result = Some(added.json()?);
        }
        result.context("the chain is empty")
    }

    /// Deletes by all plugins, in this order.
    pub fn delete(&self, of: &Attachment, kinds: &[&str]) -> anyhow::Result<()> {
        for kind in kinds {
            let config = self.config(kind, CNI_VERSION, None);
            self.plugin(kind, "DEL", of, &config.to_string())?.ok()?;
        }
        Ok(())
    }

    fn kinds(&self) -> anyhow::Result<Vec<&str>> {
        let kinds = self.plugins.iter().map(|plugin| plugin["type"].as_str());
        let kinds: Option<Vec<_>> = kinds.collect();
        kinds.context("a plugin has no type")
    }
}

/// What a plugin says that failed as the specification has it.
pub fn failure(output: &Output) -> anyhow::Result<Failure> {
    ensure!(output.status == Some(1), "{output:?}");
    let text = output.stdout.trim().to_owned();
    let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(answer["cniVersion"].is_string(), "{text}");
    let code = answer["code"].as_u64().context("no code")?;
    Ok(Failure { code, text })
}

// === impl PodNetns ===

impl<'a> PodNetns<'a> {
    /// Makes one.
    pub fn new(space: &'a Space, name: &str) -> anyhow::Result<Self> {
        let path = space.netns().join(name);
        fs::File::create(&path)?;
        let file = format!("--net={}", path.display());
        space.run("unshare", &[&file, "true"])?.ok()?;
        Ok(Self { space, path })
    }

    /// Its mount ends, and its name: what a runtime does last, or a reboot.
    pub fn remove(&self) -> anyhow::Result<()> {
        let path = self.path.display().to_string();
        // As all runtimes do it: the agent has the namespace open by this mount.
        self.space.run("umount", &["--lazy", &path])?.ok()?;
        Ok(fs::remove_file(&self.path)?)
    }
}

impl Drop for PodNetns<'_> {
    fn drop(&mut self) {
        // It may be gone; the space unmounts what is not.
        if self.path.exists() {
            let _ = self.remove();
        }
    }
}
