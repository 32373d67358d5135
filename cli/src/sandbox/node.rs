// SPDX-License-Identifier: Apache-2.0
//! A node: its namespace, its bpffs, its network configuration, and its agent and proxy.

use std::{
    ffi::OsString,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::mount::{MsFlags, mount};

use super::{
    binaries::Binaries,
    cgroup::Cgroups,
    cni::{self, Network},
    daemon::{Daemon, DaemonStatus, Launcher},
    error::{Doing, Result},
    fabric::{self, Fabric},
    families::{IpFamilies, IpFamily},
    layout::{
        CONTROL_NAMESPACE, CONTROL_PORT, CONTROL_UID, Layout, NodeId, NodeLayout, PROXY_UID,
        TRUST_DOMAIN, control_addr,
    },
    leftovers,
    netns::Netns,
    options::Options,
    process::{FILES, Launch},
};

/// The port of an agent's admin server, on the node's loopback.
pub const AGENT_ADMIN: u16 = 9991;
/// The port of a proxy's admin server.
pub const PROXY_ADMIN: u16 = 4191;
/// The port of control's admin server.
pub const CONTROL_ADMIN: u16 = 9990;

/// What every part of a sandbox is made from.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where things are.
    pub layout: Layout,
    /// Where processes are.
    pub cgroups: Cgroups,
    /// What is run.
    pub binaries: Binaries,
    /// What the user asked for.
    pub options: Options,
}

/// A node that is up.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Its pods' network.
    pub network: Arc<Network>,
    /// Its agent.
    pub agent: Daemon,
    /// Its proxy.
    pub proxy: Daemon,
}

/// One process of a node or control.
struct Plan<'a> {
    kind: &'a str,
    node: Option<NodeId>,
    cgroup: PathBuf,
    netns: &'a str,
    admin: u16,
    unprivileged: Option<u32>,
    args: Vec<OsString>,
}

// === impl Node ===

impl Node {
    /// Makes a node that is not there yet and starts its processes. Blocks.
    pub fn start(site: &Site, fabric: &Fabric, id: NodeId) -> Result<Self> {
        Self::try_start(site, fabric, id).inspect_err(|_| {
            if let Err(error) = clear(site, fabric, id) {
                tracing::warn!(node = %id, %error, "Could not remove what is there of a node");
            }
        })
    }

    fn try_start(site: &Site, fabric: &Fabric, id: NodeId) -> Result<Self> {
        let netns = fabric.add_node(&site.layout, id)?;
        let plugin_dirs = site.binaries.cni_dirs();
        let layout = site.layout.node(id);
        prepare(&layout, id, site.options.ip_families)
            .doing(|| format!("prepare {}", layout.root.display()))?;
        Ok(Self {
            id,
            agent: site.start(agent(site, id, &netns.name))?,
            proxy: site.start(proxy(site, id, &netns.name))?,
            network: Arc::new(Network {
                node: netns,
                conflist: layout.conflist(),
                plugin_dirs,
            }),
        })
    }

    /// Ends the node's processes and removes it. Its pods must be gone.
    pub async fn stop(self, site: &Site, fabric: &Fabric) -> Result<()> {
        let id = self.id;
        self.power_off(site, fabric).await?;
        let root = site.layout.node(id).root;
        let removed = fs::remove_dir_all(&root);
        removed.doing(|| format!("remove {}", root.display()))
    }

    /// Ends the node's processes, and removes all of it but what is on its disk.
    pub async fn power_off(self, site: &Site, fabric: &Fabric) -> Result<()> {
        self.proxy.stop().await;
        self.agent.stop().await;
        clear(site, fabric, self.id)
    }
}

