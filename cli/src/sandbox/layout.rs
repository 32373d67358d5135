// SPDX-License-Identifier: Apache-2.0
//! Where a sandbox keeps what, and which names and addresses it uses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{
    error::{Error, Result},
    families::IpFamily,
};

/// The directory of all sandboxes.
pub const ROOT: &str = "/run/culvert/sandbox";
/// The user that proxies run as; nobody else's.
pub const PROXY_UID: u32 = 2102;
/// The user that control runs as; nobody else's.
pub const CONTROL_UID: u32 = 2103;
/// The namespace that control says it is in.
pub const CONTROL_NAMESPACE: &str = "culvert";
/// The trust domain of a sandbox.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// The port of control's gRPC server.
pub const CONTROL_PORT: u16 = 8086;
/// Control's last part of its addresses on the fabric.
const CONTROL_HOST: u8 = 254;
/// The most nodes of a sandbox; their pod networks are 10.244.1.0/24 and fd00:244:0:1::/64 and up.
pub const MAX_NODES: u8 = 50;

/// The longest name of a sandbox: the path of a node's socket has 108 bytes at most
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/un.h#L7>).
const MAX_NAME: usize = 40;

/// The name of a sandbox, which is part of the names of network namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

/// A node, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u8);

/// The paths of one sandbox.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Whose they are.
    pub name: Name,
    root: PathBuf,
}

/// The paths of one node.
#[derive(Clone, Debug)]
pub struct NodeLayout {
    /// Everything of the node.
    pub root: PathBuf,
}

