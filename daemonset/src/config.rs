// SPDX-License-Identifier: Apache-2.0
//! Flags and environment, and what they mean.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use culvert_api::unmeshable::NEVER_MESH;
use culvert_ebpf_loader::NodeOptions;
use culvert_runtime::{
    config::{LogArgs, Mistakes},
    log::Format,
};

use crate::{
    cgroups,
    cni_install::{Install, InstallArgs},
    cri,
    kubelet::Kubelet,
};

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
    #[arg(
        long,
        env = "CULVERT_MANIFESTS",
        value_name = "DIR",
        required_unless_present = "kubernetes"
    )]
    manifests: Option<PathBuf>,
    /// Follow the cluster that this node is of, by its API server.
    #[arg(long, env = "CULVERT_KUBERNETES", conflicts_with = "manifests")]
    kubernetes: bool,
    /// How to reach the API server. Without it as a pod of the cluster, or as kubectl would.
    #[arg(
        long,
        env = "CULVERT_KUBECONFIG",
        value_name = "FILE",
        requires = "kubernetes"
    )]
    kubeconfig: Option<PathBuf>,
    /// The namespace of Culvert itself. Its pods are never meshed.
    #[arg(
        long,
        env = "CULVERT_NAMESPACE",
        value_name = "NAME",
        default_value = "culvert"
    )]
    namespace: String,
    /// The socket of the container runtime, which knows the pods that ran before Culvert came.
    /// With --kubernetes: the first of containerd's, CRI-O's, k3s', MicroK8s' and k0s' usual ones.
    #[arg(long, env = "CULVERT_CRI_SOCKET", value_name = "FILE")]
    cri_socket: Option<PathBuf>,
    /// The cgroup (v2) that all pods of this node are below, such as
    /// /sys/fs/cgroup/kubepods.slice: connections of processes elsewhere are never steered. With
    /// --kubernetes it is looked for.
    #[arg(
        long,
        env = "CULVERT_CGROUP",
        value_name = "DIR",
        required_unless_present = "kubernetes"
    )]
    cgroup: Option<PathBuf>,
    /// The kubelet's cgroup (v2): its probes reach the application without the proxy. Without it
    /// probes are connections as any other. With --kubernetes it is looked for, and may come later.
    #[arg(long, env = "CULVERT_KUBELET_CGROUP", value_name = "DIR")]
    kubelet_cgroup: Option<PathBuf>,
    /// Namespaces whose pods are never meshed, beside Culvert's own.
    #[arg(
        long,
        env = "CULVERT_NEVER_MESH",
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = NEVER_MESH
    )]
    never_mesh: Vec<String>,
    #[command(flatten)]
    cni: InstallArgs,
    /// The DaemonSet in --namespace that this agent is of: Culvert goes from the node with it, and
    /// when its nodeSelector has the node no more.
    #[arg(
        long,
        env = "CULVERT_DAEMONSET",
        value_name = "NAME",
        default_value = "culvert-agent"
    )]
    daemonset: String,
    /// How long this agent's pod may take to end (terminationGracePeriodSeconds): when Culvert goes
    /// from the node, most of it is for that.
    #[arg(
        long,
        env = "CULVERT_GRACE_PERIOD",
        value_name = "SECONDS",
        default_value = "120"
    )]
    grace_period: String,
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
    /// Where the objects of the cluster come from.
    pub origin: Origin,
    /// Culvert's own namespace.
    pub namespace: String,
    /// Namespaces whose pods are never meshed, Culvert's own among them.
    pub never_mesh: BTreeSet<String>,
    /// The socket of the container runtime, if pods are to be found by it.
    pub cri_socket: Option<PathBuf>,
    /// What to install for the container runtime, if anything.
    pub cni: Option<Install>,
    /// The agent's own DaemonSet.
    pub daemonset: String,
    /// How long the agent's pod may take to end.
    pub grace: Duration,
    /// Where the programs are attached and pinned.
    pub ebpf: NodeOptions,
    /// Where the kubelet is, now and later.
    pub kubelet: Kubelet,
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

/// Where the objects of the cluster come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// An API server.
    Kubernetes {
        /// How to reach it; none: as a pod, or as kubectl would.
        kubeconfig: Option<PathBuf>,
    },
}

// === impl Config ===

impl TryFrom<Args> for Config {
    type Error = Mistakes;