/// What a reboot takes away: the namespace, the bpffs, the sockets. What is not there is fine.
fn clear(site: &Site, fabric: &Fabric, id: NodeId) -> Result<()> {
    let layout = site.layout.node(id);
    let unmounted = leftovers::unmount_below(&layout.root);
    unmounted.doing(|| format!("unmount below {}", layout.root.display()))?;
    match fs::remove_dir_all(layout.run()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
    .doing(|| format!("remove {}", layout.run().display()))?;
    fabric.remove_node(&site.layout, id)
}

/// Starts control.
pub fn start_control(site: &Site) -> Result<Daemon> {
    let layout = &site.layout;
    let state = layout.control();
    give(&state, CONTROL_UID, 0o700).doing(|| format!("give {} to control", state.display()))?;
    let netns = layout.name.control_netns();
    let any = any(site.options.ip_families);
    let args = args(&[
        ("--manifests", layout.manifests().as_os_str()),
        (
            "--listen",
            SocketAddr::new(any, CONTROL_PORT).to_string().as_ref(),
        ),
        (
            "--admin",
            SocketAddr::new(any, CONTROL_ADMIN).to_string().as_ref(),
        ),
        ("--state-dir", state.as_os_str()),
        ("--trust-domain", TRUST_DOMAIN.as_ref()),
        ("--namespace", CONTROL_NAMESPACE.as_ref()),
        ("--join-tokens", layout.join_tokens().as_os_str()),
    ]);
    site.start(Plan {
        kind: "control",
        node: None,
        cgroup: site.cgroups.control(),
        netns: &netns,
        admin: CONTROL_ADMIN,
        unprivileged: Some(CONTROL_UID),
        args,
    })
}

/// The directories and files of a node, and its bpffs.
fn prepare(layout: &NodeLayout, id: NodeId, families: IpFamilies) -> io::Result<()> {
    for dir in [
        layout.run(),
        layout.state(),
        layout.ipam(),
        layout.proxy_state(),
        layout.bpf(),
    ] {
        fs::create_dir_all(dir)?;
    }
    give(&layout.proxy_state(), PROXY_UID, 0o700)?;
    const NONE: Option<&Path> = None;
    mount(
        Some("bpf"),
        &layout.bpf(),
        Some("bpf"),
        MsFlags::empty(),
        NONE,
    )?;
    write_conflist(layout, id, families)
}

fn write_conflist(layout: &NodeLayout, id: NodeId, families: IpFamilies) -> io::Result<()> {
    let subnets: Vec<_> = families.iter().map(|one| id.pod_network(one)).collect();
    let (socket, opt_in) = (
        layout.run().join("cni.sock"),
        layout.state().join("opt-in.json"),
    );
    let conflist = cni::conflist(&subnets, &layout.ipam(), &socket, &opt_in);
    let path = layout.conflist();
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(path, format!("{conflist:#}\n"))
}

/// Gives a file or directory to a process's user.
pub fn give(path: &Path, uid: u32, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    chown(path, Some(uid), Some(uid))
}

fn agent<'a>(site: &Site, id: NodeId, netns: &'a str) -> Plan<'a> {
    let (layout, kubepods) = (site.layout.node(id), site.cgroups.kubepods(id));
    let args = args(&[
        ("--node", id.to_string().as_ref()),
        ("--manifests", site.layout.manifests().as_os_str()),
        ("--cgroup", kubepods.as_os_str()),
        ("--kubelet-cgroup", site.cgroups.kubelet().as_os_str()),
        ("--bpf-dir", layout.bpf().as_os_str()),
        ("--state-dir", layout.state().as_os_str()),
        ("--run-dir", layout.run().as_os_str()),
        ("--proxy-uid", PROXY_UID.to_string().as_ref()),
        ("--admin", format!("127.0.0.1:{AGENT_ADMIN}").as_ref()),
    ]);
    Plan {
        kind: "agent",
        node: Some(id),
        cgroup: kubepods.join("agent"),
        netns,
        admin: AGENT_ADMIN,
        unprivileged: None,
        args,
    }
}

