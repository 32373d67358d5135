// SPDX-License-Identifier: Apache-2.0
//! Running a chain of CNI plugins as a container runtime does
//! (<https://www.cni.dev/docs/spec/#section-3-execution-of-network-configurations>).

use std::{
    fs, io,
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;

use super::{netns::Netns, process::before_exec};

/// The name of a pod's interface.
pub const IFNAME: &str = "eth0";

/// "Try again later".
pub const TRY_AGAIN: u32 = 11;

/// How long a plugin may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The network of one node.
#[derive(Debug)]
pub struct Network {
    /// The node's namespace, in which plugins run.
    pub node: Netns,
    /// Its conflist.
    pub conflist: PathBuf,
    /// Where plugins are looked for, in order.
    pub plugin_dirs: Vec<PathBuf>,
}

/// A pod that is to be attached.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// `CNI_ARGS`.
    pub args: String,
}

/// A plugin, or the configuration that names it, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the CNI plugin {plugin} failed with code {code}: {msg}{}{details}",
    if details.is_empty() { "" } else { ": " })]
pub struct Error {
    /// Its type.
    pub plugin: String,
    /// A code of the specification, or of the plugin's own from 100.
    pub code: u32,
    /// What went wrong.
    pub msg: String,
    /// More of it.
    pub details: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conflist {
    cni_version: String,
    name: String,
    plugins: Vec<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

/// The conflist of a node: the bridge of its pods, then Culvert.
pub fn conflist(
    subnets: &[(IpAddr, u8)],
    ipam: &Path,
    agent_socket: &Path,
    opt_in: &Path,
) -> Value {
    let ranges: Vec<_> = subnets.iter().map(range).collect();
    let routes: Vec<_> = subnets.iter().map(default_route).collect();
    json!({
        "cniVersion": "1.0.0",
        "name": "culvert-sandbox",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": ipam,
                    "ranges": ranges,
                    "routes": routes,
                },
            },
            {
                "type": "culvert-cni",
                "agentSocket": agent_socket,
                "optInFile": opt_in,
                "neverMesh": ["culvert", culvert_api::unmeshable::NEVER_MESH],
            },
        ],
    })
}

/// A range set: a pod gets one address of each.
fn range((network, length): &(IpAddr, u8)) -> Value {
    json!([{"subnet": format!("{network}/{length}")}])
}

fn default_route((network, _): &(IpAddr, u8)) -> Value {
    match network {
        IpAddr::V4(_) => json!({"dst": "0.0.0.0/0"}),
        IpAddr::V6(_) => json!({"dst": "::/0"}),
    }
}

// === impl Attachment ===

impl Attachment {
    /// The attachment of a pod, with the arguments that container runtimes give. Each attempt to
    /// run it is another sandbox.
    pub fn of_pod(netns: &Netns, namespace: &str, pod: &str, uid: &str, attempt: u32) -> Self {
        let mut container_id: String = uid.chars().filter(|c| *c != '-').collect();
        if attempt > 0 {
            container_id += &format!("-{attempt}");
        }
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod};\
             K8S_POD_INFRA_CONTAINER_ID={container_id};K8S_POD_UID={uid}"
        );
        Self {
            container_id,
            netns: netns.path(),
            args,
        }
    }
}

// === impl Network ===

impl Network {
    /// Attaches a pod, and answers the result of the last plugin. A failure leaves the attachment
    /// to be deleted.
    pub async fn add(&self, attachment: &Attachment) -> Result<Value, Error> {
        let list = self.read()?;
        let mut result = Value::Null;
        for plugin in &list.plugins {
            let config = list.config(plugin, &result);
            result = self.run("ADD", plugin, &config, attachment).await?;
        }
        Ok(result)
    }

    /// Detaches a pod: every plugin is asked, in reverse, and the first failure answered.
    pub async fn del(&self, attachment: &Attachment, result: &Value) -> Result<(), Error> {
        let list = self.read()?;
        let mut deleted = Ok(());
        for plugin in list.plugins.iter().rev() {
            let config = list.config(plugin, result);
            let done = self.run("DEL", plugin, &config, attachment).await;
            deleted = deleted.and(done.map(|_| ()));
        }
        deleted
    }

