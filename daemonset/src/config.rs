// SPDX-License-Identifier: Apache-2.0
//! Flags and environment, and what they mean.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Parser;
use culvert_ebpf_loader::NodeOptions;
use culvert_runtime::{
    config::{LogArgs, Mistakes},
    log::Format,
};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// The node agent of Culvert: steers the connections of this node's opted-in pods to culvert-proxy.
///
/// It runs as root on the node, with the node's cgroups, bpffs and network namespaces in sight.
/// When it ends, its pods stay steered; only enrolling waits for it to come back.
#[derive(Clone, Debug, Parser)]
#[command(name = "culvert-agent", version)]
pub struct Args {
    /// The name of this node: pods whose spec.nodeName it is are this agent's.
    #[arg(long, env = "CULVERT_NODE", value_name = "NAME")]
    node: String,
    /// Directory of Kubernetes manifests (*.yaml, *.yml, *.json) that is the cluster. Changes are
    /// picked up live.
    #[arg(long, env = "CULVERT_MANIFESTS", value_name = "DIR")]
    manifests: PathBuf,
    /// The cgroup (v2) that all pods of this node are below, such as
    /// /sys/fs/cgroup/kubepods.slice: connections of processes elsewhere are never steered.
    #[arg(long, env = "CULVERT_CGROUP", value_name = "DIR")]
    cgroup: PathBuf,
    /// The kubelet's cgroup (v2): its probes reach the application without the proxy. Without it
    /// probes are connections as any other.
    #[arg(long, env = "CULVERT_KUBELET_CGROUP", value_name = "DIR")]
    kubelet_cgroup: Option<PathBuf>,
    /// This node's own directory for pinned eBPF. A bpffs is mounted there unless it lies in one.
    #[arg(
        long,
        env = "CULVERT_BPF_DIR",
        value_name = "DIR",
        default_value = "/sys/fs/bpf/culvert"
    )]
    bpf_dir: PathBuf,
    /// Where to keep what has to outlive the agent, and opt-in.json for culvert-cni.
    #[arg(
        long,
        env = "CULVERT_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/culvert/agent"
    )]
    state_dir: PathBuf,
    /// Where to make the sockets cni.sock (for culvert-cni) and proxy.sock (for culvert-proxy).
    #[arg(
        long,
        env = "CULVERT_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/culvert"
    )]
    run_dir: PathBuf,
    /// The user that culvert-proxy runs as; others are refused at proxy.sock.
    #[arg(
        long,
        env = "CULVERT_PROXY_UID",
        value_name = "UID",
        default_value = "2102"
    )]
    proxy_uid: String,
    /// Where to serve /metrics, /ready and /live.
    #[arg(
        long,
        env = "CULVERT_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:9991"
    )]
    admin: String,
    /// Log what the eBPF programs decide, connection by connection. Slow.
    #[arg(long, env = "CULVERT_DEBUG_EBPF")]
    debug_ebpf: bool,
    #[command(flatten)]
    log: LogArgs,
}

/// What the agent is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: String,
    /// The directory that is the cluster.
    pub manifests: PathBuf,
    /// Where the programs are attached and pinned.
    pub ebpf: NodeOptions,
    /// What outlives the agent.
    pub state_dir: PathBuf,
    /// Where the sockets are.
    pub run_dir: PathBuf,
    /// Who may be a proxy.
    pub proxy_uid: u32,
    /// Where to serve metrics and readiness.
    pub admin: SocketAddr,
    /// What to log.
    pub log: String,
    /// How log lines look.
    pub log_format: Format,
}

// === impl Config ===

impl TryFrom<Args> for Config {
    type Error = Mistakes;

    fn try_from(args: Args) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        let node = mistakes.take(node(args.node));
        let manifests = mistakes.take(directory("--manifests", args.manifests));
        let proxy_uid = mistakes.take(uid(&args.proxy_uid));
        let admin = mistakes.take(address("--admin", &args.admin));
        let cgroup = mistakes.take(cgroup("--cgroup", args.cgroup));
        let kubelet = args
            .kubelet_cgroup
            .map(|dir| cgroup_of_kubelet(&mut mistakes, dir));
        let (Some(node), Some(manifests), Some(proxy_uid), Some(admin), Some(cgroup), true) = (
            node,
            manifests,
            proxy_uid,
            admin,
            cgroup,
            mistakes.0.is_empty(),
        ) else {
            return Err(mistakes);
        };
        Ok(Self {
            node,
            manifests,
            ebpf: NodeOptions {
                dir: args.bpf_dir,
                cgroup,
                kubelet_cgroup: kubelet.flatten(),
                debug: args.debug_ebpf,
            },
            state_dir: args.state_dir,
            run_dir: args.run_dir,
            proxy_uid,
            admin,
            log: args.log.log,
            log_format: args.log.log_format,
        })
    }
}

fn cgroup_of_kubelet(mistakes: &mut Mistakes, dir: PathBuf) -> Option<PathBuf> {
    mistakes.take(cgroup("--kubelet-cgroup", dir))
}

fn node(name: String) -> Result<String, String> {
    match name.trim().is_empty() {
        true => Err("--node: got an empty name, expected this node's name".to_owned()),
        false => Ok(name),
    }
}

fn uid(text: &str) -> Result<u32, String> {
    let bad = |_| format!("--proxy-uid: got {text:?}, expected a numeric user id");
    text.parse().map_err(bad)
}

fn address(flag: &str, text: &str) -> Result<SocketAddr, String> {
    let bad = |_| format!("{flag}: got {text:?}, expected an address such as 127.0.0.1:9991");
    text.parse().map_err(bad)
}

fn directory(flag: &str, path: PathBuf) -> Result<PathBuf, String> {
    match path.is_dir() {
        true => Ok(path),
        false => Err(format!("{flag}: {} is not a directory", path.display())),
    }
}

/// The programs see only sockets of the unified hierarchy.
fn cgroup(flag: &str, path: PathBuf) -> Result<PathBuf, String> {
    let path = directory(flag, path)?;
    match is_cgroup2(&path) {
        true => Ok(path),
        false => Err(format!(
            "{flag}: {} is not in a cgroup v2 hierarchy (is this node on cgroup v1?)",
            path.display()
        )),
    }
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Result<Config, Mistakes> {
        let all = ["culvert-agent"].iter().chain(flags);
        let args = Args::try_parse_from(all).unwrap_or_else(|e| panic!("{e}"));
        args.try_into()
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let got = config(&[
            "--node=",
            "--manifests=/nowhere",
            "--cgroup=/tmp",
            "--proxy-uid=x",
            "--admin=y",
            "--kubelet-cgroup=/nowhere",
        ]);
        let Err(Mistakes(got)) = got else {
            panic!("took it")
        };
        let flags = [
            "--node",
            "--manifests",
            "--proxy-uid",
            "--admin",
            "--cgroup",
            "--kubelet-cgroup",
        ];
        assert_eq!(got.len(), flags.len(), "{got:?}");
        assert!(
            flags
                .iter()
                .zip(&got)
                .all(|(flag, got)| got.starts_with(flag)),
            "{got:?}"
        );
    }
}