fn proxy<'a>(site: &Site, id: NodeId, netns: &'a str) -> Plan<'a> {
    let layout = site.layout.node(id);
    let families = site.options.ip_families;
    let (control, _) = control_addr(families.primary());
    let args = args(&[
        ("--node", id.to_string().as_ref()),
        (
            "--agent-socket",
            layout.run().join("proxy.sock").as_os_str(),
        ),
        (
            "--control",
            SocketAddr::new(control, CONTROL_PORT).to_string().as_ref(),
        ),
        ("--control-namespace", CONTROL_NAMESPACE.as_ref()),
        ("--trust-domain", TRUST_DOMAIN.as_ref()),
        ("--trust-anchors", layout.trust_anchors().as_os_str()),
        ("--token-file", layout.token().as_os_str()),
        ("--state-dir", layout.proxy_state().as_os_str()),
        (
            "--admin",
            SocketAddr::new(any(families), PROXY_ADMIN)
                .to_string()
                .as_ref(),
        ),
    ]);
    Plan {
        kind: "proxy",
        node: Some(id),
        cgroup: site.cgroups.kubepods(id).join("proxy"),
        netns,
        admin: PROXY_ADMIN,
        unprivileged: Some(PROXY_UID),
        args,
    }
}

/// `[::]` takes IPv4 too.
fn any(families: IpFamilies) -> IpAddr {
    match families.contains(IpFamily::V6) {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    }
}

fn args(pairs: &[(&str, &std::ffi::OsStr)]) -> Vec<OsString> {
    pairs
        .iter()
        .flat_map(|(flag, value)| [flag.into(), (*value).to_owned()])
        .collect()
}

// === impl Site ===

impl Site {
    /// The addresses of a node.
    pub fn host_ips(&self, node: NodeId) -> Vec<IpAddr> {
        let families = self.options.ip_families.iter();
        families.map(|family| node.addr(family).0).collect()
    }

    fn start(&self, plan: Plan<'_>) -> Result<Daemon> {
        let name = match plan.node {
            Some(node) => format!("{node}-{}", plan.kind),
            None => plan.kind.to_owned(),
        };
        let open = |netns| Netns::open(netns).doing(|| format!("open {netns}"));
        let log = self.layout.daemon_log(&name);
        let status = DaemonStatus {
            kind: plan.kind.to_owned(),
            node: plan.node.map(|node| node.to_string()),
            reason: "starting".into(),
            log: log.display().to_string(),
            ..DaemonStatus::default()
        };
        let (admin, netns) = ((open(plan.netns)?, plan.admin), open(plan.netns)?);
        Ok(Daemon::start(
            status,
            admin,
            self.launcher(plan, netns, log),
        ))
    }

    fn launcher(&self, plan: Plan<'_>, netns: Netns, log: PathBuf) -> Launcher {
        let program = self.binaries.path(&format!("culvert-{}", plan.kind));
        let mut args = plan.args;
        args.extend(["--log".into(), self.options.log.clone().into()]);
        args.extend(self.options.extra(plan.kind).iter().map(Into::into));
        let env = vec![("PATH".to_owned(), super::pods::PATH.to_owned())];
        let (cgroup, unprivileged) = (plan.cgroup, plan.unprivileged);
        Box::new(move || {
            Ok(Launch {
                program: program.clone(),
                args: args.clone(),
                env: env.clone(),
                cwd: Some("/".into()),
                log: log.clone(),
                cgroup: cgroup.clone(),
                netns: netns.descriptor()?,
                unprivileged,
                private: None,
                files: (FILES, FILES),
            })
        })
    }
}

/// Routes between every node and the pods of every other.
pub fn route_all(site: &Site, nodes: &[&Node]) -> Result<()> {
    let ids: Vec<_> = nodes.iter().map(|node| node.id).collect();
    for node in nodes {
        let others: Vec<_> = ids.iter().copied().filter(|id| *id != node.id).collect();
        fabric::route(&node.network.node, site.options.ip_families, &others)?;
    }
    Ok(())
}