    fn read(&self) -> Result<Conflist, Error> {
        let text = fs::read(&self.conflist);
        let list = text.and_then(|text| Ok(serde_json::from_slice(&text)?));
        list.map_err(|error| Error {
            plugin: self.conflist.display().to_string(),
            code: 7,
            msg: "can't read the network configuration".into(),
            details: error.to_string(),
        })
    }

    async fn run(
        &self,
        verb: &str,
        plugin: &Map<String, Value>,
        config: &Value,
        attachment: &Attachment,
    ) -> Result<Value, Error> {
        let kind = plugin
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or("without a type");
        let failed = |error: io::Error| Error {
            plugin: kind.to_owned(),
            code: 5,
            msg: "can't be run".into(),
            details: error.to_string(),
        };
        let command = self.command(verb, kind, attachment).map_err(failed)?;
        let output = output(command, config).await.map_err(failed)?;
        if output.status.success() {
            return parse(&output.stdout).map_err(failed);
        }
        Err(failure(kind, &output))
    }

    fn command(&self, verb: &str, kind: &str, attachment: &Attachment) -> io::Result<Command> {
        let mut command = Command::new(self.find(kind)?);
        let paths = std::env::join_paths(&self.plugin_dirs).map_err(io::Error::other)?;
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &attachment.container_id)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_ARGS", &attachment.args)
            .env("CNI_PATH", paths)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let netns = self.node.descriptor()?;
        before_exec(&mut command, move || {
            Ok(setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?)
        });
        Ok(command)
    }

    fn find(&self, kind: &str) -> io::Result<PathBuf> {
        find_plugin(&self.plugin_dirs, kind).ok_or_else(|| {
            let dirs: Vec<_> = self
                .plugin_dirs
                .iter()
                .map(|dir| dir.display().to_string())
                .collect();
            let message = format!("no plugin {kind} in {}", dirs.join(", "));
            io::Error::new(io::ErrorKind::NotFound, message)
        })
    }
}

/// Looks for a plugin in each directory in turn.
pub fn find_plugin(dirs: &[PathBuf], kind: &str) -> Option<PathBuf> {
    let mut candidates = dirs.iter().map(|dir| dir.join(kind));
    candidates.find(|candidate| super::process::is_executable(candidate))
}

async fn output(command: Command, config: &Value) -> io::Result<std::process::Output> {
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn()?;
    let mut stdin = child
        .stdin
        .take()
        .ok_or_else(|| io::Error::other("no stdin"))?;
    let bytes = serde_json::to_vec(config)?;
    let talk = async move {
        match stdin.write_all(&bytes).await {
            // A plugin that answers before it has read everything says why by its answer.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => drop(stdin),
        }
        child.wait_with_output().await
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer within a minute");
    tokio::time::timeout(TIMEOUT, talk).await.map_err(late)?
}

/// DEL answers nothing.
fn parse(stdout: &[u8]) -> io::Result<Value> {
    if stdout.trim_ascii().is_empty() {
        return Ok(Value::Null);
    }
    Ok(serde_json::from_slice(stdout)?)
}

/// The error of the specification on stdout; what a plugin says otherwise only where there is none.
fn failure(kind: &str, output: &std::process::Output) -> Error {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let said = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| Failure {
        code: 100,
        msg: format!(
            "ended with {} and no error of the specification",
            output.status
        ),
        details: format!("{} {}", text(&output.stdout), text(&output.stderr)),
    });
    Error {
        plugin: kind.to_owned(),
        code: said.code,
        msg: said.msg,
        details: said.details.trim().to_owned(),
    }
}

// === impl Conflist ===

impl Conflist {
    fn config(&self, plugin: &Map<String, Value>, result: &Value) -> Value {
        let mut config = plugin.clone();
        config.insert("cniVersion".into(), self.cni_version.clone().into());
        config.insert("name".into(), self.name.clone().into());
        if !result.is_null() {
            config.insert("prevResult".into(), result.clone());
        }
        config.into()
    }
}

/// The addresses of a result, IPv4 and IPv6, without their prefix lengths.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let texts = ips.filter_map(|ip| ip["address"].as_str());
    texts
        .filter_map(|text| text.split('/').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests;