// === impl Name ===

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The network namespace that joins the nodes.
    pub fn fabric_netns(&self) -> String {
        format!("cv-{self}-fabric")
    }

    /// The network namespace of control.
    pub fn control_netns(&self) -> String {
        format!("cv-{self}-control")
    }

    /// The network namespace of a node.
    pub fn node_netns(&self, node: NodeId) -> String {
        format!("cv-{self}-{node}")
    }

    /// The network namespace of a pod. A name of a file has 255 bytes at most, so one that would
    /// be longer ends in a hash.
    pub fn pod_netns(&self, namespace: &str, pod: &str) -> String {
        let full = format!("cv-{self}-{namespace}-{pod}");
        if full.len() <= 255 {
            return full;
        }
        let head: String = full.chars().take(240).collect();
        format!("{head}-{:010x}", fnv1a(full.as_bytes()) & 0xff_ffff_ffff)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let edges = name.starts_with('-') || name.ends_with('-');
        if name.is_empty() || name.len() > MAX_NAME || edges || !name.chars().all(fine) {
            return Err(Error::Usage(format!(
                "got {name:?} as the name of a sandbox, expected 1 to {MAX_NAME} lower-case \
                 letters, digits and inner dashes"
            )));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl NodeId ===

impl NodeId {
    /// The first `count` nodes.
    pub fn first(count: u8) -> impl Iterator<Item = Self> {
        (1..=count).map(Self)
    }

    /// The node's address on the fabric, with the length of the fabric's prefix.
    pub fn addr(self, family: IpFamily) -> (IpAddr, u8) {
        on_fabric(family, self.0)
    }

    /// The network of the node's pods.
    pub fn pod_network(self, family: IpFamily) -> (IpAddr, u8) {
        match family {
            IpFamily::V4 => (Ipv4Addr::new(10, 244, self.0, 0).into(), 24),
            IpFamily::V6 => {
                let node = self.0.into();
                let network = Ipv6Addr::new(0xfd00, 0x244, 0, node, 0, 0, 0, 0);
                (network.into(), 64)
            }
        }
    }
}

/// Control's address on the fabric, with the length of the fabric's prefix.
pub fn control_addr(family: IpFamily) -> (IpAddr, u8) {
    on_fabric(family, CONTROL_HOST)
}

fn on_fabric(family: IpFamily, host: u8) -> (IpAddr, u8) {
    match family {
        IpFamily::V4 => (Ipv4Addr::new(10, 245, 0, host).into(), 24),
        IpFamily::V6 => {
            let addr = Ipv6Addr::new(0xfd00, 0x245, 0, 0, 0, 0, 0, host.into());
            (addr.into(), 64)
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let id = name.strip_prefix('n').and_then(|id| id.parse().ok());
        let id = id.filter(|id| (1..=MAX_NODES).contains(id)).map(Self);
        id.filter(|id| id.to_string() == name).ok_or_else(|| {
            Error::Usage(format!(
                "got {name:?} as a node, expected n1 to n{MAX_NODES}"
            ))
        })
    }
}

// === impl Layout ===

impl Layout {
    /// The paths of the sandbox of this name.
    pub fn new(name: Name) -> Self {
        let root = Path::new(ROOT).join(name.as_str());
        Self { name, root }
    }

    /// Everything of the sandbox.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What control and the agents read.
    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// Control's state: the trust anchor and the issuer.
    pub fn control(&self) -> PathBuf {
        self.root.join("control")
    }

    /// The hashes of the nodes' join tokens.
    pub fn join_tokens(&self) -> PathBuf {
        self.root.join("join-tokens.json")
    }

    /// What processes and containers say.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The supervisor's log.
    pub fn supervisor_log(&self) -> PathBuf {
        self.logs().join("supervisor.log")
    }

    /// The log of a process.
    pub fn daemon_log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// The directory of the logs of a pod's containers.
    pub fn pod_logs(&self, namespace: &str, pod: &str) -> PathBuf {
        self.logs().join("pods").join(format!("{namespace}.{pod}"))
    }

    /// Where the supervisor answers.
    pub fn socket(&self) -> PathBuf {
        self.root.join("supervisor.sock")
    }

    /// Held by the supervisor for as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The supervisor's process id.
    pub fn pid(&self) -> PathBuf {
        self.root.join("supervisor.pid")
    }

    /// What `up` asked for.
    pub fn state(&self) -> PathBuf {
        self.root.join("state.json")
    }

    /// A file for each network namespace that was made, so that `down` finds them all.
    pub fn netns_records(&self) -> PathBuf {
        self.root.join("netns")
    }

    /// Where captures are written.
    pub fn captures(&self) -> PathBuf {
        self.root.join("captures")
    }

    /// What a pod sees in `/etc` as its own.
    pub fn pod_etc(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    /// The paths of a node.
    pub fn node(&self, node: NodeId) -> NodeLayout {
        let root = self.root.join("nodes").join(node.to_string());
        NodeLayout { root }
    }
}

// === impl NodeLayout ===

impl NodeLayout {
    /// The agent's sockets.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The agent's state.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The network configuration of the node.
    pub fn conflist(&self) -> PathBuf {
        self.root.join("cni/net.d/10-culvert.conflist")
    }

    /// The addresses that host-local gave.
    pub fn ipam(&self) -> PathBuf {
        self.root.join("cni/data")
    }

    /// The proxy's state.
    pub fn proxy_state(&self) -> PathBuf {
        self.root.join("proxy-state")
    }

    /// The node's join token, for the proxy only.
    pub fn token(&self) -> PathBuf {
        self.root.join("token")
    }

    /// The trust anchors that the supervisor hands to the proxy.
    pub fn trust_anchors(&self) -> PathBuf {
        self.root.join("trust-anchors.pem")
    }

    /// The node's bpffs.
    pub fn bpf(&self) -> PathBuf {
        self.root.join("bpf")
    }
}

/// FNV-1a, 64 bits (<https://www.rfc-editor.org/rfc/rfc9923>): the same in every release and on
/// every machine, where names and addresses are made from it.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_not_fit_a_path_are_refused() {
        for bad in ["", "-a", "a-", "A", "a/b", "a.b", "..", &"a".repeat(41)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        let longest: Name = "a".repeat(40).parse().unwrap_or_else(|e| panic!("{e}"));
        let socket = Layout::new(longest)
            .node(NodeId(50))
            .run()
            .join("proxy.sock");
        assert!(socket.as_os_str().len() < 108);
    }

    #[test]
    fn nodes_have_one_spelling() {
        assert_eq!("n12".parse::<NodeId>().ok(), Some(NodeId(12)));
        for bad in ["n0", "n51", "n01", "n+1", "1", "node"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_long_pod_gets_a_name_that_fits_and_is_its_own() {
        let name: Name = "x".parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(name.pod_netns("a", "b"), "cv-x-a-b");
        let (one, two) = ("p".repeat(253), format!("{}q", "p".repeat(252)));
        assert_eq!(name.pod_netns("ns", &one).len(), 251);
        assert_ne!(name.pod_netns("ns", &one), name.pod_netns("ns", &two));
    }
}