    fn try_from(args: Args) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        let node = mistakes.take(node(args.node));
        let origin = mistakes.take(origin(args.manifests, args.kubeconfig));
        let proxy_uid = mistakes.take(uid(&args.proxy_uid));
        let admin = mistakes.take(address("--admin", &args.admin));
        let grace = mistakes.take(seconds("--grace-period", &args.grace_period));
        let pods = mistakes.take(pods_cgroup(args.cgroup));
        let kubelet = kubelet(args.kubelet_cgroup, args.kubernetes, pods.as_deref());
        let kubelet = mistakes.take(kubelet);
        let never_mesh = never_mesh(args.kubernetes, &args.namespace, args.never_mesh);
        let dirs = (&*args.run_dir, &*args.state_dir);
        let cni = args.cni.install(args.kubernetes, dirs, &never_mesh);
        let cni = mistakes.take(cni);
        let (
            Some(node),
            Some(origin),
            Some(proxy_uid),
            Some(admin),
            Some(grace),
            Some(cgroup),
            Some(kubelet),
            Some(cni),
        ) = (node, origin, proxy_uid, admin, grace, pods, kubelet, cni)
        else {
            return Err(mistakes);
        };
        let usual = || cri::usual_socket().filter(|_| args.kubernetes);
        Ok(Self {
            node,
            origin,
            never_mesh,
            cni,
            daemonset: args.daemonset,
            grace,
            namespace: args.namespace,
            cri_socket: args.cri_socket.or_else(usual),
            ebpf: NodeOptions {
                dir: args.bpf_dir,
                cgroup,
                kubelet_cgroup: kubelet.find(None),
                debug: args.debug_ebpf,
            },
            kubelet,
            state_dir: args.state_dir,
            run_dir: args.run_dir,
            proxy_uid,
            admin,
            log: args.log.log,
            log_format: args.log.log_format,
        })
    }
}

fn origin(manifests: Option<PathBuf>, kubeconfig: Option<PathBuf>) -> Result<Origin, String> {
    match manifests {
        Some(dir) => Ok(Origin::Manifests(directory("--manifests", dir)?)),
        None => Ok(Origin::Kubernetes { kubeconfig }),
    }
}

/// A directory of manifests is a cluster in which nothing is anybody's own.
fn never_mesh(kubernetes: bool, own: &str, others: Vec<String>) -> BTreeSet<String> {
    let all = others.into_iter().chain([own.to_owned()]);
    let all = all.map(|name| name.trim().to_owned());
    all.filter(|name| kubernetes && !name.is_empty()).collect()
}

fn pods_cgroup(said: Option<PathBuf>) -> Result<PathBuf, String> {
    let found = || cgroups::pods(&cgroups::hierarchy()?, std::process::id());
    match said {
        Some(dir) => cgroup("--cgroup", dir),
        None => found().map_err(|error| format!("--cgroup: {error}")),
    }
}

/// Without the pods' none is looked for. On a cluster a kubelet may be down while the agent starts,
/// and systemd removes the cgroup of what is down.
fn kubelet(
    said: Option<PathBuf>,
    kubernetes: bool,
    pods: Option<&Path>,
) -> Result<Kubelet, String> {
    match (said, pods.filter(|_| kubernetes), cgroups::hierarchy()) {
        (Some(dir), ..) if kubernetes && may_come(&dir) => Ok(Kubelet::At(dir)),
        (Some(dir), ..) => cgroup("--kubelet-cgroup", dir).map(Kubelet::At),
        (None, Some(pods), Ok(root)) => {
            let pods = pods.to_owned();
            Ok(Kubelet::Near { root, pods })
        }
        (None, ..) => Ok(Kubelet::Unknown),
    }
}

fn may_come(dir: &Path) -> bool {
    !dir.exists() && dir.parent().is_some_and(cgroups::is_unified)
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

fn seconds(flag: &str, text: &str) -> Result<Duration, String> {
    let bad = |_| format!("{flag}: got {text:?}, expected a number of seconds such as 120");
    text.parse::<u32>()
        .map(|seconds| Duration::from_secs(seconds.into()))
        .map_err(bad)
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
    match cgroups::is_unified(&path) {
        true => Ok(path),
        false => Err(format!(
            "{flag}: {} is not in a cgroup v2 hierarchy (is this node on cgroup v1?)",
            path.display()
        )),
    }
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
            "--grace-period=1m",
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
            "--grace-period",
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

    #[test]
    fn a_kubelets_cgroup_may_come_later_on_a_cluster() {
        let root = cgroups::hierarchy().unwrap_or_else(|e| panic!("{e}"));
        let later = root.join("culvert-test-never-made");
        let flags = [
            "--node=n".to_owned(),
            format!("--cgroup={}", root.display()),
            format!("--kubelet-cgroup={}", later.display()),
        ];
        let with = |origin: &str| {
            let flags = flags.iter().map(String::as_str).chain([origin]);
            config(&flags.collect::<Vec<_>>())
        };
        let Ok(found) = with("--kubernetes") else {
            panic!("refused it")
        };
        assert_eq!(found.kubelet, Kubelet::At(later));
        assert_eq!(found.ebpf.kubelet_cgroup, None);
        assert!(with("--manifests=/tmp").is_err());
    }
}
